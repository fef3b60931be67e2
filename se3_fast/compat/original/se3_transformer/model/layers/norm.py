"""Nonlinearity."""

from se3_fast.layers import NormSE3

__all__ = ["NormSE3"]
