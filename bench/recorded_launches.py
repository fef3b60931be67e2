"""The launches of Triton kernels, recorded instead of carried out: what they would write stays as it was allocated."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from se3_fast.kernels import launching

KERNELS = Path(launching.__file__).parent
MODULES = [path.stem for path in sorted(KERNELS.glob("*.py")) if "launch(" in path.read_text() and path.stem != "launching"]
"""The files that launch kernels."""


class Launch(NamedTuple):
    """One launch.

    Attributes:
        module: the file of the kernel, in ``kernels/``.
        kernel: its name there.
        grid: programs along each axis.
        arguments: tensors, numbers, and tuples of them.
        constants: those of compile time, and options such as ``num_warps``.
    """

    module: str
    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """All launches of this block, in order."""
    found: list[Launch] = []

    def record(kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
        module = kernel.fn.__module__.rpartition(".")[2]
        found.append(Launch(module, kernel.fn.__name__, grid, arguments, constants))

    with ExitStack() as stack:
        for name in MODULES:
            stack.enter_context(patch.object(importlib.import_module(f"se3_fast.kernels.{name}"), "launch", record))
        yield found


@dataclass(frozen=True)
class Pointer:
    """What a compilation depends on of a tensor; Triton takes it for one when it compiles without launching."""

    dtype: torch.dtype
    offset: int

    def data_ptr(self) -> int:
        """An address as far from a multiple of 16."""
        return self.offset


def as_compiled(launch: Launch) -> Launch:
    """The same without tensors, and with other numbers that Triton treats alike: equal where one compilation serves both."""
    return launch._replace(grid=(1,), arguments=_specialised(launch.arguments))


def _specialised(value: Any) -> Any:
    """Triton compiles anew for 1, for multiples of 16 and for numbers that need 64 bits."""
    if isinstance(value, Tensor):
        return Pointer(value.dtype, value.data_ptr() % 16)
    if isinstance(value, tuple):
        items = map(_specialised, value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if type(value) is int and value != 1:
        return (0 if abs(value) < 2**31 else 2**32) + (16 if value % 16 == 0 else 3)
    return value


def compile_launch(launch: Launch) -> None:
    """Compile what a launch would run, for the device at hand, into Triton's cache on disk."""
    kernel = getattr(importlib.import_module(f"se3_fast.kernels.{launch.module}"), launch.kernel)
    kernel.warmup(*launch.arguments, grid=launch.grid, **launch.constants)
