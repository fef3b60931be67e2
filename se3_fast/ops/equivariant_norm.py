"""Norm-based nonlinearity. Formula: :mod:`se3_fast.reference.equivariant_norm`, which every backend uses so far."""

from __future__ import annotations

from se3_fast.reference.equivariant_norm import group_norm, layer_norm

__all__ = ["group_norm", "layer_norm"]
