"""The precision policy: in which dtype an operation computes, and which dtypes go together.

float64 stays float64. Everything else is computed in the dtype of autocast where autocast is on, as matrix products of PyTorch are,
and in its own dtype where it is off; what is accumulated or divided is at least float32 inside of every operation. Without autocast
all operands of an operation have one dtype; with it they may differ, but for float64, which goes with float64 only.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor of half precision as float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
