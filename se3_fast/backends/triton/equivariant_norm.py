"""Norm-based nonlinearity by the Triton kernels (``kernels/equivariant_norm.py``), where the nonlinearity is ReLU.

Results have the dtype of the features under autocast too; half precision is computed with in float32.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends import compiled
from se3_fast.backends.dense import equivariant_norm as formula
from se3_fast.backends.operands import Norm
from se3_fast.backends.protocol import Support
from se3_fast.fiber import Features
from se3_fast.kernels import equivariant_norm as kernels


def support(is_compiled: bool, nonlinearity: Hashable) -> Support:
    """ReLU only."""
    return Support() if nonlinearity is nn.ReLU else Support.no(f"the kernel knows ReLU only, not {nonlinearity}")


def group_norm(features: Features, norm: Norm, row: Tensor | None) -> Features:
    """See :func:`se3_fast.ops.equivariant_norm.group_norm`."""
    keys = sorted(features, key=int)
    parameters = [norm.scale, norm.shift] if row is None else [row]
    operands = [*parameters, *(features[key] for key in keys)]
    return dict(zip(keys, _fused(norm.epsilon, row is not None, operands), strict=True))


def layer_norm(feature: Tensor, norm: Norm) -> Tensor:
    """See :func:`se3_fast.ops.equivariant_norm.layer_norm`."""
    (output,) = _fused(norm.epsilon, False, [norm.scale, norm.shift, feature])
    return output


def run_node(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The node of compiled graphs."""
    return list(FusedNorm(float(operands[0]), False).apply(*operands[1:]))


def _fused(epsilon: float, has_row: bool, operands: list[Tensor]) -> Sequence[Tensor]:
    if torch.compiler.is_compiling():
        return compiled.equivariant_norm("", [torch.full((), epsilon, dtype=torch.float64), *operands])
    return FusedNorm(epsilon, has_row).apply(*operands)


@dataclass(frozen=True, eq=False)
class FusedNorm(Operation):
    """Norms, normalisation, ReLU and rescaling of all degrees by one Triton kernel each way; keeps its inputs only.

    Operands: scale and shift, or the row of both [P, 2 D C]; then the features by degree. Results: the features rescaled, degrees
    ascending.

    Attributes:
        epsilon: added to the variance.
        has_row: whether the parameters come in a row.
    """

    takes_missing: ClassVar[bool] = True

    epsilon: float
    has_row: bool

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results."""
        scale, shift, features = _parted(self.has_row, operands)
        return kernels.forward([feature.contiguous() for feature in features], scale, shift, self.epsilon)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the parameters and the features."""
        scale, shift, features = _parted(self.has_row, operands)
        given = [torch.zeros_like(x) if of_x is None else of_x.contiguous() for x, of_x in zip(features, gradients, strict=True)]
        values = [feature.contiguous() for feature in features]
        programs = len(operands[0]) if self.has_row else None
        results, sums = kernels.backward(values, given, scale, shift, self.epsilon, programs)
        of_parameters = [sums.flatten(1)] if self.has_row else list(sums.sum(0).to(scale.dtype))
        return *of_parameters, *results

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(self._in_pytorch)

    def _in_pytorch(self, operands: Any) -> list[Tensor]:
        scale, shift, features = _parted(self.has_row, operands)
        by_degree = {str(degree): feature for degree, feature in enumerate(features)}
        return list(formula.group_norm(by_degree, Norm(scale, shift, self.epsilon, torch.relu)).values())


def _parted(has_row: bool, operands: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """Scale, shift and the features."""
    if not has_row:
        return operands[0].contiguous(), operands[1].contiguous(), operands[2:]
    scale, shift = operands[0][0].chunk(2)
    return scale, shift, operands[1:]
