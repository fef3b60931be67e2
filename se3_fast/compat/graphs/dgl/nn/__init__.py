"""Pooling and softmax."""

from se3_fast.compat.message_passing.readout import AvgPooling, MaxPooling, SumPooling

from . import functional, pytorch

__all__ = ["AvgPooling", "MaxPooling", "SumPooling", "functional", "pytorch"]
