"""The last radial weights of convolutions as the fused contraction reads them, those of all layers of a model at once.

Formula: :func:`se3_fast.aligned.tfn_conv.aligned_weight`. Backend ``triton`` (``kernels/aligned_weights.py``); other backends align
weights where they use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.plan import ConvolutionPlan


class AlignedWeights(NamedTuple):
    """The aligned weights of a convolution, in a row for all its radial groups.

    Attributes:
        values: [aligned * C_in * K * C_out], as the contraction reads them; differentiable.
        transposed: the same values in the order [aligned, C_out, K, C_in], for the backward pass; None where there will be none.
    """

    values: Tensor
    transposed: Tensor | None


def aligned_weights(
    plans: Sequence[ConvolutionPlan], weights: Sequence[Sequence[Tensor]], dtype: torch.dtype
) -> list[AlignedWeights]:
    """Align the weights of some convolutions.

    Args:
        plans: what each of them couples.
        weights: of each the last radial weights of its groups, [C_out * C_in * F, K] in the published row order.
        dtype: of the results.
    """
    tensors = [weight for of_one in weights for weight in of_one]
    with_transposed = torch.is_grad_enabled()
    results = _Alignment.apply(tuple(plans), dtype, with_transposed, *tensors)
    if not with_transposed:
        return [AlignedWeights(values, None) for values in results]
    return [AlignedWeights(*both) for both in zip(results[: len(plans)], results[len(plans) :], strict=True)]


class _Alignment(torch.autograd.Function):
    """All maps by one launch each way, or a few where there are many radial groups."""

    @staticmethod
    def forward(
        ctx: Any, plans: tuple[ConvolutionPlan, ...], dtype: torch.dtype, with_transposed: bool, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """The aligned weights of each convolution, then, if they are wanted, the transposed ones."""
        from se3_fast.fused.aligned_weights import layout
        from se3_fast.kernels import aligned_weights as kernels

        width = weights[0].shape[1]
        ctx.layout, ctx.width = layout(plans, width, weights[0].device), width
        ctx.shapes, ctx.dtypes = [weight.shape for weight in weights], [weight.dtype for weight in weights]
        sizes = ctx.layout.sizes
        orders = [weights[0].new_empty(sum(sizes), dtype=dtype) for _ in range(2 if with_transposed else 1)]
        contiguous = [weight.contiguous() for weight in weights]
        for first, stop, table in ctx.layout.forward:
            kernels.forward(contiguous[first:stop], table, orders[0], orders[1] if with_transposed else None)
        parts = [part for order in orders for part in order.split(sizes)]
        ctx.mark_non_differentiable(*parts[len(plans) :])
        ctx.set_materialize_grads(False)
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the weights."""
        from se3_fast.kernels import aligned_weights as kernels

        sizes = ctx.layout.sizes
        example = next((gradient for gradient in gradients if gradient is not None), None)
        if example is None:
            return None, None, None, *[None] * len(ctx.shapes)
        given = [
            example.new_zeros(size) if gradient is None else gradient.contiguous()
            for gradient, size in zip(gradients, sizes, strict=False)  # those of the transposed order follow
        ]
        result = example.new_empty(sum(sizes), dtype=ctx.dtypes[0])
        for first, stop, table in ctx.layout.backward:
            kernels.backward(given[first:stop], table, ctx.width, result)
        ends = list(accumulate(shape.numel() for shape in ctx.shapes))
        parts = result.tensor_split(ends[:-1])
        return None, None, None, *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))
