"""TFN convolution in edge-aligned frames, contracted by source node (DESIGN 1.3): R is not formed, not even on chip.

    T[j; l, k, n] = sum_i x[j, i, l] W[i, k, n]          once per source node j; n = (m, parity, d_out, output channel)
    U[e; l, n]    = sum_k h[e, k] T[src(e); l, k, n]
    y~[+m] = sum_l D[l, +m] U_even[l] - D[l, -m] U_odd[l],     y~[-m] = sum_l D[l, -m] U_even[l] + D[l, +m] U_odd[l]

That is the contraction by edge (``kernels/tfn_conv.py``) of other operands: the columns of the Wigner block in place of x~, and
the node's own T in place of W. T is one plain matrix product per input degree over a chunk of nodes, into a buffer of bounded size
that mostly stays in the second-level cache: a program that made its T itself would read all of W for one node (2.9 MB at 4
degrees and 32 channels, in half precision) to multiply it with 2d+1 rows, of which the matrix unit wants 16. Five kernels:

    frames            the columns of the Wigner blocks of all input degrees, [rows, E], row = (degree, component m, l)
    contract          h, T, D -> y~
    hidden_gradient   dh = sum over l and n of dU T,   dU_even = g+ D+ + g- D-,   dU_odd = g- D+ - g+ D-
    product_gradient  dT = h^T dU; a program owns a slice of a node's T and walks over the node's edges: no atomics, a fixed order.
                      dW and dx follow from dT by a plain matrix product per input degree
    frame_gradient    dD, for the gradient with respect to positions only: as ``contract`` with y~ and D exchanged

A program of ``contract``, ``hidden_gradient`` and ``frame_gradient`` has a tile of edges of one node. All feature-major tensors
here have the edges in the graph's order by source, so that a tile is contiguous (gathered, the kernels need twice the registers);
only h and its gradient, whose rows are 64 bytes and more, stay at the edges' own numbers.

Cost at 4 degrees, 32 channels, K = 32, forward: 14 MFLOP and 0.44 MB of T (half precision), written once and read once, per node;
0.44 MFLOP of matrix products, 0.03 MFLOP of multiply-adds and 1.4 kB read and written (D, y~, h) per edge. Bound by the traffic
of T where nodes have few edges, by memory (y~, h) where they have many. Backward: T again, its gradient, and two products per edge.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table_fields as fields
from .edge_frames import tile_size, wigner_tile
from .launching import launch
from .precision import ROUNDINGS, Rounding, add_product, is_half, is_tf32, padded, product_constants, split_product_constants
from .resources import ArgumentType, CompileCase, signature
from .tfn_conv import ContractionTile, argument_types, rotation_block

_NUM_STAGES = 2  # of software pipelining: a third takes the registers of the sums in full precision

COMPONENT_BLOCKS = (1, 4)
"""How many components of an input degree a program of :func:`product_gradient` may take."""


class NodeEdges(NamedTuple):
    """The edges of some consecutive source nodes.

    Attributes:
        order: [E] int64, edge numbers grouped by source node; the place of an edge in this order is its place in the tensors below.
        offsets: [N + 1] int64, the first place of each node.
        tiles: [t, 2] int64, a node and the first place of a tile of its edges; a tile that begins past the node's edges is empty.
        first_node: the first of the nodes.
        num_nodes: how many they are.
        tile_edges: the most edges of a tile.
    """

    order: Tensor
    offsets: Tensor
    tiles: Tensor
    first_node: int
    num_nodes: int
    tile_edges: int


class PairTable(NamedTuple):
    """Pairs of degrees at one kind of order, and what a program takes of them, as int64 tables (``table_rows.py``).

    Attributes:
        pairs: :class:`SourcePairRow` rows.
        items: :class:`Item` rows, programs of :func:`contract` (output degrees) or of :func:`frame_gradient` (input degrees).
        slices: for each of :data:`COMPONENT_BLOCKS` the programs of :func:`product_gradient`, [s, 2]: pair and first component.
        channels: largest number of output channels.
        has_odd: whether these are orders m > 0; m = 0 has a table of its own.
    """

    pairs: Tensor
    items: Tensor
    slices: dict[int, Tensor]
    channels: int
    has_odd: bool


@triton.jit(do_not_specialize=["num_edges"])
def _frames_kernel(
    angles, table, frames, num_edges, pitch, row, DEGREE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_edge = edge < num_edges
    block = wigner_tile(angles, table, edge, is_edge, num_edges, DEGREE, SIZE, BLOCK)
    component = tl.arange(0, SIZE).to(tl.int64)
    is_component = component < 2 * DEGREE + 1
    rows = row + component[None, :] * (2 * DEGREE + 1) + component[:, None]  # D[l, m] stands in row (m, l)
    is_value = is_edge[:, None, None] & (is_component[:, None] & is_component[None, :])[None]
    tl.store(frames + rows[None] * pitch + edge[:, None, None], block.to(frames.dtype.element_ty), mask=is_value)


@triton.jit
def _edges_of_tile(tiles, offsets, BLOCK_EDGES: tl.constexpr):
    """The node of this program's tile, whether the tile has any edges, their places, and which of them there are."""
    tile = tiles + 2 * tl.program_id(0)
    node, first = tl.load(tile), tl.load(tile + 1)
    stop = tl.load(offsets + node + 1)
    place = first + tl.arange(0, BLOCK_EDGES)
    return node, first < stop, place, place < stop


