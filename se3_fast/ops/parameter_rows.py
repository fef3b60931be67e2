"""The parameters of many layers put in a row each, and their gradients taken as sums of parts, for all layers at once.

Formula: :mod:`se3_fast.reference.parameter_rows`. Backend ``triton`` (``kernels/parameter_rows.py``); on others the layers take
their parameters as they are.

A kernel whose programs share nodes or edges leaves the gradient of a layer's parameters in parts, one for each program. A layer
that has its parameters as a row [P, n], n values P times over, returns the parts as that row's gradient; the sums over P follow
here in one launch, instead of one for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from se3_fast.modes import constant
from se3_fast.reference import parameter_rows as reference


def gradient_parts(most: int, device: torch.device) -> int:
    """How many programs share nodes or edges: as many as fill a large GPU, whatever there is to share, so that tables depend on the
    model alone and are there before anything is recorded; on the CPU few, as Triton's interpreter runs one after the other."""
    return most if device.type == "cuda" else min(most, 2)


class LayerParameters(NamedTuple):
    """The parameters of a layer.

    Attributes:
        tensors: in the order of the row.
        parts: P, how many parts their gradient comes in.
    """

    tensors: Sequence[Tensor]
    parts: int


def parameter_rows(layers: Sequence[LayerParameters]) -> list[Tensor]:
    """Rows of parameters.

    Args:
        layers: all parameters have the same dtype.

    Returns:
        Of each layer [P, n]: the same values in all P rows, which take no memory.
    """
    sizes = tuple(tuple(tensor.numel() for tensor in layer.tensors) for layer in layers)
    parts = tuple(layer.parts for layer in layers)
    return list(_Rows.apply(sizes, parts, *(tensor for layer in layers for tensor in layer.tensors)))


class _Rows(torch.autograd.Function):
    """A copy forward and a launch for every 32 layers backward."""

    @staticmethod
    def forward(ctx: Any, sizes: tuple[tuple[int, ...], ...], parts: tuple[int, ...], *parameters: Tensor) -> tuple[Tensor, ...]:
        """[P, n] of each layer."""
        ctx.sizes = tuple((count, sum(of_layer)) for count, of_layer in zip(parts, sizes, strict=True))
        ctx.shapes = [parameter.shape for parameter in parameters]
        ctx.set_materialize_grads(False)
        return tuple(reference.rows(parameters, [sum(of_layer) for of_layer in sizes], parts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the parameters."""
        example = next((gradient for gradient in gradients if gradient is not None), None)
        if example is None:
            return None, None, *[None] * len(ctx.shapes)
        given = [
            example.new_zeros(size) if gradient is None else gradient for gradient, size in zip(gradients, ctx.sizes, strict=True)
        ]
        sums = reference.sums(given) if torch.is_grad_enabled() else _summed(given, ctx.sizes)
        found = sums.split([shape.numel() for shape in ctx.shapes])
        return None, None, *(part.view(shape) for part, shape in zip(found, ctx.shapes, strict=True))


def _summed(parts: Sequence[Tensor], sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """The sums of all layers in a row, by the kernel."""
    from se3_fast.kernels import parameter_rows as kernels

    result = parts[0].new_empty(sum(num_columns for _, num_columns in sizes))
    first = 0
    for chosen in _batches(len(parts), kernels.SLOTS):
        of_launch = sizes[chosen]
        stop = first + sum(num_columns for _, num_columns in of_launch)
        tensors = [tensor.contiguous() for tensor in parts[chosen]]
        kernels.sum_parts(tensors, _blocks(of_launch, result.device), result[first:stop])
        first = stop
    return result


def _batches(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@constant
def _blocks(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    from se3_fast.kernels.parameter_rows import block_rows

    return torch.tensor(block_rows(sizes), dtype=torch.int64, device=device).view(-1, 5)
