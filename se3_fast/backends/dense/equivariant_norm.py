"""Norm-based nonlinearity: the norms of the features are normalised and rectified, their directions stay.

    n = max(|x|, 2^-24),   out = x / n * phi(normalise(n))

``normalise`` is a group normalisation with one group per degree over the norms of all degrees side by side, or, where channel
counts differ, a layer normalisation per degree. Half-precision features are computed with in float32, each way: the derivative of
x / n has x / n^2 in it, which float16 does not hold for n < 2^-16, and infinity times a zero gradient is no number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from se3_fast.backends.dense.layer_norm import layer_norm as normalised_over_channels
from se3_fast.backends.operands import Norm
from se3_fast.fiber import Features

NORM_CLAMP = 2.0**-24
"""Smallest norm; the smallest positive number of float16, so that no norm is zero in half precision."""


def group_norm(features: Features, norm: Norm, row: Tensor | None = None) -> Features:
    """Group normalisation over the fused norms.

    Args:
        features: ``{d: [N, C, 2d+1]}``, all with the same C.
        norm: how; its nonlinearity is phi.
        row: not read.

    Returns:
        ``{d: [N, C, 2d+1]}`` in the dtype of the features.
    """

    def normalise(norms: Tensor) -> Tensor:
        # Every degree for itself, which is what a group normalisation is; PyTorch's takes longer on the CPU, and its second
        # derivatives know no vmap.
        by_degree = norms.unflatten(1, (len(features), norms.shape[1] // len(features)))
        normalised = normalised_over_channels(by_degree, None, None, norm.epsilon).flatten(1)
        return norm.nonlinearity(torch.addcmul(norm.shift.to(norms.dtype), normalised, norm.scale.to(norms.dtype)))

    return rescaled(features, normalise)


def rescaled(features: Features, normalise: Callable[[Tensor], Tensor]) -> Features:
    """The features with new norms.

    Args:
        features: ``{d: [N, C, 2d+1]}``, all with the same C.
        normalise: makes of the norms of all degrees side by side [N, D * C], degrees ascending, in at least float32, the new ones.

    Returns:
        ``{d: [N, C, 2d+1]}`` in the dtype of the features.
    """
    keys = sorted(features, key=int)
    wide = [_at_least_float32(features[key]) for key in keys]
    norms = [_clamped_norm(feature) for feature in wide]
    new_norms = normalise(torch.cat(norms, 1).squeeze(-1))[..., None].chunk(len(keys), 1)
    outputs = (feature / length * new for feature, length, new in zip(wide, norms, new_norms, strict=True))
    return {key: output.to(features[key].dtype) for key, output in zip(keys, outputs, strict=True)}


def layer_norm(feature: Tensor, norm: Norm) -> Tensor:
    """Layer normalisation over the norms of one degree: [N, C, 2d+1] to the same."""
    wide = _at_least_float32(feature)
    length = _clamped_norm(wide)
    normalised = normalised_over_channels(length.squeeze(-1), norm.scale, norm.shift, norm.epsilon)
    return (wide / length * norm.nonlinearity(normalised)[..., None]).to(feature.dtype)


def _at_least_float32(feature: Tensor) -> Tensor:
    return feature.float() if feature.dtype in (torch.float16, torch.bfloat16) else feature


def _clamped_norm(feature: Tensor) -> Tensor:
    """Clamped before the root is taken, so that derivatives of every order are finite at zero features, as isolated nodes have."""
    return feature.square().sum(-1, keepdim=True).clamp(min=NORM_CLAMP**2).sqrt()
