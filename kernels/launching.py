"""How every kernel is launched: on the device of its tensors, with a grid whose second and third axes do not grow with the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOST_PROGRAMS = 65_535
"""What CUDA allows along the second and third axis of a grid; along the first it is 2**31 - 1."""


def launch(kernel: Any, grid: tuple[int, ...], /, *arguments: object, **constants: object) -> None:  # kernel: a JITFunction
    """Run a kernel for all programs of a grid on the device, and in the current stream, of its tensors.

    Triton itself takes the device that happens to be current: a model on ``cuda:1`` would run on ``cuda:0``.

    Args:
        kernel: a ``@triton.jit`` function.
        grid: programs along each axis. What grows with nodes or edges belongs on the first one.
        arguments: tensors, numbers and tuples of them, at least one tensor.
        constants: compile-time constants by name; ``num_warps``, ``num_stages``.

    Raises:
        ValueError: without a tensor among the arguments, and for a grid that CUDA would refuse.
    """
    if any(programs > MOST_PROGRAMS for programs in grid[1:]):
        raise ValueError(f"grid: expected at most {MOST_PROGRAMS} programs along all axes but the first, got {grid}")
    device = _first_device(arguments)
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        kernel[grid](*arguments, **constants)
        return
    with torch.cuda.device(device):
        kernel[grid](*arguments, **constants)


def _first_device(arguments: Iterable[object]) -> torch.device:
    for argument in arguments:
        if isinstance(argument, Tensor):
            return argument.device
        if isinstance(argument, tuple) and argument and isinstance(argument[0], Tensor):
            return argument[0].device
    raise ValueError("arguments: expected a tensor among them, got none")
