"""Attention over the incoming edges of each node, in the frames of the edges: ``edge_attention.py`` of aligned messages.

``attend_in_frames`` takes the aligned messages y~ of a convolution, turned into the frames of their edges and with the channels of
value and key side by side (value = D v~, key = D k~, DESIGN 1.1). Nothing is ever turned out of the frames but sums over edges:

    s = c <k~, D^T query>,   out = sum_e p D v~
    dp = <v~, D^T g>,   dv~ = p D^T g,   dk~ = c ds D^T query,   dquery = sum_e c ds D k~

In the frames, a program evaluates the Wigner blocks of its edges row by row, in pairs of rows +m and -m that share their values of
K (``wigner_rows``), so that no tile is larger than [edges, components, channels]. It reads y~ with the rows of an edge side by
side, [E, rows]: the edges of a node lie anywhere (complete graphs come ordered by source), and of [rows, E], as the convolution has
it, a program would read one value of every 32-byte sector. ``transposed`` turns [rows, E] into [E, rows] and gradients back, bound
by memory; y~ that comes as the transpose of a contiguous [E, rows] is taken as it is.

In the frames, with F = H (K + V) values per edge, W = sum over degrees of (d + 1)(2d + 1)(8 (d + 1) + 6) FLOP for all rows of the
Wigner blocks, R_k and R_v = sum of 2 (2d + 1)^2 C for turning keys or values, per edge: forward 2W + R_k + R_v + H (2K + V + 10)
FLOP, F b bytes read, 2F b for the transpose, 24 for angles and order (40 with float64); backward 3W + 3 R_k + 2 R_v +
H (6K + 5V + 20) FLOP, F b read and as much written, 2F b for the transpose. At ``qm9`` forward 3.1 KB, backward 4.1 KB. Otherwise
turning y~ out of the frames takes 2F b, setting values and keys apart 2F b, reading them F b; and more on the way back.
:func:`cost_in_frames` counts for any sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .edge_attention import NUM_STAGES, SECTOR_BYTES, WORKLOADS, Launch, Tile, edges_of_block, weigh
from .edge_frames import tile_size, wigner_rows, wigner_rows_flop
from .launching import launch
from .precision import DTYPES, ROUNDINGS, sum_type
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
    """Where the first component of each channel of a degree lies in the features of a node, and which exist: [columns]."""
    head, channel, is_column = _columns(first_head, HEADS, BLOCK_HEADS, SIDE, N)
    return (node * HEADS + head) * WIDTH + SIDE[4 * N + 2] + channel * (2 * DEGREES[4 * N] + 1), is_column


@triton.jit
def _edge_places(
    edge, is_edge, first_head,
    HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, DEGREES: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Where the features of a degree lie in the aligned messages, and which exist: [edges, SIZE, columns]."""
    channels: tl.constexpr = SIDE[4 * N]
    padded: tl.constexpr = SIDE[4 * N + 1]
    head, channel, is_column = _columns(first_head, HEADS, BLOCK_HEADS, SIDE, N)
    if channels == padded:  # said so that the compiler sees neighbours side by side
        row = SIDE[4 * N + 3] + first_head * channels + tl.arange(0, BLOCK_HEADS * padded)
    else:
        row = SIDE[4 * N + 3] + head * channels + channel
    component = tl.arange(0, DEGREES[4 * N + 1])[:, None]
    is_row = is_column[None] & (component < 2 * DEGREES[4 * N] + 1)
    place = (edge * ROWS)[:, None, None] + (row[None] + component * DEGREES[4 * N + 3])[None]
    return place, is_edge[:, None, None] & is_row[None]


@triton.jit
def _angles_of(angles, edge, is_edge, num_edges):
    """cos a, sin a, cos b and sin b of some edges, [edges] each."""
    cos_alpha = tl.load(angles + edge, mask=is_edge, other=0.0)
    sin_alpha = tl.load(angles + num_edges + edge, mask=is_edge, other=0.0)
    cos_beta = tl.load(angles + 2 * num_edges + edge, mask=is_edge, other=0.0)
    sin_beta = tl.load(angles + 3 * num_edges + edge, mask=is_edge, other=0.0)
    return cos_alpha, sin_alpha, cos_beta, sin_beta


