"""Pooling and softmax."""

from se3_fast.compat.message_passing.ops import edge_softmax
from se3_fast.compat.message_passing.readout import AvgPooling, MaxPooling, SumPooling

from . import glob, softmax

__all__ = ["AvgPooling", "MaxPooling", "SumPooling", "edge_softmax", "glob", "softmax"]
