"""Norm-based nonlinearity. Formula: :mod:`se3_fast.backends.dense.equivariant_norm`.

Results have the dtype of the features under autocast too; half precision is computed with in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype
from se3_fast.backends.choice import implementation
from se3_fast.backends.dense import equivariant_norm as formula
from se3_fast.backends.operands import Norm
from se3_fast.fiber import Features

__all__ = ["Norm", "group_norm", "layer_norm", "norm_by_formula"]


def group_norm(features: Features, norm: Norm, row: Tensor | None = None) -> Features:
    """Group normalisation over the fused norms, one group per degree.

    Args:
        features: ``{d: [N, C, 2d+1]}``, all with the same C.
        norm: how.
        row: ``scale`` and ``shift`` in a row, [P, 2 D C], if their gradient is to come in parts.

    Returns:
        ``{d: [N, C, 2d+1]}``.

    Raises:
        ValueError: if a dtype is none that is computed with.
    """
    _check_dtypes(features)
    return _implementation(norm).group_norm(features, norm, row)


def layer_norm(feature: Tensor, norm: Norm) -> Tensor:
    """Layer normalisation over the norms of one degree: [N, C, 2d+1] to the same.

    Raises:
        ValueError: if the dtype is none that is computed with.
    """
    check_dtype("feature", feature)
    return _implementation(norm).layer_norm(feature, norm)


def norm_by_formula(features: Features, normalise: Callable[[Tensor], Tensor]) -> Features:
    """The features with new norms, which a function of the caller makes: on all backends as ``dense``.

    Args:
        features: ``{d: [N, C, 2d+1]}``, all with the same C.
        normalise: see :func:`se3_fast.backends.dense.equivariant_norm.rescaled`.

    Raises:
        ValueError: if a dtype is none that is computed with.
    """
    _check_dtypes(features)
    return formula.rescaled(features, normalise)


def _check_dtypes(features: Features) -> None:
    for degree, feature in features.items():
        check_dtype(f"features['{degree}']", feature)


def _implementation(norm: Norm) -> Any:
    return implementation("equivariant_norm", norm.scale.device, type(norm.nonlinearity))  # type: ignore[arg-type]
