"""Shapes of the C++ operations ``radial`` and ``radial_backward`` (``csrc/radial.cpp``), for tracing."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("se3_fast_cpp::radial")
def _forward_shapes(invariants: Tensor, parameters: Tensor, width: int, has_norm: bool, epsilon: float) -> Tensor:
    return invariants.new_empty(parameters.shape[0], invariants.shape[0], width)


@torch.library.register_fake("se3_fast_cpp::radial_backward")
def _backward_shapes(
    gradient: Tensor,
    invariants: Tensor,
    parameters: Tensor,
    width: int,
    has_norm: bool,
    epsilon: float,
    with_invariants: bool,
) -> list[Tensor]:
    operands = [parameters, invariants] if with_invariants else [parameters]
    return [torch.empty_like(operand) for operand in operands]
