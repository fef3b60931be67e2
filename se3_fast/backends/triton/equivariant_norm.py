"""Norm-based nonlinearity by the Triton kernels (``kernels/equivariant_norm.py``), where the nonlinearity is ReLU.

Results have the dtype of the features under autocast too; half precision is computed with in float32.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends import compiled
from se3_fast.backends.dense import equivariant_norm as formula
from se3_fast.backends.operands import Norm
from se3_fast.backends.protocol import Support
from se3_fast.backends.triton.shared_features import SharedFeatures
from se3_fast.fiber import Features
from se3_fast.kernels import equivariant_norm as kernels

READERS = 3
"""Operations of the next layer that read the result: queries, messages and projection."""


def support(is_compiled: bool, nonlinearity: Hashable) -> Support:
    """ReLU only."""
    return Support() if nonlinearity is nn.ReLU else Support.no(f"the kernel knows ReLU only, not {nonlinearity}")


def group_norm(features: Features, norm: Norm, row: Tensor | None) -> Features:
    """See :func:`se3_fast.ops.equivariant_norm.group_norm`; where gradients are followed, as :class:`SharedFeatures`."""
    keys = sorted(features, key=int)
    parameters = [norm.scale, norm.shift] if row is None else [row]
    operands = [*parameters, *(features[key] for key in keys)]
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return dict(zip(keys, _fused(norm.epsilon, row is not None, 1, operands), strict=True))
    outputs = _fused(norm.epsilon, row is not None, READERS, operands)
    return SharedFeatures([dict(zip(keys, outputs[start::READERS], strict=True)) for start in range(READERS)])


def layer_norm(feature: Tensor, norm: Norm) -> Tensor:
    """See :func:`se3_fast.ops.equivariant_norm.layer_norm`."""
    (output,) = _fused(norm.epsilon, False, 1, [norm.scale, norm.shift, feature])
    return output


def run_node(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The node of compiled graphs."""
    return list(FusedNorm(float(operands[0]), False, 1).apply(*operands[1:]))


def _fused(epsilon: float, has_row: bool, readers: int, operands: list[Tensor]) -> Sequence[Tensor]:
    if torch.compiler.is_compiling():
        return compiled.equivariant_norm("", [torch.full((), epsilon, dtype=torch.float64), *operands])
    return FusedNorm(epsilon, has_row, readers).apply(*operands)


@dataclass(frozen=True, eq=False)
class FusedNorm(Operation):
    """Norms, normalisation, ReLU and rescaling of all degrees by one Triton kernel each way; keeps its inputs only.

    Operands: scale and shift, or the row of both [P, 2 D C]; then the features by degree. Results: the features rescaled, degrees
    ascending, each once for every reader.

    Attributes:
        epsilon: added to the variance.
        has_row: whether the parameters come in a row.
        readers: how many operations read the result; their gradients are added up in the backward kernel.
    """

    takes_missing: ClassVar[bool] = True

    epsilon: float
    has_row: bool
    readers: int

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results."""
        scale, shift, features = _parted(self.has_row, operands)
        outputs = kernels.forward([feature.contiguous() for feature in features], scale, shift, self.epsilon)
        return self._for_readers(outputs)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the parameters and the features."""
        scale, shift, features = _parted(self.has_row, operands)
        by_degree = _gradients_of_readers(gradients, features, self.readers)
        contiguous = [[gradient.contiguous() for gradient in of_degree] for of_degree in by_degree]
        values = [feature.contiguous() for feature in features]
        programs = len(operands[0]) if self.has_row else None
        results, sums = kernels.backward(values, contiguous, scale, shift, self.epsilon, programs)
        of_parameters = [sums.flatten(1)] if self.has_row else list(sums.sum(0).to(scale.dtype))
        return *of_parameters, *results

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(self._in_pytorch)

    def _in_pytorch(self, operands: Any) -> list[Tensor]:
        scale, shift, features = _parted(self.has_row, operands)
        by_degree = {str(degree): feature for degree, feature in enumerate(features)}
        return self._for_readers(formula.group_norm(by_degree, Norm(scale, shift, self.epsilon, torch.relu)).values())

    def _for_readers(self, outputs: Iterable[Tensor]) -> list[Tensor]:
        """Each once for every reader; they share their memory."""
        return [output if reader == 0 else output.view_as(output) for output in outputs for reader in range(self.readers)]


def _parted(has_row: bool, operands: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """Scale, shift and the features."""
    if not has_row:
        return operands[0].contiguous(), operands[1].contiguous(), operands[2:]
    scale, shift = operands[0][0].chunk(2)
    return scale, shift, operands[1:]


def _gradients_of_readers(gradients: Sequence[Tensor | None], features: Sequence[Tensor], readers: int) -> list[list[Tensor]]:
    """Of each degree the gradients that its readers have; zeros for a degree that none has read."""
    by_degree = [
        [gradient for gradient in gradients[start : start + readers] if gradient is not None]
        for start in range(0, len(gradients), readers)
    ]
    return [found or [torch.zeros_like(feature)] for found, feature in zip(by_degree, features, strict=True)]
