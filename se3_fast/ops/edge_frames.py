"""The former place of :mod:`se3_fast.geometry`."""

from se3_fast.geometry import EdgeGeometry, edge_lengths

__all__ = ["EdgeGeometry", "edge_lengths"]
