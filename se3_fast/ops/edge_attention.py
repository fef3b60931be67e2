"""Attention over incoming edges. Formula: :mod:`se3_fast.reference.edge_attention`, which every backend uses so far."""

from __future__ import annotations

from se3_fast.reference.edge_attention import edge_attention

__all__ = ["edge_attention"]
