"""Maximum or mean over the nodes of each graph.

Formula: :mod:`se3_fast.reference.pooling`. Backends: that module, and ``triton`` (``kernels/pooling.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from se3_fast.ops.backend import selected_backend
from se3_fast.ops.opaque import OpaqueOperation
from se3_fast.ops.second_derivatives import differentiable_gradients
from se3_fast.reference import pooling as reference

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
    return FusedPooling.apply(pool, feature, sizes)


class FusedPooling(torch.autograd.Function):
    """Pooling by one Triton kernel each way; keeps, of a maximum, the nodes that have it."""

    @staticmethod
    def forward(ctx: Any, pool: Pool, feature: Tensor, sizes: Tensor) -> Tensor:
        """[B, C, 2d+1]."""
        from se3_fast.kernels import pooling as kernels

        sizes = sizes.contiguous()
        ends = sizes.cumsum(0)
        output, winners = kernels.forward(feature.flatten(1).contiguous(), sizes, ends, pool == "max")
        ctx.pool = pool
        ctx.save_for_backward(feature, sizes, ends, winners)
        return output.view(len(sizes), *feature.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the features."""
        from se3_fast.kernels import pooling as kernels

        feature, sizes, ends, winners = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            evaluate = partial(_in_pytorch, ctx.pool)
            return None, *differentiable_gradients(evaluate, [feature, sizes], (True, False), [gradient])
        result = kernels.backward(gradient.flatten(1).contiguous(), sizes, ends, winners, len(feature), ctx.pool == "max")
        return None, result.view(feature.shape), None


def _in_pytorch(pool: Pool, operands: Sequence[Tensor]) -> list[Tensor]:
    feature, sizes = operands
    return [reference.maximum(feature, sizes) if pool == "max" else reference.mean(feature, sizes)]


def _opaque_run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    feature, sizes = operands
    return [FusedPooling.apply("max" if description == "max" else "avg", feature, sizes)]


_opaque_pooling = OpaqueOperation(
    "pooling",
    _opaque_run,
    shapes=lambda description, operands: [operands[0].new_empty(operands[1].shape[0], *operands[0].shape[1:])],
)
