"""Attention over the incoming edges of each node, in the frames of the edges: ``edge_attention.py`` of aligned messages.

``attend_in_frames`` takes the aligned messages y~ of a convolution, turned into the frames of their edges and with the channels of
value and key side by side (value = D v~, key = D k~, DESIGN 1.1). Nothing is ever turned out of the frames but sums over edges:

    s = c <k~, D^T query>,   out = sum_e p D v~
    dp = <v~, D^T g>,   dv~ = p D^T g,   dk~ = c ds D^T query,   dquery = sum_e c ds D k~

A program has a tile [edges, channels of some heads] of every component of every degree, and turns them by pairs of components
(``edge_frames.py``): no Wigner block is formed. It reads y~ with the rows of an edge side by side, [E, rows]: the edges of a node
lie anywhere (complete graphs come ordered by source), and of [rows, E], as the convolution has it, a program would read one value
of every 32-byte sector. ``by_edge`` turns [rows, E] into [E, rows], ``by_row`` gradients back, bound by memory; y~ that comes as
the transpose of a contiguous [E, rows] is taken as it is.

In the frames, with F = H (K + V) values per edge, R_k and R_v the FLOP for turning keys or values (``turn_flop``), per edge:
forward R_k + R_v + H (2K + V + 10) FLOP, F b bytes read, 2F b for the transpose, 24 for angles and order (40 with float64);
backward 3 R_k + 2 R_v + H (6K + 5V + 20) FLOP, F b read and as much written, 2F b for the transpose. At ``qm9`` forward 3.1 KB,
backward 4.1 KB. Otherwise turning y~ out of the frames takes 2F b, setting values and keys apart 2F b, reading them F b; and more
on the way back. :func:`cost_in_frames` counts for any sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .edge_attention import NUM_STAGES, SECTOR_BYTES, WORKLOADS, AttentionTile, Launch, divide, edges_of_block, weigh
from .edge_frames import SWAPS_TO_DEGREE_3, load_frames, turn_flop, turned_in, turned_out
from .feature_rows import empty_rows
from .launching import launch
from .precision import DTYPES, ROUNDINGS, power_of_two_below, sum_type
from .resources import CompileCase, signature


@triton.jit
def _columns(first_head, HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, SIDE: tl.constexpr, N: tl.constexpr):
    """The columns of a tile are the channels of some heads: head and channel within the head of each, and which exist."""
    channels: tl.constexpr = SIDE[4 * N]
    padded: tl.constexpr = SIDE[4 * N + 1]
    column = tl.arange(0, BLOCK_HEADS * padded)
    head, channel = first_head + column // padded, column % padded
    return head, channel, (head < HEADS) & (channel < channels)


@triton.jit
def _node_places(
    node, first_head, HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    DEGREES: tl.constexpr, SIDE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Where the first component of each channel of a degree lies in the features of a node, and which exist: [1, columns]."""
    head, channel, is_column = _columns(first_head, HEADS, BLOCK_HEADS, SIDE, N)
    place = (node * HEADS + head) * WIDTH + SIDE[4 * N + 2] + channel * (2 * DEGREES[3 * N] + 1)
    return place[None], is_column[None]


