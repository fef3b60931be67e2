"""Linear maps of the channels of each degree; no bias, so that they commute with rotations.

    out_d[n, o, m] = sum_c W_d[o, c] x_d[n, c, m]

x_d: the channels of all parts of the input side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from se3_fast.fiber import Features, HeadFeatures, per_head


def linear(weights: Mapping[str, Tensor], parts: Sequence[Features | HeadFeatures], row: Tensor | None = None) -> Features:
    """Apply the maps.

    Args:
        weights: ``{d: [C_out, C_in]}``.
        parts: ``{d: [N, C, 2d+1]}`` each, or per head; the C of all parts that have a degree add up to its C_in.
        row: not read.

    Returns:
        ``{d: [N, C_out, 2d+1]}`` for the degrees of ``weights``.
    """
    by_degree = [part.by_degree() if isinstance(part, HeadFeatures) else part for part in parts]
    return {degree: weight @ _concatenated(degree, by_degree) for degree, weight in weights.items()}


def linear_per_head(weights: Mapping[str, Tensor], features: Features, num_heads: int, row: Tensor | None = None) -> HeadFeatures:
    """As :func:`linear`, with the result laid out per head."""
    channels = tuple((int(degree), len(weight)) for degree, weight in weights.items())
    return HeadFeatures(per_head(linear(weights, [features]), num_heads), channels)


def _concatenated(degree: str, parts: Sequence[Features]) -> Tensor:
    """The channels of a degree, [N, C_in, 2d+1], in the dtype of the first part that has it."""
    tensors = [part[degree] for part in parts if degree in part]
    return tensors[0] if len(tensors) == 1 else torch.cat([tensor.to(tensors[0].dtype) for tensor in tensors], 1)
