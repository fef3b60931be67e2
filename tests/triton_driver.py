"""Where there is no GPU: a driver of Triton that compiles for compute capability 9.0 and launches nothing."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

RESOURCES = (1024,) if tuple(map(int, re.findall(r"\d+", triton.__version__)[:2])) >= (3, 4) else ()
"""Threads of a block at most, which newer versions also ask of a kernel that is loaded."""


class Utils:
    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Module, function, registers, spills."""
        return (1, 2, 32, 0, *RESOURCES)

    def unload_module(self, module: int) -> None:
        """Nothing was loaded."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Of an H200, as far as compiling asks."""
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}


class Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = str(getattr(metadata, "name", source))

    def __call__(self, *arguments: object) -> None:
        """Nothing is launched."""


def use() -> None:
    """From now on kernels are compiled for the driver of this file."""
    device = torch.device("cpu")
    driver.set_active(
        SimpleNamespace(
            utils=Utils(),
            launcher_cls=Launcher,
            get_current_device=lambda: 0,
            set_current_device=lambda index: None,
            get_current_stream=lambda index: 0,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_active_torch_device=lambda: device,
            get_device_interface=lambda: torch.cuda,
            map_python_to_cpp_type=lambda name: name,
            is_active=lambda: True,
        )
    )
