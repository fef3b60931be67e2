"""Linear maps."""

from se3_fast.layers import LinearSE3

__all__ = ["LinearSE3"]
