"""Base class of data modules."""

from se3_fast.data import DataModule

__all__ = ["DataModule"]
