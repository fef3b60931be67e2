"""The last radial weights of convolutions as the contraction by edge reads them, those of all layers of a model at once.

Formula: :func:`se3_fast.contraction.aligned_weight`; kernels: ``kernels/aligned_weights.py``. Other backends align weights where
they use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.autograd.operation import LinearOperation, Tensors
from se3_fast.backends.launch_tables import int64_table
from se3_fast.backends.operands import AlignedWeights
from se3_fast.contraction import ConvolutionPlan, RadialGroup, group_alignment
from se3_fast.kernels import aligned_weights as kernels
from se3_fast.kernels.aligned_weights import SLOTS, BlockTable
from se3_fast.kernels.table_rows import WeightBlock


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
        return layout(self.plans, self.shapes[0][1], device)


@dataclass(frozen=True, eq=False)
class _AlignmentGradients(LinearOperation):
    """The gradients of the weights, from those of the aligned weights; what is given of the transposed order is nothing."""

    alignment: _Alignment

    def evaluate(self, operands: Any) -> Tensors:
        """The gradients."""
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


class Launch(NamedTuple):
    """A launch: the tensors that it reads, from the first to one past the last, and what it does."""

    first: int
    stop: int
    table: BlockTable


class Layout(NamedTuple):
    """Where weights and aligned weights of some convolutions stand, and the launches between them.

    Attributes:
        sizes: values of the aligned weights of each convolution; of all its radial groups, one after the other.
        forward: launches that read the weights of all radial groups in a row.
        backward: launches that read the gradients of all convolutions.
    """

    sizes: tuple[int, ...]
    forward: tuple[Launch, ...]
    backward: tuple[Launch, ...]


class _Weight(NamedTuple):
    """The weight of a radial group: which convolution has it, where it begins in that one's row, and in the row of all."""

    group: RadialGroup
    convolution: int
    place: int
    offset: int


class _Block(NamedTuple):
    """A :class:`WeightBlock` with its entries of the map."""

    tensor: int
    group: RadialGroup
    entries: list[tuple[int, float]]
    result: int


@constant
def layout(plans: tuple[ConvolutionPlan, ...], width: int, device: torch.device) -> Layout:
    """The layout of some convolutions; ``width`` is that of h."""
    weights, sizes, offset = [], [], 0
    for convolution, plan in enumerate(plans):
        first = offset
        for group in plan.groups:
            weights.append(_Weight(group, convolution, offset - first, offset))
            offset += _size(group, width)
        sizes.append(offset - first)
    forward = [block for number, weight in enumerate(weights) for block in _forward_blocks(number, weight, width)]
    backward = [block for weight in weights for block in _backward_blocks(weight, width)]
    return Layout(tuple(sizes), _launches(forward, device), _launches(backward, device))


def _size(group: RadialGroup, width: int) -> int:
    return group.num_paths * _row_size(group, width)


def _row_size(group: RadialGroup, width: int) -> int:
    """Values of one aligned weight for all channels and units."""
    return group.channels_in * width * group.channels_out


def _forward_blocks(number: int, weight: _Weight, width: int) -> list[_Block]:
    size = _row_size(weight.group, width)
    blocks = []
    for place, row in enumerate(group_alignment(weight.group).tolist()):
        entries = [(path, value) for path, value in enumerate(row) if value != 0.0]
        blocks.append(_Block(number, weight.group, entries, weight.offset + place * size))
    return blocks


def _backward_blocks(weight: _Weight, width: int) -> list[_Block]:
    size = _row_size(weight.group, width)
    blocks = []
    for path, column in enumerate(group_alignment(weight.group).T.tolist()):
        entries = [(weight.place + place * size, value) for place, value in enumerate(column) if value != 0.0]
        blocks.append(_Block(weight.convolution, weight.group, entries, weight.offset + path * width))
    return blocks


def _launches(blocks: Sequence[_Block], device: torch.device) -> tuple[Launch, ...]:
    """The blocks in launches of up to :data:`SLOTS` tensors."""
    result = []
    for share, chosen in groupby(blocks, key=lambda block: block.tensor // SLOTS):
        part = list(chosen)
        result.append(Launch(share * SLOTS, part[-1].tensor + 1, _table(part, share * SLOTS, device)))
    return tuple(result)


def _table(blocks: Sequence[_Block], first_tensor: int, device: torch.device) -> BlockTable:
    rows: list[WeightBlock] = []
    places: list[int] = []
    coefficients: list[float] = []
    for block in blocks:
        group, first = block.group, len(places)
        places += [place for place, _ in block.entries]
        coefficients += [value for _, value in block.entries]
        rows.append(
            WeightBlock(
                block.tensor - first_tensor,
                group.channels_in,
                group.channels_out,
                group.num_paths,
                first,
                len(places),
                block.result,
            )
        )
    return BlockTable(
        int64_table(rows, WeightBlock, device),
        torch.tensor(places, dtype=torch.int64, device=device),
        torch.tensor(coefficients, dtype=torch.float64, device=device),
        max(block.group.channels_in for block in blocks),
        max(block.group.channels_out for block in blocks),
    )
