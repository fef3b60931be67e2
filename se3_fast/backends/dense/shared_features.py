"""Features that several operations of a layer read: autograd adds up their gradients."""

from __future__ import annotations

from se3_fast.fiber import Features


def shared_features(features: Features, readers: int) -> list[Features]:
    """The features as they are, for each of ``readers`` operations."""
    return [features] * readers
