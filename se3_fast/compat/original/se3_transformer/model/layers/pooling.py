"""Pooling."""

from se3_fast.layers import GPooling

__all__ = ["GPooling"]
