"""The last radial weights of convolutions as the fused contraction reads them, those of all layers of a model at once.

Formula: :func:`se3_fast.backends.torch.tfn_conv.aligned_weight`. Backend ``triton`` (``kernels/aligned_weights.py``); other
backends align weights where they use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.operation import LinearOperation, Tensors
from se3_fast.contraction import ConvolutionPlan

if TYPE_CHECKING:
    from se3_fast.backends.triton.aligned_weights import Layout


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
    alignment = _Alignment(tuple(plans), dtype, with_transposed, tuple(weight.shape for weight in tensors), tensors[0].dtype)
    results = [values for values in alignment.apply(*tensors) if values is not None]
    if not with_transposed:
        return [AlignedWeights(values, None) for values in results]
    pairs = zip(results[: len(plans)], results[len(plans) :], strict=True)
    return [AlignedWeights(values, transposed.detach()) for values, transposed in pairs]


@dataclass(frozen=True, eq=False)
class _Alignment(LinearOperation):
    """The aligned weights of each convolution, from the weights of all; then, if they are wanted, the transposed ones, which nobody
    differentiates. One launch, or a few where there are many radial groups.

    Attributes:
        plans: of the convolutions.
        dtype: of the results.
        with_transposed: whether the transposed ones are wanted.
        shapes: of the weights.
        weight_dtype: of the weights.
    """

    plans: tuple[ConvolutionPlan, ...]
    dtype: torch.dtype
    with_transposed: bool
    shapes: tuple[torch.Size, ...]
    weight_dtype: torch.dtype

    def evaluate(self, operands: Any) -> Tensors:
        """The aligned weights."""
        from se3_fast.kernels import aligned_weights as kernels

        example = next(weight for weight in operands if weight is not None)
        layout = self.layout(example.device)
        contiguous = [
            example.new_zeros(shape) if weight is None else weight.contiguous()
            for weight, shape in zip(operands, self.shapes, strict=True)
        ]
        orders = [example.new_empty(sum(layout.sizes), dtype=self.dtype) for _ in range(2 if self.with_transposed else 1)]
        for first, stop, table in layout.forward:
            kernels.forward(contiguous[first:stop], table, orders[0], orders[1] if self.with_transposed else None)
        return [part for order in orders for part in order.split(layout.sizes)]

    @property
    def transpose(self) -> _AlignmentGradients:
        """From the gradients of the aligned weights to those of the weights."""
        return _AlignmentGradients(self)

    def layout(self, device: torch.device) -> Layout:
        """Where all stand."""
        from se3_fast.backends.triton.aligned_weights import layout

        return layout(self.plans, self.shapes[0][1], device)


@dataclass(frozen=True, eq=False)
class _AlignmentGradients(LinearOperation):
    """The gradients of the weights, from those of the aligned weights; what is given of the transposed order is nothing."""

    alignment: _Alignment

    def evaluate(self, operands: Any) -> Tensors:
        """The gradients."""
        from se3_fast.kernels import aligned_weights as kernels

        shapes = self.alignment.shapes
        example = next(gradient for gradient in operands if gradient is not None)
        layout = self.alignment.layout(example.device)
        given = [
            example.new_zeros(size) if gradient is None else gradient.contiguous()
            for gradient, size in zip(operands, layout.sizes, strict=False)  # those of the transposed order follow
        ]
        result = example.new_empty(sum(layout.sizes), dtype=self.alignment.weight_dtype)
        for first, stop, table in layout.backward:
            kernels.backward(given[first:stop], table, shapes[0][1], result)
        ends = list(accumulate(shape.numel() for shape in shapes))
        return [part.view(shape) for part, shape in zip(result.tensor_split(ends[:-1]), shapes, strict=True)]

    @property
    def transpose(self) -> _Alignment:
        """The alignment."""
        return self.alignment
