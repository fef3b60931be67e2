"""Edge frames by the compiled CPU operation (``csrc/edge_frames.cpp``)."""

from __future__ import annotations

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.backends.dense.edge_frames import frame_angles
from se3_fast.so3 import axis_swap

__all__ = ["frame_angles", "wigner_blocks"]


def wigner_blocks(direction: Tensor, max_degree: int) -> Tensor:
    """[E, sum of (2d+1)^2] from unit vectors [E, 3]; see :func:`se3_fast.backends.dense.edge_frames.wigner_blocks`."""
    return torch.ops.se3_fast_cpp.wigner_blocks(direction.contiguous(), max_degree, _axis_swaps(max_degree))


@constant
def _axis_swaps(max_degree: int) -> Tensor:
    """J_d of the degrees 0..max_degree in a row, float64."""
    return torch.cat([axis_swap(degree).flatten() for degree in range(max_degree + 1)])
