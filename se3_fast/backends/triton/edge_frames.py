"""Edge frames: the angles by the Triton kernel (``kernels/edge_frames.py``), by which the other kernels turn features."""

from functools import cache

from se3_fast.backends.dense.edge_frames import wigner_blocks
from se3_fast.kernels.edge_frames import frame_angles, swap_entries
from se3_fast.so3 import axis_swap

__all__ = ["axis_swaps", "frame_angles", "wigner_blocks"]


@cache
def axis_swaps(max_degree: int) -> tuple[float, ...]:
    """The entries of J up to a degree, as the kernels take them."""
    return swap_entries([axis_swap(degree) for degree in range(max_degree + 1)])
