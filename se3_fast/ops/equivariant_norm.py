"""Norm-based nonlinearity. Formula: :mod:`se3_fast.backends.dense.equivariant_norm`.

Results have the dtype of the features under autocast too; half precision is computed with in float32.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from se3_fast.backends.choice import implementation
from se3_fast.fiber import Features


def group_norm(
    features: Features,
    scale: Tensor,
    shift: Tensor,
    epsilon: float,
    nonlinearity: Callable[[Tensor], Tensor],
    row: Tensor | None = None,
) -> Features:
    """Group normalisation over the fused norms, one group per degree.

    Args:
        features: ``{d: [N, C, 2d+1]}``, all with the same C.
        scale: [D * C] weight, channels of all D degrees side by side, degrees ascending.
        shift: [D * C] bias.
        epsilon: added to the variance.
        nonlinearity: applied to the normalised norms.
        row: ``scale`` and ``shift`` in a row, [P, 2 D C], if their gradient is to come in parts.

    Returns:
        ``{d: [N, C, 2d+1]}``.
    """
    backend = implementation("equivariant_norm", scale.device, type(nonlinearity))  # type: ignore[arg-type]
    return backend.group_norm(features, scale, shift, epsilon, nonlinearity, row)


def layer_norm(feature: Tensor, scale: Tensor, shift: Tensor, epsilon: float, nonlinearity: Callable[[Tensor], Tensor]) -> Tensor:
    """Layer normalisation over the norms of one degree: [N, C, 2d+1] to the same; ``scale`` and ``shift`` are [C]."""
    backend = implementation("equivariant_norm", scale.device, type(nonlinearity))  # type: ignore[arg-type]
    return backend.layer_norm(feature, scale, shift, epsilon, nonlinearity)