@triton.jit
def _pair_of_rows(frames, cos_ma, sin_ma, table, m, DEGREE: tl.constexpr, SIZE: tl.constexpr):
    """Rows +m and -m of D, [edges, SIZE, 1] each, the second zero for m = 0; and the cosine and sine of (m + 1) a."""
    plus, minus = wigner_rows(frames[2], frames[3], table, m, DEGREE, SIZE)
    upper = cos_ma[:, None] * plus + sin_ma[:, None] * minus
    lower = tl.where(m > 0, cos_ma[:, None] * minus - sin_ma[:, None] * plus, 0.0)
    cos_next, sin_next = cos_ma * frames[0] - sin_ma * frames[1], sin_ma * frames[0] + cos_ma * frames[1]
    return upper[:, :, None], lower[:, :, None], cos_next, sin_next


@triton.jit
def _pair_turned_in(features, place, is_column, upper, lower, m, DEGREE: tl.constexpr):
    """What the components +m and -m of a node's features contribute to D^T x: [edges, SIZE, columns]."""
    x_plus = tl.load(features + place + (DEGREE - m), mask=is_column, other=0.0).to(upper.dtype)[None, None]
    x_minus = tl.load(features + place + (DEGREE + m), mask=is_column, other=0.0).to(upper.dtype)[None, None]
    return upper * x_plus + lower * x_minus


