"""Rotations of features into the edges' frames and out of them, all degrees at once (DESIGN 1.1).

    align       gathers and rotates into the frames:  nodes [N, C, 2d+1] -> x~ = D^T x[src]
    rotate      out of the frames, per edge:  y~ -> D y~
    rotate_sum  the same, summed over the edges of each node in a fixed order

A program turns a tile of edges and channels of one degree, a component at a time (``turned_in``, ``turned_out``): no Wigner block
is formed.

Aligned features are [rows, E] with row = (degree, component, channel), and may lie in memory either way: with the edges of a row
side by side, as the contraction reads them, or the rows of an edge, as sums over the edges of a node do, which lie anywhere.

Cost per edge, channel and degree: 2 products with J, of which a quarter is not zero, and 2 turns by pairs, (2d+1)^2 + 12 d FLOP in
all; 2 (2d+1) values read and written: bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .edge_frames import SWAPS_TO_DEGREE_3, load_frames, turned_in, turned_out
from .launching import launch
from .precision import DTYPES, ROUNDINGS, TYPES, power_of_two_below, sum_dtype
from .resources import ArgumentType, CompileCase, signature


class DegreeBlock(NamedTuple):
    """Features of one degree and where they stand in aligned ones.

    Attributes:
        degree: d.
        features: [.., C, 2d+1].
        row: row of the first component's first channel.
        row_stride: rows from one component to the next.
    """

    degree: int
    features: Tensor
    row: int
    row_stride: int


@triton.jit
def _channels_of_program(channels, AXIS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    channel = tl.program_id(AXIS) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return channel[None], (channel < channels)[None]


@triton.jit
def _load(values, is_value, step, DEGREE: tl.constexpr, DTYPE: tl.constexpr):
    """The components of a tile, ``step`` values apart."""
    components = ()
    for i in tl.static_range(2 * DEGREE + 1):
        components += (tl.load(values + i * step, mask=is_value, other=0.0).to(DTYPE),)
    return components


@triton.jit
def _store(values, components, is_value, step, DEGREE: tl.constexpr):
    for i in tl.static_range(2 * DEGREE + 1):
        tl.store(values + i * step, components[i].to(values.dtype.element_ty), mask=is_value)


@triton.jit
def _align_degree(
    features, index, angles, aligned, num_edges, pitch, channels, row, row_stride,
    HAS_INDEX: tl.constexpr, DEGREE: tl.constexpr, SWAPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_edge = edge < num_edges
    channel, is_channel = _channels_of_program(channels, 2, BLOCK_CHANNELS)
    is_value = is_edge[:, None] & is_channel
    frames = load_frames(angles, edge, is_edge, num_edges)
    source = tl.load(index + edge, mask=is_edge, other=0) if HAS_INDEX else edge
    place = (source[:, None] * channels + channel) * (2 * DEGREE + 1)
    x = _load(features + place, is_value, 1, DEGREE, frames[0].dtype)
    target = aligned + (row + channel).to(tl.int64) * pitch + edge[:, None]
    is_value = (edge < pitch)[:, None] & is_channel  # past the last edge all is zero
    _store(target, turned_in(x, frames, SWAPS, DEGREE), is_value, tl.cast(row_stride, tl.int64) * pitch, DEGREE)


@triton.jit(do_not_specialize=["num_edges"])
def _align_kernel(
    features, index, angles, aligned, num_edges, pitch, channels, rows, row_strides,
    HAS_INDEX: tl.constexpr, DEGREES: tl.constexpr, SWAPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(1)
    for n in tl.static_range(len(DEGREES)):
        if number == n:
            _align_degree(
                features[n], index, angles, aligned, num_edges, pitch, channels[n], rows[n], row_strides[n],
                HAS_INDEX, DEGREES[n], SWAPS, BLOCK, BLOCK_CHANNELS,
            )  # fmt: skip


@triton.jit(do_not_specialize=["num_edges"])
def _rotate_kernel(
    aligned, index, angles, output, num_edges, row_step, edge_step, channels, row, row_stride,
    HAS_INDEX: tl.constexpr, DEGREE: tl.constexpr, SWAPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_edge = edge < num_edges
    channel, is_channel = _channels_of_program(channels, 1, BLOCK_CHANNELS)
    is_value = is_edge[:, None] & is_channel
    frames = load_frames(angles, edge, is_edge, num_edges)
    place = (row + channel).to(tl.int64) * row_step + edge[:, None] * edge_step
    x = _load(aligned + place, is_value, tl.cast(row_stride, tl.int64) * row_step, DEGREE, frames[0].dtype)
    target = tl.load(index + edge, mask=is_edge, other=0) if HAS_INDEX else edge
    place = (target[:, None] * channels + channel) * (2 * DEGREE + 1)
    _store(output + place, turned_out(x, frames, SWAPS, DEGREE), is_value, 1, DEGREE)


@triton.jit
def _sum_tuples(left, right):
    result = ()
    for i in tl.static_range(len(left)):
        result += (left[i] + right[i],)
    return result


@triton.jit
def _rotate_sum_degree(
    output, aligned, angles, order, offsets, num_edges, row_step, edge_step, channels, row, row_stride,
    DEGREE: tl.constexpr, SWAPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    channel, is_channel = _channels_of_program(channels, 1, BLOCK_CHANNELS)
    start, stop = tl.load(offsets + node), tl.load(offsets + node + 1)
    sums = ()
    for _ in tl.static_range(2 * DEGREE + 1):
        sums += (tl.zeros((BLOCK, BLOCK_CHANNELS), SUM),)
    for first in range(start, stop, BLOCK):
        place = first + tl.arange(0, BLOCK)
        is_edge = place < stop
        edge = tl.load(order + place, mask=is_edge, other=0)
        frames = load_frames(angles, edge, is_edge, num_edges)
        values = aligned + (row + channel).to(tl.int64) * row_step + edge[:, None] * edge_step
        x = _load(values, is_edge[:, None] & is_channel, tl.cast(row_stride, tl.int64) * row_step, DEGREE, SUM)
        sums = _sum_tuples(sums, turned_out(x, frames, SWAPS, DEGREE))
    target = output + (node * channels + channel) * (2 * DEGREE + 1)
    for i in tl.static_range(2 * DEGREE + 1):
        tl.store(target + i, tl.sum(sums[i], 0)[None].to(output.dtype.element_ty), mask=is_channel)


@triton.jit(do_not_specialize=["num_edges"])
def _rotate_sum_kernel(
    outputs, aligned, angles, order, offsets, num_edges, row_step, edge_step, channels, rows, row_strides,
    DEGREES: tl.constexpr, SWAPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(2)
    for n in tl.static_range(len(DEGREES)):
        if number == n:
            _rotate_sum_degree(
                outputs[n], aligned, angles, order, offsets, num_edges, row_step, edge_step, channels[n], rows[n], row_strides[n],
                DEGREES[n], SWAPS, BLOCK, BLOCK_CHANNELS, SUM,
            )  # fmt: skip


def align(blocks: Sequence[DegreeBlock], swaps: tuple[float, ...], index: Tensor | None, angles: Tensor, aligned: Tensor) -> None:
    """Rotate features into the edges' frames, D^T x, into some rows of ``aligned``, all degrees by one launch.

    Args:
        blocks: the degrees, their features [N, C, 2d+1] with ``index``, else [E, C, 2d+1], contiguous.
        swaps: :func:`~se3_fast.kernels.edge_frames.swap_entries` for the largest degree at least.
        index: [E] int64, the node of each edge; None where the features are those of the edges.
        angles: [4, E], of :func:`~se3_fast.kernels.edge_frames.frame_angles`.
        aligned: [rows, E] as :func:`~se3_fast.kernels.feature_rows.empty_rows` has it; written.
    """
    num_edges = aligned.shape[1]
    blocks = [block for block in blocks if block.features.shape[1] > 0]
    if num_edges > 0 and blocks:
        of_all = _by_argument(blocks)
        tile = _rotation_tile(max(of_all.channels), max(of_all.degrees), angles.dtype)
        pitch = aligned.stride(0)
        grid = (triton.cdiv(pitch, tile.edges), len(blocks), triton.cdiv(max(of_all.channels), tile.channels))
        launch(_align_kernel, grid,
            of_all.features, index, angles, aligned, num_edges, pitch, of_all.channels, of_all.rows, of_all.row_strides,
            HAS_INDEX=index is not None, DEGREES=of_all.degrees, SWAPS=swaps, BLOCK=tile.edges, BLOCK_CHANNELS=tile.channels,
            num_warps=tile.warps,
        )  # fmt: skip


def rotate(block: DegreeBlock, swaps: tuple[float, ...], aligned: Tensor, index: Tensor | None, angles: Tensor) -> None:
    """Rotate features of one degree out of the edges' frames, D v.

    Args:
        block: the degree, its output [E, C, 2d+1], which is written.
        swaps: as in :func:`align`.
        aligned: [rows, E].
        index: [E] int64, where the message of each edge goes; None where that is its own place.
        angles: [4, E].
    """
    num_edges, channels = block.features.shape[:2]
    if num_edges == 0 or channels == 0:
        return
    tile = _rotation_tile(channels, block.degree, angles.dtype)
    launch(_rotate_kernel, (triton.cdiv(num_edges, tile.edges), triton.cdiv(channels, tile.channels)),
        aligned, index, angles, block.features, num_edges, *aligned.stride(), channels, block.row, block.row_stride,
        HAS_INDEX=index is not None, DEGREE=block.degree, SWAPS=swaps, BLOCK=tile.edges, BLOCK_CHANNELS=tile.channels,
        num_warps=tile.warps,
    )  # fmt: skip


def rotate_sum(
    blocks: Sequence[DegreeBlock], swaps: tuple[float, ...], aligned: Tensor, angles: Tensor, order: Tensor, offsets: Tensor
) -> None:
    """Rotate out of the frames and sum over the edges of each node, in a fixed order; degrees as in :func:`align`.

    Args:
        blocks: the degrees, their outputs [N, C, 2d+1], which are written.
        swaps: as in :func:`align`.
        aligned: [rows, E].
        angles: [4, E].
        order: [E] int64, edge numbers grouped by node.
        offsets: [N + 1] int64, where the edges of each node begin in ``order``.
    """
    num_nodes, num_edges = len(offsets) - 1, aligned.shape[1]
    blocks = [block for block in blocks if block.features.shape[1] > 0]
    if num_nodes > 0 and blocks:
        of_all = _by_argument(blocks)
        tile = _sum_tile(max(of_all.channels), num_edges / num_nodes)
        launch(_rotate_sum_kernel, (num_nodes, triton.cdiv(max(of_all.channels), tile.channels), len(blocks)),
            of_all.features, aligned, angles, order, offsets, num_edges, *aligned.stride(),
            of_all.channels, of_all.rows, of_all.row_strides,
            DEGREES=of_all.degrees, SWAPS=swaps, BLOCK=tile.edges, BLOCK_CHANNELS=tile.channels,
            SUM=TYPES[angles.dtype], num_warps=tile.warps,
        )  # fmt: skip


class _ByArgument(NamedTuple):
    """The arguments of a kernel that takes several degrees, each in a tuple; of the features [.., C, 2d+1] also C."""

    features: tuple[Tensor, ...]
    channels: tuple[int, ...]
    rows: tuple[int, ...]
    row_strides: tuple[int, ...]
    degrees: tuple[int, ...]


def _by_argument(blocks: Sequence[DegreeBlock]) -> _ByArgument:
    return _ByArgument(
        tuple(block.features for block in blocks),
        tuple(block.features.shape[1] for block in blocks),
        tuple(block.row for block in blocks),
        tuple(block.row_stride for block in blocks),
        tuple(block.degree for block in blocks),
    )


class _Tile(NamedTuple):
    """Edges and channels of a program's tile, and its warps."""

    edges: int
    channels: int
    warps: int


