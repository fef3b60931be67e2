"""Features that several operations of a layer read, and whose gradients a backend may add up in fewer launches than autograd."""

from __future__ import annotations

from se3_fast.backends.choice import implementation
from se3_fast.fiber import Features


def shared_features(features: Features, readers: int) -> list[Features]:
    """The same features for each of ``readers`` operations, ``{d: [N, C, 2d+1]}``."""
    device = next(iter(features.values())).device
    return implementation("shared_features", device).shared_features(features, readers)
