"""Pooling over whole graphs."""

from se3_fast.compat.message_passing.readout import AvgPooling, MaxPooling, SumPooling

__all__ = ["AvgPooling", "MaxPooling", "SumPooling"]
