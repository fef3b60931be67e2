"""Edge frames: the angles by the Triton kernel (``kernels/edge_frames.py``), from which the other kernels make Wigner blocks."""

from se3_fast.backends.dense.edge_frames import wigner_blocks
from se3_fast.kernels.edge_frames import frame_angles

__all__ = ["frame_angles", "wigner_blocks"]
