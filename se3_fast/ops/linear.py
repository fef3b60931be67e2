"""Linear maps of the channels of each degree.

Formula: :mod:`se3_fast.backends.dense.linear`. Under autocast the result has the dtype that a matrix product of PyTorch has.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype
from se3_fast.backends.choice import implementation
from se3_fast.fiber import Features, HeadFeatures

__all__ = ["HeadFeatures", "linear", "linear_per_head"]


def linear(weights: Mapping[str, Tensor], *parts: Features | HeadFeatures, row: Tensor | None = None) -> Features:
    """Apply a linear map to the channels of every degree.

    Args:
        weights: ``{d: [C_out, C_in]}``, degrees ascending.
        *parts: one or more parts of the input, each ``{d: [N, C, 2d+1]}`` or per head with the degrees of ``weights``; the C of
            the parts that have a degree add up to its C_in. Degrees that ``weights`` lacks are ignored.
        row: the weights of all degrees in a row, [P, n], if their gradient is to come in parts (backend ``triton``).

    Returns:
        ``{d: [N, C_out, 2d+1]}`` for the degrees of ``weights``.

    Raises:
        ValueError: if shapes or dtypes do not fit each other.
    """
    if not weights:
        return {}
    _check_dtypes(weights, "weights")
    for index, part in enumerate(parts):
        _check_dtypes(part, f"parts[{index}]")
    device = next(iter(weights.values())).device
    return implementation("linear", device).linear(weights, parts, row)


def linear_per_head(weights: Mapping[str, Tensor], features: Features, num_heads: int, row: Tensor | None = None) -> HeadFeatures:
    """As :func:`linear`, with the result laid out per head.

    Args:
        weights: ``{d: [C_out, C_in]}``, degrees ascending.
        features: ``{d: [N, C_in, 2d+1]}``.
        num_heads: H; divides every C_out.
        row: as for :func:`linear`.

    Raises:
        ValueError: if shapes or dtypes do not fit each other.
    """
    _check_dtypes(weights, "weights")
    _check_dtypes(features, "features")
    device = next(iter(weights.values())).device
    return implementation("linear", device).linear_per_head(weights, features, num_heads, row)


def _check_dtypes(tensors: Mapping[str, Tensor] | HeadFeatures, name: str) -> None:
    if isinstance(tensors, HeadFeatures):
        tensors = {"values": tensors.values}
    for key, tensor in tensors.items():
        check_dtype(f"{name}['{key}']", tensor)
