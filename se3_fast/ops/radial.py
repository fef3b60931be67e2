"""The hidden layers of all radial profiles of a convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from se3_fast.reference import radial as reference
from se3_fast.reference.radial import RadialLayer


def radial(invariants: Tensor, profiles: Sequence[tuple[RadialLayer, RadialLayer]]) -> list[Tensor]:
    """Evaluate the two hidden layers of every profile.

    Args:
        invariants: [E, e] invariant edge features, the edge length last.
        profiles: the parameters of each profile.

    Returns:
        h of each profile, [E, K], in the autocast dtype where autocast is on.
    """
    return [reference.radial(invariants, layers) for layers in profiles]