def _rotation_tile(channels: int, max_degree: int, dtype: torch.dtype) -> _Tile:
    """The tile of :func:`align` and :func:`rotate`: 4 values a thread of every component, fewer where these are many or wide."""
    is_crowded = (2 * max_degree + 1) * dtype.itemsize > 32
    return _Tile(8 if is_crowded else 16, min(triton.next_power_of_2(channels), 32), 4)


def _sum_tile(channels: int, mean_degree: float) -> _Tile:
    """The tile of :func:`rotate_sum`: as many edges as a node has, from 2 to 8; 2 values a thread of every component."""
    edges = min(max(power_of_two_below(math.sqrt(2) * mean_degree), 2), 8)
    block_channels = min(triton.next_power_of_2(channels), 32)
    return _Tile(edges, block_channels, max(edges * block_channels // 64, 1))


def compile_cases() -> list[CompileCase]:
    """Every kernel at the launches of the workloads, by workload and dtype."""
    cases = []
    for workload, channels, max_degree, mean_degree in (
        ("qm9", 32, 3, 2),
        ("protein_full", 16, 1, 299),
        ("protein_wide", 64, 1, 99),
    ):
        for name in DTYPES:
            cases += _cases(workload, name, channels, max_degree, mean_degree)
    return cases


def _cases(workload: str, name: str, channels: int, max_degree: int, mean_degree: float) -> list[CompileCase]:
    rounding = ROUNDINGS[name]
    dtype, degrees = sum_dtype(rounding.dtype), tuple(range(max_degree + 1))
    tile, of_sums = _rotation_tile(channels, max_degree, dtype), _sum_tile(channels, mean_degree)
    of_all = {"DEGREES": degrees, "SWAPS": SWAPS_TO_DEGREE_3}
    sizes = {"BLOCK": tile.edges, "BLOCK_CHANNELS": tile.channels}
    of_one = {"DEGREE": max_degree, "SWAPS": SWAPS_TO_DEGREE_3, "HAS_INDEX": False, "edge_step": 1, **sizes}
    summed = {**of_all, "BLOCK": of_sums.edges, "BLOCK_CHANNELS": of_sums.channels, "SUM": TYPES[dtype], "row_step": 1}
    values = f"*{rounding.type_name}"
    types: dict[str, ArgumentType] = {"angles": f"*{rounding.sum_name}"} | dict.fromkeys(("index", "order", "offsets"), "*i64")
    types |= dict.fromkeys(("num_edges", "pitch", "row_step", "edge_step", "channels", "row", "row_stride"), "i32")
    by_degree = types | dict.fromkeys(("features", "outputs"), (values,) * len(degrees))
    by_degree |= dict.fromkeys(("channels", "rows", "row_strides"), ("i32",) * len(degrees))
    launches: tuple[tuple[str, object, dict[str, ArgumentType], Mapping[str, object], _Tile], ...] = (
        ("align", _align_kernel, by_degree, {**of_all, **sizes, "HAS_INDEX": True}, tile),
        (f"rotate degree {max_degree}", _rotate_kernel, types, of_one, tile),
        ("rotate_sum", _rotate_sum_kernel, by_degree, summed, of_sums),
    )
    return [
        CompileCase(
            name=f"{kind} {workload} {name}",
            kernel=kernel,
            signature=signature(kernel, constants, of_kernel, values),
            constants=constants,
            num_warps=chosen.warps,
            num_stages=3,
            multiples_of_16=("pitch",) if kernel is _align_kernel else ("row_step" if "edge_step" in constants else "edge_step",),
        )
        for kind, kernel, of_kernel, constants, chosen in launches
    ]
