"""The tables of the launches that map last radial weights to the aligned frames (``kernels/aligned_weights.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from se3_fast.autograd.modes import constant
from se3_fast.backends.launch_tables import int64_table
from se3_fast.contraction import ConvolutionPlan, RadialGroup, group_alignment
from se3_fast.kernels.aligned_weights import SLOTS, BlockTable
from se3_fast.kernels.table_rows import WeightBlock


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