@triton.jit
def _turned_in(
    features, node, first_head, frames, table, HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    DEGREES: tl.constexpr, SIDE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """D^T x of a node's features of a degree for some of its edges: [edges, SIZE, columns]."""
    place, is_column = _node_places(node, first_head, HEADS, BLOCK_HEADS, WIDTH, DEGREES, SIDE, N)
    size: tl.constexpr = DEGREES[4 * N + 1]
    turned = tl.zeros((frames[0].shape[0], size, place.shape[0]), frames[0].dtype)
    cos_ma, sin_ma = tl.full(frames[0].shape, 1.0, frames[0].dtype), 0.0 * frames[0]
    for m in range(DEGREES[4 * N] + 1):
        upper, lower, cos_ma, sin_ma = _pair_of_rows(
            frames, cos_ma, sin_ma, table + DEGREES[4 * N + 2], m, DEGREES[4 * N], DEGREES[4 * N + 1]
        )
        turned += _pair_turned_in(features, place, is_column, upper, lower, m, DEGREES[4 * N])
    return turned


@triton.jit
def _both_turned_in(
    query, gradient, node, first_head, frames, table, HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr, DEGREES: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """As :func:`_turned_in` for the query and for the gradient of the output, which share the rows of D."""
    k_place, is_k = _node_places(node, first_head, HEADS, BLOCK_HEADS, KEY_WIDTH, DEGREES, KEYS, N)
    v_place, is_v = _node_places(node, first_head, HEADS, BLOCK_HEADS, VALUE_WIDTH, DEGREES, VALUES, N)
    size: tl.constexpr = DEGREES[4 * N + 1]
    q = tl.zeros((frames[0].shape[0], size, k_place.shape[0]), frames[0].dtype)
    g = tl.zeros((frames[0].shape[0], size, v_place.shape[0]), frames[0].dtype)
    cos_ma, sin_ma = tl.full(frames[0].shape, 1.0, frames[0].dtype), 0.0 * frames[0]
    for m in range(DEGREES[4 * N] + 1):
        upper, lower, cos_ma, sin_ma = _pair_of_rows(
            frames, cos_ma, sin_ma, table + DEGREES[4 * N + 2], m, DEGREES[4 * N], DEGREES[4 * N + 1]
        )
        q += _pair_turned_in(query, k_place, is_k, upper, lower, m, DEGREES[4 * N])
        g += _pair_turned_in(gradient, v_place, is_v, upper, lower, m, DEGREES[4 * N])
    return q, g


@triton.jit
def _turned_out(x, frames, table, DEGREES: tl.constexpr, N: tl.constexpr):
    """The sum of D x over the edges of a tile [edges, SIZE, columns]: [SIZE, columns]."""
    turned = tl.zeros((x.shape[1], x.shape[2]), x.dtype)
    component = tl.arange(0, x.shape[1])[:, None]
    cos_ma, sin_ma = tl.full(frames[0].shape, 1.0, frames[0].dtype), 0.0 * frames[0]
    for m in range(DEGREES[4 * N] + 1):
        upper, lower, cos_ma, sin_ma = _pair_of_rows(
            frames, cos_ma, sin_ma, table + DEGREES[4 * N + 2], m, DEGREES[4 * N], DEGREES[4 * N + 1]
        )
        turned += tl.where(component == DEGREES[4 * N] - m, tl.sum(tl.sum(upper * x, 1), 0)[None], 0.0)
        turned += tl.where(component == DEGREES[4 * N] + m, tl.sum(tl.sum(lower * x, 1), 0)[None], 0.0)
    return turned


@triton.jit
def _product_by_head(
    messages, turned, edge, is_edge, first_head,
    HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, DEGREES: tl.constexpr, SIDE: tl.constexpr, ROWS: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Inner products of aligned messages of a degree with a tile turned into the same frames: [edges, heads]."""
    padded: tl.constexpr = SIDE[4 * N + 1]
    place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, DEGREES, SIDE, ROWS, N)
    message = tl.load(messages + place, mask=is_value, other=0.0).to(turned.dtype)
    columns = tl.sum(message * turned, 1)
    return tl.sum(tl.reshape(columns, (edge.shape[0], BLOCK_HEADS, padded)), 2)


@triton.jit
def _to_columns(values, BLOCK_HEADS: tl.constexpr, SIDE: tl.constexpr, N: tl.constexpr):
    """Values by head [n, heads] for each of the heads' columns, [n, columns]."""
    padded: tl.constexpr = SIDE[4 * N + 1]
    spread = tl.broadcast_to(values[:, :, None], (values.shape[0], BLOCK_HEADS, padded))
    return tl.reshape(spread, (values.shape[0], BLOCK_HEADS * padded))


@triton.jit
def _zeros(BLOCK_HEADS: tl.constexpr, DEGREES: tl.constexpr, SIDE: tl.constexpr, SUM: tl.constexpr, N: tl.constexpr):
    size: tl.constexpr = DEGREES[4 * N + 1]
    return tl.zeros((size, BLOCK_HEADS * SIDE[4 * N + 1]), SUM)


@triton.jit
def _node_sums(BLOCK_HEADS: tl.constexpr, DEGREES: tl.constexpr, SIDE: tl.constexpr, SUM: tl.constexpr):
    """Sums for the features of a node, a tile [SIZE, columns] per degree."""
    sums = ()
    for n in tl.static_range(len(DEGREES) // 4):
        sums += (_zeros(BLOCK_HEADS, DEGREES, SIDE, SUM, n),)
    return sums


@triton.jit
def _store_node(
    features, tile, node, first_head, HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, WIDTH: tl.constexpr,
    DEGREES: tl.constexpr, SIDE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    place, is_column = _node_places(node, first_head, HEADS, BLOCK_HEADS, WIDTH, DEGREES, SIDE, N)
    component = tl.arange(0, DEGREES[4 * N + 1])[:, None]
    is_value = is_column[None] & (component < 2 * DEGREES[4 * N] + 1)
    tl.store(features + place[None] + component, tile.to(features.dtype.element_ty), mask=is_value)


@triton.jit
def _forward_in_frames_kernel(
    messages, query, angles, table, order, offsets, output, num_edges,
    HEADS: tl.constexpr, VALUE_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    DEGREES: tl.constexpr, VALUES: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_HEADS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    first_head = tl.program_id(1) * BLOCK_HEADS
    start, stop = tl.load(offsets + node), tl.load(offsets + node + 1)
    largest = tl.full((BLOCK_HEADS,), float("-inf"), SUM)
    total = tl.zeros((BLOCK_HEADS,), SUM)
    attended = _node_sums(BLOCK_HEADS, DEGREES, VALUES, SUM)
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        frames = _angles_of(angles, edge, is_edge, num_edges)
        scores = tl.zeros((BLOCK_EDGES, BLOCK_HEADS), SUM)
        for n in tl.static_range(len(DEGREES) // 4):
            if KEYS[4 * n] > 0:
                q = _turned_in(query, node, first_head, frames, table, HEADS, BLOCK_HEADS, KEY_WIDTH, DEGREES, KEYS, n)
                scores += _product_by_head(messages, q, edge, is_edge, first_head, HEADS, BLOCK_HEADS, DEGREES, KEYS, ROWS, n)
        weights, largest, shrink = weigh(tl.where(is_edge[:, None], SCALE * scores, float("-inf")), largest)
        total = total * shrink + tl.sum(weights, 0)
        sums = ()
        for n in tl.static_range(len(DEGREES) // 4):
            earlier = attended[n] * _to_columns(shrink[None], BLOCK_HEADS, VALUES, n)
            if VALUES[4 * n] > 0:
                place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, DEGREES, VALUES, ROWS, n)
                v = tl.load(messages + place, mask=is_value, other=0.0).to(SUM)
                v *= _to_columns(weights, BLOCK_HEADS, VALUES, n)[:, None]
                sums += (earlier + _turned_out(v, frames, table, DEGREES, n),)
            else:
                sums += (earlier,)
        attended = sums
    share = (1.0 / tl.where(start < stop, total, 1.0))[None]
    for n in tl.static_range(len(DEGREES) // 4):
        tile = attended[n] * _to_columns(share, BLOCK_HEADS, VALUES, n)
        _store_node(output, tile, node, first_head, HEADS, BLOCK_HEADS, VALUE_WIDTH, DEGREES, VALUES, n)


@triton.jit
def _scores_in_frames(
    messages, query, gradient, node, edge, is_edge, first_head, frames, table,
    HEADS: tl.constexpr, BLOCK_HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    DEGREES: tl.constexpr, VALUES: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Scores and dp of some edges, [edges, heads] each, and D^T query and D^T g, a tile per degree each."""
    scores = tl.zeros((edge.shape[0], BLOCK_HEADS), SUM)
    dp = tl.zeros((edge.shape[0], BLOCK_HEADS), SUM)
    queries = ()
    gradients = ()
    for n in tl.static_range(len(DEGREES) // 4):
        q, g = _both_turned_in(
            query, gradient, node, first_head, frames, table, HEADS, BLOCK_HEADS, KEY_WIDTH, VALUE_WIDTH, DEGREES, KEYS, VALUES, n
        )
        if KEYS[4 * n] > 0:
            scores += _product_by_head(messages, q, edge, is_edge, first_head, HEADS, BLOCK_HEADS, DEGREES, KEYS, ROWS, n)
        if VALUES[4 * n] > 0:
            dp += _product_by_head(messages, g, edge, is_edge, first_head, HEADS, BLOCK_HEADS, DEGREES, VALUES, ROWS, n)
        queries += (q,)
        gradients += (g,)
    return tl.where(is_edge[:, None], SCALE * scores, float("-inf")), dp, queries, gradients


@triton.jit
def _backward_in_frames_kernel(
    messages, query, gradient, angles, table, order, offsets, message_gradient, query_gradient, num_edges,
    HEADS: tl.constexpr, VALUE_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    DEGREES: tl.constexpr, VALUES: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_HEADS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    first_head = tl.program_id(1) * BLOCK_HEADS
    start, stop = tl.load(offsets + node), tl.load(offsets + node + 1)
    largest = tl.full((BLOCK_HEADS,), float("-inf"), SUM)
    total = tl.zeros((BLOCK_HEADS,), SUM)
    mean = tl.zeros((BLOCK_HEADS,), SUM)  # sum of p dp
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        frames = _angles_of(angles, edge, is_edge, num_edges)
        scores, dp, _, _ = _scores_in_frames(
            messages, query, gradient, node, edge, is_edge, first_head, frames, table,
            HEADS, BLOCK_HEADS, KEY_WIDTH, VALUE_WIDTH, SCALE, DEGREES, VALUES, KEYS, ROWS, SUM,
        )  # fmt: skip
        weights, largest, shrink = weigh(scores, largest)
        total = total * shrink + tl.sum(weights, 0)
        mean = mean * shrink + tl.sum(weights * dp, 0)
    total = tl.where(start < stop, total, 1.0)
    mean /= total
    q_sums = _node_sums(BLOCK_HEADS, DEGREES, KEYS, SUM)
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        frames = _angles_of(angles, edge, is_edge, num_edges)
        scores, dp, queries, gradients = _scores_in_frames(
            messages, query, gradient, node, edge, is_edge, first_head, frames, table,
            HEADS, BLOCK_HEADS, KEY_WIDTH, VALUE_WIDTH, SCALE, DEGREES, VALUES, KEYS, ROWS, SUM,
        )  # fmt: skip
        weights = tl.exp(scores - largest[None]) / total[None]
        score_gradient = SCALE * weights * (dp - mean[None])
        sums = ()
        for n in tl.static_range(len(DEGREES) // 4):
            place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, DEGREES, VALUES, ROWS, n)
            v_gradient = gradients[n] * _to_columns(weights, BLOCK_HEADS, VALUES, n)[:, None]
            tl.store(message_gradient + place, v_gradient.to(message_gradient.dtype.element_ty), mask=is_value)
            if KEYS[4 * n] > 0:
                place, is_value = _edge_places(edge, is_edge, first_head, HEADS, BLOCK_HEADS, DEGREES, KEYS, ROWS, n)
                of_column = _to_columns(score_gradient, BLOCK_HEADS, KEYS, n)[:, None]
                k_gradient = queries[n] * of_column
                tl.store(message_gradient + place, k_gradient.to(message_gradient.dtype.element_ty), mask=is_value)
                k = tl.load(messages + place, mask=is_value, other=0.0).to(SUM) * of_column
                sums += (q_sums[n] + _turned_out(k, frames, table, DEGREES, n),)
            else:
                sums += (q_sums[n],)
        q_sums = sums
    for n in tl.static_range(len(DEGREES) // 4):
        _store_node(query_gradient, q_sums[n], node, first_head, HEADS, BLOCK_HEADS, KEY_WIDTH, DEGREES, KEYS, n)


@triton.jit
def _transpose_kernel(
    values, result, num_rows, num_columns, ROW_AXIS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    row = tl.program_id(ROW_AXIS).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    column = tl.program_id(1 - ROW_AXIS).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None]
    is_value = (row < num_rows) & (column < num_columns)
    tile = tl.load(values + row * num_columns + column, mask=is_value, other=0.0)
    tl.store(result + column * num_rows + row, tile, mask=is_value)


class FrameLayout(NamedTuple):
    """Where keys and values lie in the aligned messages [E, rows] and in the features of nodes [N, H, width].

    Attributes:
        heads: H.
        degrees: four numbers a degree: the degree, its components padded to a power of two, where its Wigner table begins, and the
            rows from one component to the next.
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
    table = row = value_width = key_width = 0
    for degree in sorted(of_value.keys() | of_key.keys()):
        of_both = of_value.get(degree, 0) + of_key.get(degree, 0)
        v, k = of_value.get(degree, 0) // num_heads, of_key.get(degree, 0) // num_heads
        degrees += [degree, tile_size(degree), table, of_both]
        values += [v, triton.next_power_of_2(max(v, 1)), value_width, row]
        keys += [k, triton.next_power_of_2(max(k, 1)), key_width, row + v * num_heads]
        table += 4 * (degree + 1) * tile_size(degree) ** 2
        row += (2 * degree + 1) * of_both
        value_width += (2 * degree + 1) * v
        key_width += (2 * degree + 1) * k
    return FrameLayout(num_heads, tuple(degrees), tuple(values), tuple(keys), value_width, key_width, row)


def attend_in_frames(
    layout: FrameLayout, messages: Tensor, query: Tensor, angles: Tensor, table: Tensor, order: Tensor, offsets: Tensor
) -> Tensor:
    """Attention whose keys and values are in the frames of their edges.

    Args:
        layout: of keys and values.
        messages: [E, rows] contiguous, y~ of a convolution.
        query: [N, H, K].
        angles: [4, E], of :func:`~se3_fast.kernels.edge_frames.frame_angles`; float64 for float64 messages, else float32. No edge
            may have length zero: it has no frame.
        table: the Wigner tables of the layout's degrees in a row, in the dtype of ``angles``.
        order: [E] int64, the edges grouped by destination.
        offsets: [N + 1] int64, where the edges of each node begin.

    Returns:
        [N, H, V] in the dtype of ``messages``; 0 for a node without incoming edges.
    """
    output = messages.new_empty(len(query), layout.heads, layout.value_width)
    if len(query) > 0:
        chosen = _launch_in_frames(layout, messages, len(query))
        launch(_forward_in_frames_kernel, chosen.grid,
            messages, query.contiguous(), angles, table, order, offsets, output, len(messages),
            **chosen.constants, num_warps=chosen.warps, num_stages=NUM_STAGES,
        )  # fmt: skip
    return output


def attend_in_frames_backward(
    layout: FrameLayout,
    messages: Tensor,
    query: Tensor,
    angles: Tensor,
    table: Tensor,
    order: Tensor,
    offsets: Tensor,
    gradient: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of the messages, [E, rows] in the frames, and of the query.

    Args:
        layout: of keys and values.
        messages: [E, rows] contiguous.
        query: [N, H, K].
        angles: [4, E].
        table: the Wigner tables.
        order: [E] int64, the edges grouped by destination.
        offsets: [N + 1] int64, where the edges of each node begin.
        gradient: [N, H, V], that of the output.
    """
    message_gradient = torch.empty_like(messages)
    query_gradient = torch.empty_like(query, memory_format=torch.contiguous_format)
    if len(query) > 0:
        chosen = _launch_in_frames(layout, messages, len(query))
        launch(_backward_in_frames_kernel, chosen.grid,
            messages, query.contiguous(), gradient.contiguous(), angles, table, order, offsets, message_gradient, query_gradient,
            len(messages), **chosen.constants, num_warps=chosen.warps, num_stages=NUM_STAGES,
        )  # fmt: skip
    return message_gradient, query_gradient


def transposed(values: Tensor) -> Tensor:
    """[m, n] to [n, m], contiguous; not copied where ``values`` is the transpose of a contiguous tensor."""
    if values.t().is_contiguous():
        return values.t()
    num_rows, num_columns = values.shape
    result = values.new_empty(num_columns, num_rows)
    blocks = (triton.cdiv(num_rows, _TRANSPOSE_TILE.rows), triton.cdiv(num_columns, _TRANSPOSE_TILE.columns))
    row_axis = 0 if num_rows > num_columns else 1  # the edges', which are many, on the first axis of the grid
    launch(_transpose_kernel, (blocks[row_axis], blocks[1 - row_axis]),
        values.contiguous(), result, num_rows, num_columns,
        ROW_AXIS=row_axis, BLOCK_ROWS=_TRANSPOSE_TILE.rows, BLOCK_COLUMNS=_TRANSPOSE_TILE.columns, num_warps=_TRANSPOSE_TILE.warps,
    )  # fmt: skip
    return result


def _launch_in_frames(layout: FrameLayout, messages: Tensor, num_nodes: int) -> Launch:
    tile = _tile_in_frames(layout, num_nodes, len(messages), messages.dtype)
    constants = _constants_in_frames(layout, tile) | {"SUM": sum_type(messages.dtype)}
    return Launch((num_nodes, triton.cdiv(layout.heads, tile.heads)), constants, tile.warps)


def _constants_in_frames(layout: FrameLayout, tile: Tile) -> dict[str, object]:
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


def _tile_in_frames(layout: FrameLayout, num_nodes: int, num_edges: int, dtype: torch.dtype) -> Tile:
    """The tiles [edges, components, heads x channels] of a program, one per degree.

    As :func:`_tile`, but all degrees' tiles are live at once, twice in the backward kernel, with the addresses of each: 1,024
    values in sum, those of the largest degree 4 a thread at 4 degrees, where registers allow no more than 8 warps a multiprocessor
    whatever the tile, and 8 a thread at fewer; but 4 in float32 with narrow heads. With these nothing is spilled on any GPU. Hence
    no more edges than a node has, rounded. float64 takes twice the registers: half the values, by 4 warps.
    """
    widest = max(*layout.values[1::4], *layout.keys[1::4], 1)
    live = widest * sum(layout.degrees[1::4])  # values of one edge and head
    is_double = dtype == torch.float64
    room = _power_of_two_below((512 if is_double else 1024) / live)  # for edges x heads
    all_heads = triton.next_power_of_2(layout.heads)
    fewest_heads = min(triton.next_power_of_2(triton.cdiv(SECTOR_BYTES, widest * dtype.itemsize)), all_heads, room)
    edges = min(_power_of_two_below(math.sqrt(2) * num_edges / num_nodes), room // fewest_heads)
    heads = min(room // edges, all_heads)
    values = edges * heads * widest * max(layout.degrees[1::4], default=1)
    is_narrow = len(layout.degrees) > 2 * 4 or (dtype == torch.float32 and widest < 8)
    return Tile(edges, heads, 4 if is_double else min(max(values // (128 if is_narrow else 256), 1), 8))


def _power_of_two_below(value: float) -> int:
    """The largest power of two not above ``value``; at least 1."""
    return 1 << max(math.floor(math.log2(value)), 0) if value > 0 else 1


class _TransposeTile(NamedTuple):
    """Rows and columns of a tile, and the warps of its program."""

    rows: int
    columns: int
    warps: int


_TRANSPOSE_TILE = _TransposeTile(64, 64, 4)


def cost_in_frames(layout: FrameLayout, num_nodes: int, num_edges: int, itemsize: int) -> tuple[Cost, Cost]:
    """The work of :func:`attend_in_frames` and of :func:`attend_in_frames_backward`, each with its :func:`transposed`.

    Args:
        layout: of keys and values.
        num_nodes: N.
        num_edges: E.
        itemsize: bytes of a value.
    """
    heads = layout.heads
    v, k = heads * layout.value_width, heads * layout.key_width
    turn_v = turn_k = rows_v = rows_k = rows = 0
    for degree, v_channels, k_channels in zip(layout.degrees[::4], layout.values[::4], layout.keys[::4], strict=True):
        turn_v += 2 * (2 * degree + 1) ** 2 * heads * v_channels
        turn_k += 2 * (2 * degree + 1) ** 2 * heads * k_channels
        rows += wigner_rows_flop(degree)
        rows_v += wigner_rows_flop(degree) if v_channels > 0 else 0
        rows_k += wigner_rows_flop(degree) if k_channels > 0 else 0
    of_edge = 3 * (k + v) * itemsize + 8 + 4 * max(itemsize, 4)
    forward = Cost(
        0,
        num_edges * (rows_k + rows_v + turn_k + turn_v + 2 * k + v + 10 * heads),
        num_edges * of_edge + num_nodes * ((k + v) * itemsize + 16),
    )
    backward = Cost(
        0,
        num_edges * (2 * rows + rows_k + 3 * turn_k + 2 * turn_v + 6 * k + 5 * v + 20 * heads),
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
    for name in DTYPES:
        types = signature(_transpose_kernel, constants, {"num_rows": "i32", "num_columns": "i32"}, f"*{name}")
        cases.append(CompileCase(f"transpose {name}", _transpose_kernel, types, constants, _TRANSPOSE_TILE.warps, NUM_STAGES))
    return cases


def _cases_in_frames(
    workload: str, name: str, num_nodes: int, num_edges: int, num_heads: int, num_degrees: int, channels: int
) -> list[CompileCase]:
    fiber = tuple((degree, channels) for degree in range(num_degrees))
    layout = frame_layout(num_heads, fiber, fiber)
    tile = _tile_in_frames(layout, num_nodes, num_edges, DTYPES[name])
    constants = _constants_in_frames(layout, tile) | {"SUM": sum_type(DTYPES[name])}
    common = dict.fromkeys(("angles", "table"), f"*{ROUNDINGS[name].sum_name}")
    common |= {"order": "*i64", "offsets": "*i64", "num_edges": "i32"}
    cases = []
    for direction, kernel in (("forward", _forward_in_frames_kernel), ("backward", _backward_in_frames_kernel)):
        types = signature(kernel, constants, common, f"*{name}")
        case_name = f"{direction} in frames {workload} {name}"
        cases.append(CompileCase(case_name, kernel, types, constants, tile.warps, NUM_STAGES))
    return cases