@triton.jit
def _frames_of(pair):
    """The first rows of D at +m and at -m, and how many components there are."""
    return (
        tl.load(pair + fields.SOURCE_PAIR_FRAME_PLUS),
        tl.load(pair + fields.SOURCE_PAIR_FRAME_MINUS),
        tl.load(pair + fields.SOURCE_PAIR_COMPONENTS),
    )


@triton.jit
def _slices_of(pair):
    """Where the pair's slices of T begin, their length, the step from one unit to the next, and the even and the odd columns."""
    return (
        tl.load(pair + fields.SOURCE_PAIR_START),
        tl.load(pair + fields.SOURCE_PAIR_LENGTH),
        tl.load(pair + fields.SOURCE_PAIR_STEP),
        tl.load(pair + fields.SOURCE_PAIR_EVEN),
        tl.load(pair + fields.SOURCE_PAIR_ODD),
    )


@triton.jit
def _outputs_of(pair):
    """The first rows of y~ at +m and at -m, and how many channels there are."""
    return (
        tl.load(pair + fields.SOURCE_PAIR_OUT_PLUS),
        tl.load(pair + fields.SOURCE_PAIR_OUT_MINUS),
        tl.load(pair + fields.SOURCE_PAIR_CHANNELS),
    )


@triton.jit(do_not_specialize=["num_edges", "first_node", "num_nodes"])
def _contract_kernel(
    frames, hidden, products, outputs, tiles, order, offsets, items, pairs, num_edges, pitch, first_node, num_nodes,
    HAS_ODD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_EDGES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    node, has_edges, place, is_edge = _edges_of_tile(tiles, offsets, BLOCK_EDGES)
    item = items + tl.program_id(1) * fields.ITEM_FIELDS
    first = tl.load(item + fields.ITEM_FIRST)
    stop = tl.where(has_edges, tl.load(item + fields.ITEM_STOP), first)
    row_plus, row_minus, channels = (
        tl.load(item + fields.ITEM_PLUS),
        tl.load(item + fields.ITEM_MINUS),
        tl.load(item + fields.ITEM_CHANNELS),
    )
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_channel = channel < channels
    edge = tl.load(order + place, mask=is_edge, other=0)
    unit = tl.arange(0, WIDTH)
    plus = tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), SUM)
    minus = tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), SUM)
    nothing = tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), SUM)
    for index in range(first, stop):
        pair = pairs + index * fields.SOURCE_PAIR_FIELDS
        group = tl.load(pair + fields.SOURCE_PAIR_GROUP)
        frame_plus, frame_minus, components = _frames_of(pair)
        start, length, step, even, odd = _slices_of(pair)
        h = tl.load(hidden + (group * num_edges + edge)[:, None] * WIDTH + unit[None], mask=is_edge[:, None], other=0.0)
        slices = products + start * num_nodes + (node - first_node) * components * length
        tile = unit[:, None] * step.to(tl.int32) + channel[None]  # [WIDTH, BLOCK_CHANNELS] of T
        for _ in range(components):
            d_plus = tl.load(frames + frame_plus * pitch + place, mask=is_edge, other=0.0).to(SUM)[:, None]
            product = tl.load(slices + even + tile, mask=is_channel[None], other=0.0)
            turned = add_product(h, product, nothing, PRECISION, OPERAND)  # U_even of one component
            plus += turned * d_plus
            if HAS_ODD:
                d_minus = tl.load(frames + frame_minus * pitch + place, mask=is_edge, other=0.0).to(SUM)[:, None]
                minus += turned * d_minus
                product = tl.load(slices + odd + tile, mask=is_channel[None], other=0.0)
                turned = add_product(h, product, nothing, PRECISION, OPERAND)
                plus -= turned * d_minus
                minus += turned * d_plus
            frame_plus += 1
            frame_minus += 1
            slices += length
    is_value = is_edge[:, None] & is_channel[None]
    tl.store(outputs + (row_plus + channel)[None] * pitch + place[:, None], plus.to(outputs.dtype.element_ty), mask=is_value)
    if HAS_ODD:
        tl.store(outputs + (row_minus + channel)[None] * pitch + place[:, None], minus.to(outputs.dtype.element_ty), mask=is_value)


