"""Softmax over edges."""

from se3_fast.compat.message_passing.ops import edge_softmax

__all__ = ["edge_softmax"]