@triton.jit
def _edge_places(
    edge, is_edge, first_head,
    HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Where the first component of each channel of a degree lies in the aligned messages, and which exist: [edges, columns]."""
    channels: tl.constexpr = SIDE[4 * N]
    padded: tl.constexpr = SIDE[4 * N + 1]
    head, channel, is_column = _columns(first_head, HEADS, BLOCK_HEADS, SIDE, N)
    if channels == padded:  # said so that the compiler sees neighbours side by side
        row = SIDE[4 * N + 3] + first_head * channels + tl.arange(0, BLOCK_HEADS * padded)
    else:
        row = SIDE[4 * N + 3] + head * channels + channel
    return (edge * ROWS)[:, None] + row[None], is_edge[:, None] & is_column[None]


@triton.jit
def _components(tiles, DEGREES: tl.constexpr, N: tl.constexpr):
    """Those of a degree, of the tiles of all."""
    chosen = ()
    for i in tl.static_range(2 * DEGREES[3 * N] + 1):
        chosen += (tiles[DEGREES[3 * N + 1] + i],)
    return chosen


@triton.jit
def _load(features, place, is_value, STEP: tl.constexpr, COMPONENTS: tl.constexpr, SUM: tl.constexpr):
    """The components of a degree, ``STEP`` values apart."""
    loaded = ()
    for i in tl.static_range(COMPONENTS):
        loaded += (tl.load(features + place + i * STEP, mask=is_value, other=0.0).to(SUM),)
    return loaded


@triton.jit
def _load_node(
    features, node, first_head, HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    DEGREES: tl.constexpr, SIDE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """A node's features: of each degree and component a tile [1, columns]."""
    tiles = ()
    for n in tl.static_range(len(DEGREES) // 3):
        place, is_column = _node_places(node, first_head, HEADS, BLOCK_HEADS, WIDTH, DEGREES, SIDE, n)
        tiles = tiles + _load(features, place, is_column, 1, 2 * DEGREES[3 * n] + 1, SUM)
    return tiles


@triton.jit
def _sums(
    BLOCK_EDGES: tl.constexpr, BLOCK_HEADS: tl.constexpr, DEGREES: tl.constexpr, SIDE: tl.constexpr, SUM: tl.constexpr
):  # fmt: skip
    """Zeros: of each degree and component a tile [edges, columns], as each edge of a block has its own sum."""
    tiles = ()
    for n in tl.static_range(len(DEGREES) // 3):
        for _ in tl.static_range(2 * DEGREES[3 * n] + 1):
            tiles += (tl.zeros((BLOCK_EDGES, BLOCK_HEADS * SIDE[4 * n + 1]), SUM),)
    return tiles


@triton.jit
def _store_node(
    features, tiles, share, node, first_head, HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    DEGREES: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """The sums over the edges of all tiles, times ``share`` [1, heads]."""
    for n in tl.static_range(len(DEGREES) // 3):
        if SIDE[4 * n] > 0:
            place, is_column = _node_places(node, first_head, HEADS, BLOCK_HEADS, WIDTH, DEGREES, SIDE, n)
            factor = _to_columns(share, BLOCK_HEADS, SIDE, n)
            for i in tl.static_range(2 * DEGREES[3 * n] + 1):
                value = factor * tl.sum(tiles[DEGREES[3 * n + 1] + i], 0)[None]
                tl.store(features + place + i, value.to(features.dtype.element_ty), mask=is_column)


@triton.jit
def _to_columns(values, BLOCK_HEADS: tl.constexpr, SIDE: tl.constexpr, N: tl.constexpr):
    """Values by head [n, heads] for each of the heads' columns, [n, columns]."""
    padded: tl.constexpr = SIDE[4 * N + 1]
    spread = tl.broadcast_to(values[:, :, None], (values.shape[0], BLOCK_HEADS, padded))
    return tl.reshape(spread, (values.shape[0], BLOCK_HEADS * padded))


@triton.jit
def _product_by_head(messages, place, is_value, turned, STEP: tl.constexpr, BLOCK_HEADS: tl.constexpr, SUM: tl.constexpr):
    """Inner products of the aligned messages of a degree with tiles turned into the same frames: [edges, heads]."""
    components = _load(messages, place, is_value, STEP, len(turned), SUM)
    columns = components[0] * turned[0]
    for i in tl.static_range(1, len(turned)):
        columns += components[i] * turned[i]
    return tl.sum(tl.reshape(columns, (columns.shape[0], BLOCK_HEADS, columns.shape[1] // BLOCK_HEADS)), 2)


@triton.jit
def _begin(offsets, BLOCK_HEADS: tl.constexpr, SUM: tl.constexpr):
    """A program's node and first head, where the node's edges begin and end, largest score and total before the first one."""
    node = tl.program_id(0).to(tl.int64)
    largest, total = tl.full((BLOCK_HEADS,), float("-inf"), SUM), tl.zeros((BLOCK_HEADS,), SUM)
    return node, tl.program_id(1) * BLOCK_HEADS, tl.load(offsets + node), tl.load(offsets + node + 1), largest, total


@triton.jit(do_not_specialize=["num_edges"])
def _forward_in_frames_kernel(
    messages, query, angles, order, offsets, output, num_edges,
    HEADS: tl.constexpr, VALUE_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    DEGREES: tl.constexpr, VALUES: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr, SWAPS: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_HEADS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    node, first_head, start, stop, largest, total = _begin(offsets, BLOCK_HEADS, SUM)
    queries = _load_node(query, node, first_head, HEADS, BLOCK_HEADS, KEY_WIDTH, DEGREES, KEYS, SUM)
    attended = _sums(BLOCK_EDGES, BLOCK_HEADS, DEGREES, VALUES, SUM)
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        frames = load_frames(angles, edge, is_edge, num_edges)
        scores = tl.zeros((BLOCK_EDGES, BLOCK_HEADS), SUM)
        for n in tl.static_range(len(DEGREES) // 3):
            if KEYS[4 * n] > 0:
                q = turned_in(_components(queries, DEGREES, n), frames, SWAPS, DEGREES[3 * n])
                place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, KEYS, ROWS, n)
                scores += _product_by_head(messages, place, is_value, q, DEGREES[3 * n + 2], BLOCK_HEADS, SUM)
        weights, largest, shrink = weigh(tl.where(is_edge[:, None], SCALE * scores, float("-inf")), largest)
        total = total * shrink + tl.sum(weights, 0)
        sums = ()
        for n in tl.static_range(len(DEGREES) // 3):
            earlier = _components(attended, DEGREES, n)
            if VALUES[4 * n] > 0:
                place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, VALUES, ROWS, n)
                v = _load(messages, place, is_value, DEGREES[3 * n + 2], 2 * DEGREES[3 * n] + 1, SUM)
                v = turned_out(v, frames, SWAPS, DEGREES[3 * n])
                weight, factor = _to_columns(weights, BLOCK_HEADS, VALUES, n), _to_columns(shrink[None], BLOCK_HEADS, VALUES, n)
                for i in tl.static_range(2 * DEGREES[3 * n] + 1):
                    sums += (factor * earlier[i] + weight * v[i],)
            else:
                sums += earlier
        attended = sums
    share = (1.0 / tl.where(start < stop, total, 1.0))[None]
    _store_node(output, attended, share, node, first_head, HEADS, BLOCK_HEADS, VALUE_WIDTH, DEGREES, VALUES)


@triton.jit
def _scores_in_frames(
    messages, queries, gradients, edge, is_edge, first_head, frames,
    HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, SCALE: tl.constexpr, DEGREES: tl.constexpr, VALUES: tl.constexpr,
    KEYS: tl.constexpr, ROWS: tl.constexpr, SWAPS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Scores and dp of some edges, [edges, heads] each, and D^T query and D^T g, a tile per degree and component each."""
    scores = tl.zeros((edge.shape[0], BLOCK_HEADS), SUM)
    dp = tl.zeros((edge.shape[0], BLOCK_HEADS), SUM)
    all_q, all_g = (), ()
    for n in tl.static_range(len(DEGREES) // 3):
        q = turned_in(_components(queries, DEGREES, n), frames, SWAPS, DEGREES[3 * n])
        g = turned_in(_components(gradients, DEGREES, n), frames, SWAPS, DEGREES[3 * n])
        if KEYS[4 * n] > 0:
            place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, KEYS, ROWS, n)
            scores += _product_by_head(messages, place, is_value, q, DEGREES[3 * n + 2], BLOCK_HEADS, SUM)
        if VALUES[4 * n] > 0:
            place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, VALUES, ROWS, n)
            dp += _product_by_head(messages, place, is_value, g, DEGREES[3 * n + 2], BLOCK_HEADS, SUM)
        all_q, all_g = all_q + q, all_g + g
    return tl.where(is_edge[:, None], SCALE * scores, float("-inf")), dp, all_q, all_g


@triton.jit
def _store_edges(messages, place, is_value, factor, tiles, STEP: tl.constexpr):
    """``factor`` [edges, columns] times the components of a degree."""
    for i in tl.static_range(len(tiles)):
        tl.store(messages + place + i * STEP, (factor * tiles[i]).to(messages.dtype.element_ty), mask=is_value)


@triton.jit(do_not_specialize=["num_edges"])
def _backward_in_frames_kernel(
    messages, query, gradient, angles, order, offsets, message_gradient, query_gradient, num_edges,
    HEADS: tl.constexpr, VALUE_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    DEGREES: tl.constexpr, VALUES: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr, SWAPS: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_HEADS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    node, first_head, start, stop, largest, total = _begin(offsets, BLOCK_HEADS, SUM)
    mean = tl.zeros((BLOCK_HEADS,), SUM)  # sum of p dp
    queries = _load_node(query, node, first_head, HEADS, BLOCK_HEADS, KEY_WIDTH, DEGREES, KEYS, SUM)
    gradients = _load_node(gradient, node, first_head, HEADS, BLOCK_HEADS, VALUE_WIDTH, DEGREES, VALUES, SUM)
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        frames = load_frames(angles, edge, is_edge, num_edges)
        scores, dp, _, _ = _scores_in_frames(
            messages, queries, gradients, edge, is_edge, first_head, frames,
            HEADS, BLOCK_HEADS, SCALE, DEGREES, VALUES, KEYS, ROWS, SWAPS, SUM,
        )  # fmt: skip
        weights, largest, shrink = weigh(scores, largest)
        total = total * shrink + tl.sum(weights, 0)
        mean = mean * shrink + tl.sum(weights * dp, 0)
    total = tl.where(start < stop, total, 1.0)
    mean = divide(mean, total)
    q_sums = _sums(BLOCK_EDGES, BLOCK_HEADS, DEGREES, KEYS, SUM)
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        frames = load_frames(angles, edge, is_edge, num_edges)
        scores, dp, all_q, all_g = _scores_in_frames(
            messages, queries, gradients, edge, is_edge, first_head, frames,
            HEADS, BLOCK_HEADS, SCALE, DEGREES, VALUES, KEYS, ROWS, SWAPS, SUM,
        )  # fmt: skip
        weights = tl.exp(scores - largest[None]) / total[None]
        score_gradient = SCALE * weights * (dp - mean[None])
        sums = ()
        for n in tl.static_range(len(DEGREES) // 3):
            place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, VALUES, ROWS, n)
            of_column = _to_columns(weights, BLOCK_HEADS, VALUES, n)
            _store_edges(message_gradient, place, is_value, of_column, _components(all_g, DEGREES, n), DEGREES[3 * n + 2])
            earlier = _components(q_sums, DEGREES, n)
            if KEYS[4 * n] > 0:
                place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, KEYS, ROWS, n)
                of_column = _to_columns(score_gradient, BLOCK_HEADS, KEYS, n)
                _store_edges(message_gradient, place, is_value, of_column, _components(all_q, DEGREES, n), DEGREES[3 * n + 2])
                k = _load(messages, place, is_value, DEGREES[3 * n + 2], 2 * DEGREES[3 * n] + 1, SUM)
                k = turned_out(k, frames, SWAPS, DEGREES[3 * n])
                for i in tl.static_range(2 * DEGREES[3 * n] + 1):
                    sums += (earlier[i] + of_column * k[i],)
            else:
                sums += earlier
        q_sums = sums
    one = tl.full((1, BLOCK_HEADS), 1.0, SUM)
    _store_node(query_gradient, q_sums, one, node, first_head, HEADS, BLOCK_HEADS, KEY_WIDTH, DEGREES, KEYS)


@triton.jit(do_not_specialize=["num_rows", "num_columns"])
def _transpose_kernel(
    values,
    result,
    num_rows,
    num_columns,
    row_step,
    column_step,
    ROW_AXIS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = tl.program_id(ROW_AXIS).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1 - ROW_AXIS).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None]
    is_value = (row < num_rows) & (column < num_columns)
    tile = tl.load(values + row * row_step + column, mask=is_value, other=0.0)
    is_result = (row < column_step) & (column < num_columns)  # zeros past the last edge, where the rows of the result are longer
    tl.store(result + column * column_step + row, tile, mask=is_result)


class FrameLayout(NamedTuple):
    """Where keys and values lie in the aligned messages [E, rows] and in the features of nodes [N, H, width].

    Attributes:
        heads: H.
        degrees: three numbers a degree: the degree, the components of those before it, and the rows from one component to the next.
        values: four numbers a degree: channels of a head, the same padded, where the degree begins among a head's features, and its
            first row.
        keys: the same for the keys.
        value_width: features of a head's value.
        key_width: features of a head's key.
        rows: of the messages.
    """

    heads: int
    degrees: tuple[int, ...]
    values: tuple[int, ...]
    keys: tuple[int, ...]
    value_width: int
    key_width: int
    rows: int


def frame_layout(
    num_heads: int, value_channels: tuple[tuple[int, int], ...], key_channels: tuple[tuple[int, int], ...]
) -> FrameLayout:
    """The layout of messages whose rows are (degree, component, channel), the channels of the value before those of the key.

    Args:
        num_heads: H; divides all channels.
        value_channels: (degree, channels) of the values.
        key_channels: (degree, channels) of the keys.
    """
    of_value, of_key = dict(value_channels), dict(key_channels)
    degrees: list[int] = []
    values: list[int] = []
    keys: list[int] = []
    components = row = value_width = key_width = 0
    for degree in sorted(of_value.keys() | of_key.keys()):
        of_both = of_value.get(degree, 0) + of_key.get(degree, 0)
        v, k = of_value.get(degree, 0) // num_heads, of_key.get(degree, 0) // num_heads
        degrees += [degree, components, of_both]
        values += [v, triton.next_power_of_2(max(v, 1)), value_width, row]
        keys += [k, triton.next_power_of_2(max(k, 1)), key_width, row + v * num_heads]
        components += 2 * degree + 1
        row += (2 * degree + 1) * of_both
        value_width += (2 * degree + 1) * v
        key_width += (2 * degree + 1) * k
    return FrameLayout(num_heads, tuple(degrees), tuple(values), tuple(keys), value_width, key_width, row)


def attend_in_frames(
    layout: FrameLayout,
    swaps: tuple[float, ...],
    messages: Tensor,
    query: Tensor,
    angles: Tensor,
    order: Tensor,
    offsets: Tensor,
) -> Tensor:
    """Attention whose keys and values are in the frames of their edges.

    Args:
        layout: of keys and values.
        swaps: :func:`~se3_fast.kernels.edge_frames.swap_entries` for the layout's largest degree at least.
        messages: [E, rows] contiguous, y~ of a convolution.
        query: [N, H, K].
        angles: [4, E], of :func:`~se3_fast.kernels.edge_frames.frame_angles`; float64 for float64 messages, else float32. No edge
            may have length zero: it has no frame.
        order: [E] int64, the edges grouped by destination.
        offsets: [N + 1] int64, where the edges of each node begin.

    Returns:
        [N, H, V] in the dtype of ``messages``; 0 for a node without incoming edges.
    """
    output = messages.new_empty(len(query), layout.heads, layout.value_width)
    if len(query) > 0:
        chosen = _launch_in_frames(layout, messages, len(query))
        launch(_forward_in_frames_kernel, chosen.grid,
            messages, query.contiguous(), angles, order, offsets, output, len(messages), SWAPS=swaps,
            **chosen.constants, num_warps=chosen.warps, num_stages=NUM_STAGES,
        )  # fmt: skip
    return output


def attend_in_frames_backward(
    layout: FrameLayout,
    swaps: tuple[float, ...],
    messages: Tensor,
    query: Tensor,
    angles: Tensor,
    order: Tensor,
    offsets: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of the messages, [E, rows] in the frames, and of the query.

    Args:
        layout: of keys and values.
        swaps: as in :func:`attend_in_frames`.
        messages: [E, rows] contiguous.
        query: [N, H, K].
        angles: [4, E].
        order: [E] int64, the edges grouped by destination.
        offsets: [N + 1] int64, where the edges of each node begin.
        gradient: [N, H, V], that of the output.
    """
    message_gradient = torch.empty_like(messages)
    query_gradient = torch.empty_like(query, memory_format=torch.contiguous_format)
    if len(query) > 0:
        chosen = _launch_in_frames(layout, messages, len(query))
        launch(_backward_in_frames_kernel, chosen.grid,
            messages, query.contiguous(), gradient.contiguous(), angles, order, offsets, message_gradient, query_gradient,
            len(messages), SWAPS=swaps, **chosen.constants, num_warps=chosen.warps, num_stages=NUM_STAGES,
        )  # fmt: skip
    return message_gradient, query_gradient


def by_edge(values: Tensor) -> Tensor:
    """Aligned features [rows, E] as [E, rows], contiguous; not copied where the rows of an edge lie side by side already."""
    if values.t().is_contiguous():
        return values.t()
    return _transposed(values, values.new_empty(values.shape[::-1]), row_axis=1)


def by_row(values: Tensor) -> Tensor:
    """[E, rows] as [rows, E] with the edges of a row side by side (:mod:`se3_fast.kernels.feature_rows`)."""
    num_edges, num_rows = values.shape
    return _transposed(values, empty_rows(num_rows, num_edges, values.dtype, values.device), row_axis=0)


def _transposed(values: Tensor, result: Tensor, row_axis: int) -> Tensor:
    """``result``, into which the transpose of ``values`` is written; the rows of both lie in one piece each.

    ``row_axis`` is the axis of the grid for the rows of ``values``: the edges, which are many, belong on the first.
    """
    num_rows, num_columns = values.shape
    if values.numel() == 0:
        return result
    values = values if values.stride(1) == 1 else values.contiguous()
    blocks = (triton.cdiv(result.stride(0), _TRANSPOSE_TILE.rows), triton.cdiv(num_columns, _TRANSPOSE_TILE.columns))
    launch(_transpose_kernel, (blocks[row_axis], blocks[1 - row_axis]),
        values, result, num_rows, num_columns, values.stride(0), result.stride(0),
        ROW_AXIS=row_axis, BLOCK_ROWS=_TRANSPOSE_TILE.rows, BLOCK_COLUMNS=_TRANSPOSE_TILE.columns, num_warps=_TRANSPOSE_TILE.warps,
    )  # fmt: skip
    return result


def _launch_in_frames(layout: FrameLayout, messages: Tensor, num_nodes: int) -> Launch:
    tile = _tile_in_frames(layout, num_nodes, len(messages), messages.dtype)
    constants = _constants_in_frames(layout, tile) | {"SUM": sum_type(messages.dtype)}
    return Launch((num_nodes, triton.cdiv(layout.heads, tile.heads)), constants, tile.warps)


def _constants_in_frames(layout: FrameLayout, tile: AttentionTile) -> dict[str, object]:
    return {
        "HEADS": layout.heads,
        "VALUE_WIDTH": layout.value_width,
        "KEY_WIDTH": layout.key_width,
        "SCALE": 1.0 / math.sqrt(max(layout.heads * layout.key_width, 1)),
        "DEGREES": layout.degrees,
        "VALUES": layout.values,
        "KEYS": layout.keys,
        "ROWS": layout.rows,
        "BLOCK_EDGES": tile.edges,
        "BLOCK_HEADS": tile.heads,
    }


def _tile_in_frames(layout: FrameLayout, num_nodes: int, num_edges: int, dtype: torch.dtype) -> AttentionTile:
    """The tile [edges, heads x channels] that a program has of every component of every degree.

    All of them are live at once, several times in the backward kernel: a thread has about 16 values of all components together,
    half as many where heads are wide. Edges are as many as a node has, rounded, on up to 4 warps: one warp in ``qm9``, where a node
    has 2 edges. Heads take what is left; but what a program reads of an edge should fill the sectors of memory that it comes from,
    so narrow heads stay together.
    """
    widest = max(*layout.values[1::4], *layout.keys[1::4], 1)
    components = sum(2 * degree + 1 for degree in layout.degrees[::3])
    per_thread = power_of_two_below((16 if widest < 8 else 8) / components)
    room = max(4 * 32 * per_thread // widest, 1)  # for edges x heads
    all_heads = triton.next_power_of_2(layout.heads)
    fewest_heads = min(triton.next_power_of_2(triton.cdiv(SECTOR_BYTES, widest * dtype.itemsize)), all_heads, room)
    edges = min(power_of_two_below(math.sqrt(2) * num_edges / num_nodes), room // fewest_heads)
    heads = min(room // edges, all_heads)
    return AttentionTile(edges, heads, min(max(edges * heads * widest // (32 * per_thread), 1), 4))


class _TransposeTile(NamedTuple):
    """Rows and columns of a tile, and the warps of its program."""

    rows: int
    columns: int
    warps: int


_TRANSPOSE_TILE = _TransposeTile(64, 64, 4)


def cost_in_frames(layout: FrameLayout, num_nodes: int, num_edges: int, itemsize: int) -> tuple[Cost, Cost]:
    """The work of :func:`attend_in_frames` and of :func:`attend_in_frames_backward`, each with its :func:`by_edge` or
    :func:`by_row`.

    Args:
        layout: of keys and values.
        num_nodes: N.
        num_edges: E.
        itemsize: bytes of a value.
    """
    heads = layout.heads
    v, k = heads * layout.value_width, heads * layout.key_width
    turns = [heads * turn_flop(degree) for degree in layout.degrees[::3]]
    turn_v, turn_k = (
        sum(flop * channels for flop, channels in zip(turns, side[::4], strict=True)) for side in (layout.values, layout.keys)
    )
    of_edge = 3 * (k + v) * itemsize + 8 + 4 * max(itemsize, 4)
    forward = Cost(
        0,
        num_edges * (turn_k + turn_v + 2 * k + v + 10 * heads),
        num_edges * of_edge + num_nodes * ((k + v) * itemsize + 16),
    )
    backward = Cost(
        0,
        num_edges * (3 * turn_k + 2 * turn_v + 6 * k + 5 * v + 20 * heads),
        num_edges * (of_edge + (k + v) * itemsize) + num_nodes * ((2 * k + v) * itemsize + 16),
    )
    return forward, backward


def compile_cases() -> list[CompileCase]:
    """All kernels at the launches of the workloads, by dtype."""
    cases = []
    for workload, sizes in WORKLOADS.items():
        for name in DTYPES:
            cases += _cases_in_frames(workload, name, *sizes)
    constants = {"ROW_AXIS": 1, "BLOCK_ROWS": _TRANSPOSE_TILE.rows, "BLOCK_COLUMNS": _TRANSPOSE_TILE.columns}
    sizes_and_steps, steps = ("num_rows", "num_columns", "row_step", "column_step"), ("row_step", "column_step")
    for name in DTYPES:
        types = signature(_transpose_kernel, constants, dict.fromkeys(sizes_and_steps, "i32"), f"*{name}")
        tile = (_TRANSPOSE_TILE.warps, NUM_STAGES)
        cases.append(CompileCase(f"transpose {name}", _transpose_kernel, types, constants, *tile, multiples_of_16=steps))
    return cases


def _cases_in_frames(
    workload: str, name: str, num_nodes: int, num_edges: int, num_heads: int, num_degrees: int, channels: int
) -> list[CompileCase]:
    fiber = tuple((degree, channels) for degree in range(num_degrees))
    layout = frame_layout(num_heads, fiber, fiber)
    tile = _tile_in_frames(layout, num_nodes, num_edges, DTYPES[name])
    constants = _constants_in_frames(layout, tile) | {"SUM": sum_type(DTYPES[name]), "SWAPS": SWAPS_TO_DEGREE_3}
    common = {"angles": f"*{ROUNDINGS[name].sum_name}", "order": "*i64", "offsets": "*i64", "num_edges": "i32"}
    cases = []
    for direction, kernel in (("forward", _forward_in_frames_kernel), ("backward", _backward_in_frames_kernel)):
        types = signature(kernel, constants, common, f"*{name}")
        case_name = f"{direction} in frames {workload} {name}"
        cases.append(CompileCase(case_name, kernel, types, constants, tile.warps, NUM_STAGES))
    return cases