@triton.jit
def _add_hidden_gradient(
    total, frames, gradient, products, pairs, first, stop, slot, place, is_edge, pitch, num_nodes,
    HAS_ODD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """total + the sum over some pairs of dU T."""
    unit = tl.arange(0, WIDTH)
    for index in range(first, stop):
        pair = pairs + index * fields.SOURCE_PAIR_FIELDS
        frame_plus, frame_minus, components = _frames_of(pair)
        start, length, step, even, odd = _slices_of(pair)
        out_plus, out_minus, channels = _outputs_of(pair)
        for first_channel in range(0, channels, BLOCK_CHANNELS):
            channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
            is_channel = channel < channels
            is_value = is_edge[:, None] & is_channel[None]
            g_plus = tl.load(gradient + (out_plus + channel)[None] * pitch + place[:, None], mask=is_value, other=0.0)
            g_minus = g_plus
            if HAS_ODD:
                g_minus = tl.load(gradient + (out_minus + channel)[None] * pitch + place[:, None], mask=is_value, other=0.0)
            slices = products + start * num_nodes + slot * components * length
            tile = unit[None] * step.to(tl.int32) + channel[:, None]  # T transposed, [BLOCK_CHANNELS, WIDTH]
            for component in range(components):
                d_plus = tl.load(frames + (frame_plus + component) * pitch + place, mask=is_edge, other=0.0).to(SUM)[:, None]
                product = tl.load(slices + even + component * length + tile, mask=is_channel[:, None], other=0.0)
                turned = g_plus.to(SUM) * d_plus  # dU_even
                if HAS_ODD:
                    d_minus = tl.load(frames + (frame_minus + component) * pitch + place, mask=is_edge, other=0.0)
                    d_minus = d_minus.to(SUM)[:, None]
                    turned += g_minus.to(SUM) * d_minus
                total = add_product(turned.to(product.dtype), product, total, PRECISION, OPERAND)
                if HAS_ODD:
                    turned = g_minus.to(SUM) * d_plus - g_plus.to(SUM) * d_minus  # dU_odd
                    product = tl.load(slices + odd + component * length + tile, mask=is_channel[:, None], other=0.0)
                    total = add_product(turned.to(product.dtype), product, total, PRECISION, OPERAND)
    return total


@triton.jit(do_not_specialize=["num_edges", "first_node", "num_nodes"])
def _hidden_gradient_kernel(
    frames, gradient, products, hidden_gradient, tiles, order, offsets, pairs, spans, odd_pairs, odd_spans,
    num_edges, pitch, first_node, num_nodes,
    WIDTH: tl.constexpr, BLOCK_EDGES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    node, has_edges, place, is_edge = _edges_of_tile(tiles, offsets, BLOCK_EDGES)
    group = tl.program_id(1).to(tl.int64)
    first, odd_first = tl.load(spans + 2 * group), tl.load(odd_spans + 2 * group)
    stop = tl.where(has_edges, tl.load(spans + 2 * group + 1), first)
    odd_stop = tl.where(has_edges, tl.load(odd_spans + 2 * group + 1), odd_first)
    total = tl.zeros((BLOCK_EDGES, WIDTH), SUM)
    total = _add_hidden_gradient(
        total, frames, gradient, products, pairs, first, stop, node - first_node, place, is_edge, pitch, num_nodes,
        False, WIDTH, BLOCK_CHANNELS, PRECISION, SUM, OPERAND,
    )  # fmt: skip
    total = _add_hidden_gradient(
        total, frames, gradient, products, odd_pairs, odd_first, odd_stop, node - first_node, place, is_edge, pitch, num_nodes,
        True, WIDTH, BLOCK_CHANNELS, PRECISION, SUM, OPERAND,
    )  # fmt: skip
    edge = tl.load(order + place, mask=is_edge, other=0)
    target = hidden_gradient + (group * num_edges + edge)[:, None] * WIDTH + tl.arange(0, WIDTH)[None]
    tl.store(target, total.to(hidden_gradient.dtype.element_ty), mask=is_edge[:, None])


@triton.jit(do_not_specialize=["num_edges", "first_node", "num_nodes"])
def _product_gradient_kernel(
    frames, gradient, hidden, product_gradient, order, offsets, pairs, slices, num_edges, pitch, first_node, num_nodes,
    HAS_ODD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_EDGES: tl.constexpr, BLOCK_COMPONENTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    pair = pairs + tl.load(slices + 2 * tl.program_id(1)) * fields.SOURCE_PAIR_FIELDS
    group = tl.load(pair + fields.SOURCE_PAIR_GROUP)
    frame_plus, frame_minus, components = _frames_of(pair)
    start, length, step, even, odd = _slices_of(pair)
    out_plus, out_minus, channels = _outputs_of(pair)
    first_component = tl.load(slices + 2 * tl.program_id(1) + 1)
    component = first_component + tl.arange(0, BLOCK_COMPONENTS)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_component, is_channel = component < components, channel < channels
    unit = tl.arange(0, WIDTH)
    columns: tl.constexpr = BLOCK_COMPONENTS * BLOCK_CHANNELS  # one column of a tile per component and output channel
    even_sum = tl.zeros((WIDTH, columns), SUM)
    odd_sum = tl.zeros((WIDTH, columns), SUM)
    begin, end = tl.load(offsets + first_node + slot), tl.load(offsets + first_node + slot + 1)
    end = tl.where(tl.program_id(2) * BLOCK_CHANNELS < channels, end, begin)  # nothing to do past the channels of a pair
    for first_edge in range(begin, end, BLOCK_EDGES):
        place = first_edge + tl.arange(0, BLOCK_EDGES)
        is_edge = place < end
        edge = tl.load(order + place, mask=is_edge, other=0)
        is_frame, is_output = is_edge[:, None] & is_component[None], is_edge[:, None] & is_channel[None]
        h = tl.load(hidden + (group * num_edges + edge)[None] * WIDTH + unit[:, None], mask=is_edge[None], other=0.0)
        d_plus = tl.load(frames + (frame_plus + component)[None] * pitch + place[:, None], mask=is_frame, other=0.0)
        g_plus = tl.load(gradient + (out_plus + channel)[None] * pitch + place[:, None], mask=is_output, other=0.0)
        d_plus, g_plus = d_plus.to(SUM)[:, :, None], g_plus.to(SUM)[:, None, :]
        turned = d_plus * g_plus  # dU_even, [BLOCK_EDGES, BLOCK_COMPONENTS, BLOCK_CHANNELS]
        if HAS_ODD:
            d_minus = tl.load(frames + (frame_minus + component)[None] * pitch + place[:, None], mask=is_frame, other=0.0)
            g_minus = tl.load(gradient + (out_minus + channel)[None] * pitch + place[:, None], mask=is_output, other=0.0)
            d_minus, g_minus = d_minus.to(SUM)[:, :, None], g_minus.to(SUM)[:, None, :]
            turned += d_minus * g_minus
            odd_turned = tl.reshape(d_plus * g_minus - d_minus * g_plus, (BLOCK_EDGES, columns)).to(h.dtype)
            odd_sum = add_product(h, odd_turned, odd_sum, PRECISION, OPERAND)
        turned = tl.reshape(turned, (BLOCK_EDGES, columns)).to(h.dtype)
        even_sum = add_product(h, turned, even_sum, PRECISION, OPERAND)
    column = tl.arange(0, columns)
    component = first_component + column // BLOCK_CHANNELS
    channel = tl.program_id(2) * BLOCK_CHANNELS + column % BLOCK_CHANNELS
    is_column = ((component < components) & (channel < channels))[None]
    target = product_gradient + start * num_nodes + (slot * components + component)[None] * length
    target += unit[:, None] * step + channel[None]
    tl.store(target + even, even_sum.to(product_gradient.dtype.element_ty), mask=is_column)
    if HAS_ODD:
        tl.store(target + odd, odd_sum.to(product_gradient.dtype.element_ty), mask=is_column)


@triton.jit(do_not_specialize=["num_edges", "first_node", "num_nodes"])
def _frame_gradient_kernel(
    gradient, hidden, products, frame_gradient, tiles, order, offsets, items, pairs, num_edges, pitch, first_node, num_nodes,
    HAS_ODD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_EDGES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    node, has_edges, place, is_edge = _edges_of_tile(tiles, offsets, BLOCK_EDGES)
    item = items + tl.program_id(1) * fields.ITEM_FIELDS
    first = tl.load(item + fields.ITEM_FIRST)
    stop = tl.where(has_edges, tl.load(item + fields.ITEM_STOP), first)
    row_plus, row_minus, components = (
        tl.load(item + fields.ITEM_PLUS),
        tl.load(item + fields.ITEM_MINUS),
        tl.load(item + fields.ITEM_CHANNELS),
    )
    edge = tl.load(order + place, mask=is_edge, other=0)
    unit = tl.arange(0, WIDTH)
    nothing = tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), SUM)
    for component in range(components):
        plus = tl.zeros((BLOCK_EDGES,), SUM)
        minus = tl.zeros((BLOCK_EDGES,), SUM)
        for index in range(first, stop):
            pair = pairs + index * fields.SOURCE_PAIR_FIELDS
            group = tl.load(pair + fields.SOURCE_PAIR_GROUP)
            start, length, step, even, odd = _slices_of(pair)
            out_plus, out_minus, channels = _outputs_of(pair)
            h = tl.load(hidden + (group * num_edges + edge)[:, None] * WIDTH + unit[None], mask=is_edge[:, None], other=0.0)
            slice_of_node = products + start * num_nodes + ((node - first_node) * components + component) * length
            for first_channel in range(0, channels, BLOCK_CHANNELS):
                channel = first_channel + tl.arange(0, BLOCK_CHANNELS)
                is_channel = channel < channels
                is_value = is_edge[:, None] & is_channel[None]
                tile = unit[:, None] * step.to(tl.int32) + channel[None]
                g_plus = tl.load(gradient + (out_plus + channel)[None] * pitch + place[:, None], mask=is_value, other=0.0)
                g_plus = g_plus.to(SUM)
                product = tl.load(slice_of_node + even + tile, mask=is_channel[None], other=0.0)
                turned = add_product(h, product, nothing, PRECISION, OPERAND)  # U_even
                plus += tl.sum(turned * g_plus, 1)
                if HAS_ODD:
                    g_minus = tl.load(gradient + (out_minus + channel)[None] * pitch + place[:, None], mask=is_value, other=0.0)
                    g_minus = g_minus.to(SUM)
                    minus += tl.sum(turned * g_minus, 1)
                    product = tl.load(slice_of_node + odd + tile, mask=is_channel[None], other=0.0)
                    turned = add_product(h, product, nothing, PRECISION, OPERAND)  # U_odd
                    plus += tl.sum(turned * g_minus, 1)
                    minus -= tl.sum(turned * g_plus, 1)
        of_plus = plus.to(frame_gradient.dtype.element_ty)
        tl.store(frame_gradient + (row_plus + component) * pitch + place, of_plus, mask=is_edge)
        if HAS_ODD:
            of_minus = minus.to(frame_gradient.dtype.element_ty)
            tl.store(frame_gradient + (row_minus + component) * pitch + place, of_minus, mask=is_edge)


def frames(angles: Tensor, table: Tensor, degree: int, result: Tensor, row: int) -> None:
    """The columns of the Wigner blocks of one degree.

    Args:
        angles: [4, E], of :func:`~se3_fast.kernels.edge_frames.frame_angles`.
        table: that of :func:`~se3_fast.kernels.edge_frames.wigner_table` in the dtype of ``angles``.
        degree: the degree.
        result: [rows, E]; the (2d+1)^2 rows from ``row`` on are written.
        row: the first of them.
    """
    num_edges = result.shape[1]
    if num_edges == 0:
        return
    block = rotation_block(degree)
    launch(_frames_kernel, (triton.cdiv(num_edges, block),),
        angles, table, result, num_edges, result.stride(0), row, DEGREE=degree, SIZE=tile_size(degree), BLOCK=block,
    )  # fmt: skip


def contract(
    frame_rows: Tensor, hidden: Tensor, products: Tensor, edges: NodeEdges, tables: list[PairTable], outputs: Tensor
) -> None:
    """y~ of the edges of some nodes.

    Args:
        frame_rows: [rows, E] columns of the Wigner blocks.
        hidden: [groups, E, K] h of each radial group, K a power of two from 16 on.
        products: T of the nodes, by input degree [nodes, 2d+1, columns], one after the other.
        edges: the nodes and their edges.
        tables: what to sum, at m = 0 and at m > 0.
        outputs: [rows, E]; every row of every item is written, at the nodes' edges.
    """
    for table in tables:
        if len(edges.tiles) == 0 or len(table.items) == 0:
            continue
        is_split = _is_split(table.has_odd, hidden.dtype, is_tf32(hidden.dtype))
        tile = _contract_tile(hidden.dtype, table.channels, edges.tile_edges, is_split)
        rounding = split_product_constants(hidden.dtype) if is_split else product_constants(hidden.dtype)
        grid = (len(edges.tiles), len(table.items), triton.cdiv(table.channels, tile.channels))
        launch(_contract_kernel, grid,
            frame_rows, hidden, products, outputs, edges.tiles, edges.order, edges.offsets, table.items, table.pairs,
            hidden.shape[1], frame_rows.stride(0), edges.first_node, edges.num_nodes,
            HAS_ODD=table.has_odd, WIDTH=hidden.shape[2], BLOCK_EDGES=tile.edges, BLOCK_CHANNELS=tile.channels,
            **rounding, num_warps=tile.warps, num_stages=_NUM_STAGES,
        )  # fmt: skip


def hidden_gradient(
    frame_rows: Tensor,
    gradient: Tensor,
    products: Tensor,
    edges: NodeEdges,
    tables: list[PairTable],
    spans: list[Tensor],
    result: Tensor,
) -> None:
    """dh of the edges of some nodes.

    Args:
        frame_rows: [rows, E] columns of the Wigner blocks.
        gradient: [rows, E] gradient of y~.
        products: T of the nodes.
        edges: the nodes and their edges.
        tables: the pairs at m = 0 and at m > 0, by radial group.
        spans: [groups, 2] int64 for each table, the pairs of each group.
        result: [groups, E, K]; written at the nodes' edges.
    """
    if len(edges.tiles) == 0:
        return
    num_groups, num_edges, width = result.shape
    channels = max(table.channels for table in tables)
    tile = _hidden_gradient_tile(result.dtype, channels, edges.tile_edges, is_tf32(result.dtype))
    launch(_hidden_gradient_kernel, (len(edges.tiles), num_groups),
        frame_rows, gradient, products, result, edges.tiles, edges.order, edges.offsets,
        tables[0].pairs, spans[0], tables[1].pairs, spans[1], num_edges, gradient.stride(0), edges.first_node, edges.num_nodes,
        WIDTH=width, BLOCK_EDGES=tile.edges, BLOCK_CHANNELS=tile.channels,
        **product_constants(result.dtype), num_warps=tile.warps, num_stages=_NUM_STAGES,
    )  # fmt: skip


def product_gradient(
    frame_rows: Tensor, gradient: Tensor, hidden: Tensor, edges: NodeEdges, tables: list[PairTable], result: Tensor
) -> None:
    """dT of some nodes.

    Args:
        frame_rows: [rows, E] columns of the Wigner blocks.
        gradient: [rows, E] gradient of y~.
        hidden: [groups, E, K].
        edges: the nodes and their edges.
        tables: the pairs at m = 0 and at m > 0.
        result: as T; all of it is written.
    """
    for table in tables:
        if edges.num_nodes == 0 or len(table.pairs) == 0:
            continue
        tile, block_components = _product_gradient_tile(hidden.dtype, table.channels)
        slices = table.slices[block_components]
        grid = (edges.num_nodes, len(slices), triton.cdiv(table.channels, tile.channels))
        launch(_product_gradient_kernel, grid,
            frame_rows, gradient, hidden, result, edges.order, edges.offsets, table.pairs, slices,
            hidden.shape[1], gradient.stride(0), edges.first_node, edges.num_nodes,
            HAS_ODD=table.has_odd, WIDTH=hidden.shape[2], BLOCK_EDGES=tile.edges, BLOCK_COMPONENTS=block_components,
            BLOCK_CHANNELS=tile.channels, **product_constants(hidden.dtype), num_warps=tile.warps, num_stages=_NUM_STAGES,
        )  # fmt: skip


def frame_gradient(
    gradient: Tensor, hidden: Tensor, products: Tensor, edges: NodeEdges, tables: list[PairTable], result: Tensor
) -> None:
    """dD of the edges of some nodes.

    Args:
        gradient: [rows, E] gradient of y~.
        hidden: [groups, E, K].
        products: T of the nodes.
        edges: the nodes and their edges.
        tables: what to sum, at m = 0 and at m > 0; their items are input degrees.
        result: [rows, E] as the columns of the Wigner blocks; every row of every item is written, at the nodes' edges.
    """
    for table in tables:
        if len(edges.tiles) == 0 or len(table.items) == 0:
            continue
        tile = _frame_gradient_tile(hidden.dtype, edges.tile_edges)
        launch(_frame_gradient_kernel, (len(edges.tiles), len(table.items)),
            gradient, hidden, products, result, edges.tiles, edges.order, edges.offsets, table.items, table.pairs,
            hidden.shape[1], gradient.stride(0), edges.first_node, edges.num_nodes,
            HAS_ODD=table.has_odd, WIDTH=hidden.shape[2], BLOCK_EDGES=tile.edges, BLOCK_CHANNELS=tile.channels,
            **product_constants(hidden.dtype), num_warps=tile.warps, num_stages=_NUM_STAGES,
        )  # fmt: skip


def tile_edges(dtype: torch.dtype, mean_out_degree: float) -> int:
    """Edges of a tile of one node's edges.

    Half precision takes 64 where nodes have as many: that is the matrix unit's own height from sm_90 on, and T is read less often.
    Elsewhere 32: the operands of full precision sit in registers, and a molecule's nodes would leave larger tiles half empty.
    """
    return 64 if is_half(dtype) and mean_out_degree > 32 else 32


def _edge_tile(dtype: torch.dtype, channels: int, edges: int) -> ContractionTile:
    """The tile of the kernels that own a tile of edges; four tiles of sums and products are live, as in the contraction by edge."""
    return ContractionTile(edges, padded(channels, 16 if dtype == torch.float64 else 32), 8 if edges == 64 else 4)


def _is_split(has_odd: bool, dtype: torch.dtype, has_tf32: bool) -> bool:
    """Whether :func:`contract` splits operands: in full float32 at m = 0; the four sums at m > 0 leave no registers for it."""
    return dtype == torch.float32 and not has_tf32 and not has_odd


def _contract_tile(dtype: torch.dtype, channels: int, edges: int, is_split: bool) -> ContractionTile:
    """As :func:`_edge_tile`, but 16 channels on 2 warps where operands are split, which takes registers."""
    return ContractionTile(edges, 16, 2) if is_split else _edge_tile(dtype, channels, edges)


def _hidden_gradient_tile(dtype: torch.dtype, channels: int, edges: int, has_tf32: bool) -> ContractionTile:
    """As :func:`_edge_tile`, but full float32 on 2 warps: the more values a thread has, the less often operands are read."""
    tile = _edge_tile(dtype, channels, edges)
    return tile._replace(warps=2) if dtype == torch.float32 and not has_tf32 else tile


def _frame_gradient_tile(dtype: torch.dtype, edges: int) -> ContractionTile:
    """As :func:`_edge_tile`, but the gradient's tile is live, too: 16 channels at once, and in full precision by 8 warps."""
    return ContractionTile(edges, 16, 4 if is_half(dtype) and edges == 32 else 8)


def _product_gradient_tile(dtype: torch.dtype, channels: int) -> tuple[ContractionTile, int]:
    """The tile of :func:`product_gradient`, and how many components it takes side by side.

    The more components, the less often h and the gradients are read again: 4 in half precision, where the matrix unit keeps the
    operands out of the registers; elsewhere 1.
    """
    if is_half(dtype):
        return ContractionTile(32, padded(channels, 32), 4), 4
    return ContractionTile(16, padded(channels, 32 if dtype == torch.float32 else 16), 4), 1


def compile_cases() -> list[CompileCase]:
    """Every kernel at the launches of the workloads, by workload and rounding."""
    cases = []
    for workload, channels, degree, edges in (
        ("qm9_complete", 32, 3, 17),
        ("protein_full", 16, 1, 299),
        ("protein_wide", 64, 1, 99),
    ):
        for name, rounding in ROUNDINGS.items():
            tile_height = tile_edges(rounding.dtype, edges)
            has_tf32 = rounding.precision == "tf32"
            frame_tile = _frame_gradient_tile(rounding.dtype, tile_height)
            gradient_tile, block_components = _product_gradient_tile(rounding.dtype, channels)
            hidden_tile = _hidden_gradient_tile(rounding.dtype, channels, tile_height, has_tf32)
            launches: list[tuple[str, object, dict[str, object], ContractionTile, Rounding]] = []
            for has_odd in (False, True):
                order = f"m{'>' if has_odd else '='}0"
                odd: dict[str, object] = {"HAS_ODD": has_odd}
                of_products = odd | {"BLOCK_COMPONENTS": block_components}
                is_split = _is_split(has_odd, rounding.dtype, has_tf32)
                tile = _contract_tile(rounding.dtype, channels, tile_height, is_split)
                of_contract = rounding.split() if is_split else rounding
                launches += [
                    (f"contract {order}", _contract_kernel, odd, tile, of_contract),
                    (f"frame_gradient {order}", _frame_gradient_kernel, odd, frame_tile, rounding),
                    (f"product_gradient {order}", _product_gradient_kernel, of_products, gradient_tile, rounding),
                ]
            launches.append(("hidden_gradient", _hidden_gradient_kernel, {}, hidden_tile, rounding))
            for kind, kernel, shape, launch_tile, rounded in launches:
                tile_constants = {"BLOCK_EDGES": launch_tile.edges, "BLOCK_CHANNELS": launch_tile.channels}
                constants = shape | {"WIDTH": 32} | tile_constants | rounded.product_constants()
                cases.append(
                    CompileCase(
                        name=f"{kind} {workload} {name}",
                        kernel=kernel,
                        signature=signature(kernel, constants, _argument_types(rounding), f"*{rounding.type_name}"),
                        constants=constants,
                        num_warps=launch_tile.warps,
                        num_stages=_NUM_STAGES,
                        expects_matrix_instructions=rounded.uses_matrix_unit,
                    )
                )
            if name != "tf32":  # which rounds products only
                cases.append(_frames_case(workload, name, degree))
    return cases


def _frames_case(workload: str, name: str, degree: int) -> CompileCase:
    constants = {"DEGREE": degree, "SIZE": tile_size(degree), "BLOCK": rotation_block(degree)}
    types = signature(_frames_kernel, constants, _argument_types(ROUNDINGS[name]), f"*{ROUNDINGS[name].type_name}")
    return CompileCase(f"frames degree {degree} {workload} {name}", _frames_kernel, types, constants, num_warps=4, num_stages=3)


def _argument_types(rounding: Rounding) -> dict[str, ArgumentType]:
    """As those by edge."""
    types = argument_types(rounding) | dict.fromkeys(("odd_pairs", "odd_spans", "slices", "tiles"), "*i64")
    return types | dict.fromkeys(("first_node", "num_nodes"), "i32")
