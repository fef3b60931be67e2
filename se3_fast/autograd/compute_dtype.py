"""The precision policy: in which dtype an operation computes, and which dtypes go together.

float64 stays float64. Everything else is computed in the dtype of autocast where autocast is on, as matrix products of PyTorch are,
and in its own dtype where it is off; what is accumulated or divided is at least float32 inside of every operation. Without autocast
all operands of an operation have one dtype; with it they may differ, but for float64, which goes with float64 only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from se3_fast.autograd.modes import known_when_compiled
from se3_fast.autograd.operation import Evaluate, Tensors

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What operations compute with; a backend that converts what it is given would take others in silence."""


def check_dtype(name: str, tensor: Tensor) -> None:
    """Whether an argument has one of them.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{name}: expected float32, float64, bfloat16 or float16, got {tensor.dtype}")


def compute_dtype(example: Tensor) -> torch.dtype:
    """The dtype that an operation called now computes in, and returns; ``example`` is one of its operands."""
    device_type = example.device.type
    is_cast = example.dtype != torch.float64 and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if is_cast else example.dtype


def go_together(dtype: torch.dtype, other: torch.dtype, device_type: str) -> bool:
    """Whether an operation called now takes operands of both dtypes."""
    return dtype == other or (torch.float64 not in (dtype, other) and torch.is_autocast_enabled(device_type))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which half precision is accumulated: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, at a tenth of the time where it is the tensor itself, as it mostly is."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor of half precision as float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def in_at_least_float32(function: Callable[..., list[Tensor]], *arguments: object) -> Evaluate:
    """A formula that computes half precision in float32: operands are widened, results are as the formula returns them.

    Args:
        function: called with ``arguments``, then the operands in a row.
        *arguments: of the function.
    """

    def evaluate(operands: Tensors) -> list[Tensor]:
        return function(*arguments, [_widened(operand) for operand in operands])

    return evaluate


def _widened(operand: Tensor | None) -> Tensor | None:
    return operand if operand is None or not operand.is_floating_point() else at_least_float32(operand)


@known_when_compiled
def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` of ``torch.float32``: what the description of a node in a compiled graph says."""
    return str(dtype).removeprefix("torch.")
