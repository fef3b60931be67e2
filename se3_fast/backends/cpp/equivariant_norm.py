"""Norm-based nonlinearity by the compiled CPU operation (``csrc/equivariant_norm.cpp``), where the nonlinearity is ReLU.

Results have the dtype of the features under autocast too; half precision is computed with in float32.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.autograd.compute_dtype import accumulation_dtype, in_at_least_float32, in_dtype
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.cpp.stored_dtype import stored_dtype
from se3_fast.backends.dense import equivariant_norm as formula
from se3_fast.backends.operands import Norm
from se3_fast.backends.protocol import Support
from se3_fast.fiber import Features


def support(is_compiled: bool, nonlinearity: Hashable) -> Support:
    """ReLU only, and not in compiled graphs, which the formula serves as well."""
    if is_compiled:
        return Support.no("compiled graphs take the formula")
    return Support() if nonlinearity is nn.ReLU else Support.no(f"the operation knows ReLU only, not {nonlinearity}")


def group_norm(features: Features, norm: Norm, row: Tensor | None) -> Features:
    """See :func:`se3_fast.ops.equivariant_norm.group_norm`."""
    keys = sorted(features, key=int)
    return dict(zip(keys, _normalised([features[key] for key in keys], norm), strict=True))


def layer_norm(feature: Tensor, norm: Norm) -> Tensor:
    """See :func:`se3_fast.ops.equivariant_norm.layer_norm`."""
    (result,) = _normalised([feature], norm)
    return result


def _normalised(features: Sequence[Tensor], norm: Norm) -> list[Tensor]:
    computed_in = max((accumulation_dtype(feature.dtype) for feature in features), key=lambda dtype: dtype.itemsize)
    dtypes = {stored_dtype(feature.dtype) for feature in features}
    stored_in = dtypes.pop() if len(dtypes) == 1 else computed_in
    parameters = (in_dtype(parameter, computed_in).contiguous() for parameter in (norm.scale, norm.shift))
    results = CppNorm(norm.epsilon).apply(*parameters, *(in_dtype(feature, stored_in).contiguous() for feature in features))
    return [in_dtype(result, feature.dtype) for result, feature in zip(results, features, strict=True)]


@dataclass(frozen=True, eq=False)
class CppNorm(Operation):
    """Norms, normalisation, ReLU and rescaling of all degrees by the compiled CPU operation; keeps its operands only.

    Operands: scale and shift, then the features by degree. Results: the features rescaled.

    Attributes:
        epsilon: added to the variance.
    """

    epsilon: float

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results."""
        scale, shift, *features = operands
        return torch.ops.se3_fast_cpp.equivariant_norm(features, scale, shift, self.epsilon)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the parameters and the features."""
        scale, shift, *features = operands
        given = [gradient.contiguous() for gradient in gradients]
        *of_features, of_scale, of_shift = torch.ops.se3_fast_cpp.equivariant_norm_backward(
            given, features, scale, shift, self.epsilon
        )
        return of_scale, of_shift, *of_features

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(self._in_pytorch))

    def _in_pytorch(self, operands: Any) -> list[Tensor]:
        scale, shift, *features = operands
        by_degree = {str(degree): feature for degree, feature in enumerate(features)}
        return list(formula.group_norm(by_degree, Norm(scale, shift, self.epsilon, torch.relu)).values())
