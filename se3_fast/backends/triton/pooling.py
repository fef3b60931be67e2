"""Maximum or mean over the nodes of each graph by the Triton kernels (``kernels/pooling.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends import compiled
from se3_fast.backends.dense import pooling as formula
from se3_fast.kernels import pooling as kernels

Pool = Literal["max", "avg"]


def pooling(feature: Tensor, sizes: Tensor, pool: Pool) -> Tensor:
    """[N, C, 2d+1] to [B, C, 2d+1]; ``sizes`` [B] are the nodes of each graph."""
    if torch.compiler.is_compiling():
        return compiled.pooling(pool, [feature, sizes])[0]
    return FusedPooling(pool).apply(feature, sizes)[0]


def run_node(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The node of compiled graphs."""
    return list(FusedPooling("max" if description == "max" else "avg").apply(*operands))


@dataclass(frozen=True, eq=False)
class FusedPooling(Operation):
    """Pooling by one Triton kernel each way; keeps, of a maximum, the nodes that have it.

    Operands: features [N, C, 2d+1], sizes [B]. Result: [B, C, 2d+1].
    """

    num_kept: ClassVar[int] = 2

    pool: Pool

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The result; the end of each graph, and the nodes that have the maximum."""
        feature, sizes = operands
        sizes = sizes.contiguous()
        ends = sizes.cumsum(0)
        output, winners = kernels.forward(feature.flatten(1).contiguous(), sizes, ends, self.pool == "max")
        return output.view(len(sizes), *feature.shape[1:]), ends, winners

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """The gradient of the features."""
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
    return [formula.pooling(feature, sizes, pool)]
