"""QM9; bases need not be cached, ``precompute_bases`` keeps the geometry of the edges."""

from se3_fast.data import QM9DataModule

__all__ = ["QM9DataModule"]
