"""Fibers."""

from se3_fast.fiber import Fiber, FiberEl

__all__ = ["Fiber", "FiberEl"]
