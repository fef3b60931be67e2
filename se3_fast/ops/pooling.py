"""Maximum or mean over the nodes of each graph.

Formula: :mod:`se3_fast.backends.dense.pooling`. Backends: that module, and ``triton`` (``kernels/pooling.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from se3_fast.autograd.opaque import OpaqueOperation
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.choice import selected_backend
from se3_fast.backends.dense import pooling as reference

Pool = Literal["max", "avg"]


def pooling(feature: Tensor, sizes: Tensor, pool: Pool) -> Tensor:
    """Pool the nodes of each graph, which stand one after the other.

    Args:
        feature: [N, C, 2d+1].
        sizes: [B] int64, nodes of each graph; they add up to N.
        pool: ``max`` (among tied nodes the first has the gradient) or ``avg``.

    Returns:
        [B, C, 2d+1] in the dtype of ``feature``; 0 for a graph without nodes.
    """
    if selected_backend(feature.device) != "triton":
        return _in_pytorch(pool, [feature, sizes])[0]
    if torch.compiler.is_compiling():
        return _opaque_pooling(pool, [feature, sizes])[0]
    return FusedPooling(pool).apply(feature, sizes)[0]


@dataclass(frozen=True, eq=False)
class FusedPooling(Operation):
    """Pooling by one Triton kernel each way; keeps, of a maximum, the nodes that have it.

    Operands: features [N, C, 2d+1], sizes [B]. Result: [B, C, 2d+1].
    """

    num_kept: ClassVar[int] = 2

    pool: Pool

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The result; the end of each graph, and the nodes that have the maximum."""
        from se3_fast.kernels import pooling as kernels

        feature, sizes = operands
        sizes = sizes.contiguous()
        ends = sizes.cumsum(0)
        output, winners = kernels.forward(feature.flatten(1).contiguous(), sizes, ends, self.pool == "max")
        return output.view(len(sizes), *feature.shape[1:]), ends, winners

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """The gradient of the features."""
        from se3_fast.kernels import pooling as kernels

        feature, sizes = operands
        given = gradients[0].flatten(1).contiguous()
        ends, winners = kept
        result = kernels.backward(given, sizes.contiguous(), ends, winners, len(feature), self.pool == "max")
        return result.view(feature.shape), None

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(partial(_in_pytorch, self.pool))


def _in_pytorch(pool: Pool, operands: Sequence[Tensor]) -> list[Tensor]:
    feature, sizes = operands
    return [reference.maximum(feature, sizes) if pool == "max" else reference.mean(feature, sizes)]


def _opaque_run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    feature, sizes = operands
    return list(FusedPooling("max" if description == "max" else "avg").apply(feature, sizes))


_opaque_pooling = OpaqueOperation(
    "pooling",
    _opaque_run,
    shapes=lambda description, operands: [operands[0].new_empty(operands[1].shape[0], *operands[0].shape[1:])],
)
