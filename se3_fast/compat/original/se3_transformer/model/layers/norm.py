"""Nonlinearity, and the two steps of it by themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from se3_fast.layers import NormSE3

__all__ = ["NormSE3", "clamped_norm", "rescale"]


def clamped_norm(x: Tensor, clamp: float) -> Tensor:
    """The Euclidean norm over the last axis, which stays with size 1, and at least ``clamp``."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=clamp)


def rescale(x: Tensor, norm: Tensor, new_norm: Tensor) -> Tensor:
    """``x`` with ``norm`` replaced by ``new_norm``."""
    return x / norm * new_norm
