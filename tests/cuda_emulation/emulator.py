"""The CUDA kernels of ``csrc/`` on the CPU: compiled as C++ with ``cuda_emulation.h``, launched like on a device."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from se3_fast.backends.cuda import library

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
OPTIONS = (
    "-std=c++17",
    "-O1",
    "-fno-strict-aliasing",
    "-fsanitize=alignment,bounds,shift",
    "-fno-sanitize-recover=all",
    "-Wno-unknown-pragmas",
    "-shared",
    "-fPIC",
)

_directory = tempfile.TemporaryDirectory(prefix="se3_fast_emulator")


@cache
def emulator(architecture: int) -> ctypes.CDLL:
    """The kernels as they are for an architecture: 700 (Volta) or 750 (Turing)."""
    assert COMPILER is not None
    target = Path(_directory.name) / f"emulator_{architecture}.so"
    includes = [f"-I{HERE}", f"-I{library.source_directory()}", f"-DSE3_FAST_EMULATED={architecture}"]
    subprocess.run([COMPILER, *OPTIONS, *includes, str(HERE / "emulator.cpp"), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def launcher(architecture: int, is_reversed: bool = False) -> Callable[..., None]:
    """In place of :func:`se3_fast.backends.cuda.library.launch`; ``is_reversed``: the last warp of a block runs first."""

    def launch(
        name: str,
        grid: tuple[int, int, int],
        num_threads: int,
        shared_bytes: int,
        arguments: Sequence[library.Argument],
        device: torch.device,
    ) -> None:
        assert device.type == "cpu"
        packed = library.PackedArguments(arguments)
        status = emulator(architecture).emulate(
            name.encode(), *grid, num_threads, ctypes.c_size_t(shared_bytes), ctypes.c_void_p(packed.address), int(is_reversed)
        )
        assert status == 0, f"no kernel {name}"

    return launch
