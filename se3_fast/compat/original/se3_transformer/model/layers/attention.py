"""Attention."""

from se3_fast.layers import AttentionBlockSE3, AttentionSE3

__all__ = ["AttentionBlockSE3", "AttentionSE3"]
