"""Edge frames: the angles by the Triton kernel, which runs on these devices too."""

from se3_fast.backends.triton.edge_frames import frame_angles, wigner_blocks

__all__ = ["frame_angles", "wigner_blocks"]
