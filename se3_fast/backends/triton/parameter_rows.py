"""The parameters of many layers put in a row each, and their gradients taken as sums of parts, for all layers at once.

Formula: :mod:`se3_fast.backends.dense.parameter_rows`; kernels: ``kernels/parameter_rows.py``. On other backends the layers take
their parameters as they are.

A kernel whose programs share nodes or edges leaves the gradient of a layer's parameters in parts, one for each program. A layer
that has its parameters as a row [P, n], n values P times over, returns the parts as that row's gradient; the sums over P follow
here in one launch, instead of one for each layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.autograd.operation import LinearOperation, Tensors
from se3_fast.backends.dense import parameter_rows as formula
from se3_fast.backends.operands import LayerParameters
from se3_fast.kernels import parameter_rows as kernels


def parameter_rows(layers: Sequence[LayerParameters]) -> list[Tensor]:
    """Rows of parameters.

    Args:
        layers: all parameters have the same dtype.

    Returns:
        Of each layer [P, n]: the same values in all P rows, which take no memory.
    """
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    shapes = tuple(tuple(tensor.shape for tensor in layer.tensors) for layer in layers)
    rows = _Rows(shapes, tuple(layer.parts for layer in layers), tensors[0].dtype, tensors[0].device)
    return [row for row in rows.apply(*tensors) if row is not None]


@dataclass(frozen=True, eq=False)
class _Rows(LinearOperation):
    """[P, n] of each layer, from all parameters: a copy.

    Attributes:
        shapes: of the parameters of each layer.
        parts: P of each layer.
        dtype: of all parameters.
        device: of all parameters.
    """

    shapes: tuple[tuple[torch.Size, ...], ...]
    parts: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def evaluate(self, operands: Any) -> Tensors:
        """The rows."""
        return formula.rows(self.without_missing(operands, self.all_shapes), [columns for _, columns in self.sizes], self.parts)

    @property
    def transpose(self) -> _Sums:
        """The sums over the parts."""
        return _Sums(self)

    @property
    def all_shapes(self) -> list[torch.Size]:
        """Of the parameters of all layers."""
        return [shape for of_layer in self.shapes for shape in of_layer]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """[P, n] of each layer."""
        columns = (sum(shape.numel() for shape in of_layer) for of_layer in self.shapes)
        return tuple(zip(self.parts, columns, strict=True))

    def without_missing(self, tensors: Tensors, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """The tensors with zeros for those that are None."""
        return [
            torch.zeros(*shape, dtype=self.dtype, device=self.device) if tensor is None else tensor
            for tensor, shape in zip(tensors, shapes, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class _Sums(LinearOperation):
    """All parameters, from [P, n] of each layer: a launch for every 32 layers."""

    rows: _Rows

    def evaluate(self, operands: Any) -> Tensors:
        """The sums over the parts."""
        sizes, shapes = self.rows.sizes, self.rows.all_shapes
        sums = _summed(self.rows.without_missing(operands, sizes), sizes)
        parts = sums.split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @property
    def transpose(self) -> _Rows:
        """The rows."""
        return self.rows


def _summed(parts: Sequence[Tensor], sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """The sums of all layers in a row, by the kernel."""
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
    return torch.tensor(kernels.block_rows(sizes), dtype=torch.int64, device=device).view(-1, 5)
