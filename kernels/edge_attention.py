"""Multi-head attention over the incoming edges of each node.

    s[e, h] = <key[e, h], query[n, h]> c,   c = 1 / sqrt(H K),   p = softmax of s over the edges e into n
    out[n, h] = sum_e p[e, h] value[e, h]

    dp = <g[n, h], value[e, h]>,   ds = p (dp - sum_e p dp),   g: the gradient of out
    dvalue = p g,   dkey = c ds query,   dquery = sum_e c ds key

value is [E, H, V], key [E, H, K], query [N, H, K], out [N, H, V]; edges come grouped by destination (``order``, ``offsets``). A
program owns a node and a group of heads, and walks over the node's incoming edges in blocks: the gradients of an edge are written
once, by the one program that meets it, and every sum has a fixed order. Sums are float32 (float64 for float64 operands).

``attend`` takes the messages as value and key; :mod:`se3_fast.kernels.edge_attention_in_frames` aligned ones.

forward: one walk, with an online softmax: sums are relative to the largest score so far, and shrink when a larger one comes.
backward: two walks. The first finds the statistics of the softmax and sum_e p dp, the second writes the gradients. Only the
operands are kept for it. Keeping out and the log-sum-exp would save the first walk, which is cheap, as it leaves its blocks in the
caches for the second (2 KB a node at ``qm9``, 77 KB at ``protein_full``). But it would take N H (V + 1) values of memory, a quarter
of the edges' own in ``qm9``, and digits: with out rounded to half precision, ds of a node's only edge is the rounding error instead
of 0, and exp(s - lse) is off by the rounding error of lse, 6e-8 |s|.

Cost with values of b bytes. Per edge: forward H (2K + 2V + 10) FLOP, H (K + V) b + 8 bytes read; backward H (7K + 5V + 20) FLOP, as
many bytes read (twice, but from memory once) and H (K + V) b written. Per node: forward H (K + V) b + 16 bytes, backward
H (2K + V) b + 16. Bound by memory, at about 1 FLOP per byte. With the node's share, per edge:
    ``qm9`` (H = 8, K = V = 32, half precision, 2 edges a node): forward 1.5 KB, backward 2.8 KB
    ``protein_full`` (H = 4, K = V = 8, float32, 299 edges a node): forward 0.27 KB, backward 0.52 KB
:func:`cost` counts for any sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .precision import DTYPES, sum_type
from .resources import CompileCase, signature


@triton.jit
def _features(heads, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Where the features of ``heads`` lie in the row of a node or an edge, and which of them exist: [heads, BLOCK_WIDTH]."""
    column = tl.arange(0, BLOCK_WIDTH)[None]
    return heads[:, None] * WIDTH + column, (heads[:, None] < HEADS) & (column < WIDTH)


@triton.jit
def edges_of_block(order, first, stop, BLOCK_EDGES: tl.constexpr):
    """A block of a node's incoming edges, and which of them exist: [edges]."""
    place = first + tl.arange(0, BLOCK_EDGES)
    is_edge = place < stop
    return tl.load(order + place, mask=is_edge, other=0), is_edge


@triton.jit
def weigh(scores, largest):
    """exp(s - the new largest score) [edges, heads], the new largest score, and how far earlier sums shrink, both [heads]."""
    larger = tl.maximum(largest, tl.max(scores, 0))
    return tl.exp(scores - larger[None]), larger, tl.exp(largest - larger)


@triton.jit
def divide(sums, total):
    """The quotient, rounded correctly in float32, too: the only edge of a node has no gradient through its score. A GPU's own
    quotient may be off by two units in the last place."""
    result = sums / total
    if tl.float32 == sums.dtype:
        result = tl.math.div_rn(sums, total)
    return result


@triton.jit
def _forward_kernel(
    value, key, query, order, offsets, output,
    HEADS: tl.constexpr, VALUE_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_KEY: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    v_place, is_v = _features(heads, HEADS, VALUE_WIDTH, BLOCK_VALUE)
    k_place, is_k = _features(heads, HEADS, KEY_WIDTH, BLOCK_KEY)
    start, stop = tl.load(offsets + node), tl.load(offsets + node + 1)
    q = tl.load(query + node * (HEADS * KEY_WIDTH) + k_place, mask=is_k, other=0.0).to(SUM) * SCALE
    largest = tl.full((BLOCK_HEADS,), float("-inf"), SUM)
    total = tl.zeros((BLOCK_HEADS,), SUM)
    attended = tl.zeros((BLOCK_HEADS, BLOCK_VALUE), SUM)
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        edge, is_edge = edge[:, None, None], is_edge[:, None, None]
        k = tl.load(key + edge * (HEADS * KEY_WIDTH) + k_place[None], mask=is_edge & is_k[None], other=0.0).to(SUM)
        v = tl.load(value + edge * (HEADS * VALUE_WIDTH) + v_place[None], mask=is_edge & is_v[None], other=0.0).to(SUM)
        scores = tl.sum(tl.where(is_edge, k * q[None], float("-inf")), 2)  # [edges, heads]
        weights, largest, shrink = weigh(scores, largest)
        total = total * shrink + tl.sum(weights, 0)
        attended = attended * shrink[:, None] + tl.sum(weights[:, :, None] * v, 0)
    attended /= tl.where(start < stop, total, 1.0)[:, None]
    tl.store(output + node * (HEADS * VALUE_WIDTH) + v_place, attended.to(output.dtype.element_ty), mask=is_v)


@triton.jit
def _backward_kernel(
    value, key, query, order, offsets, gradient, value_gradient, key_gradient, query_gradient,
    HEADS: tl.constexpr, VALUE_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_KEY: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    v_place, is_v = _features(heads, HEADS, VALUE_WIDTH, BLOCK_VALUE)
    k_place, is_k = _features(heads, HEADS, KEY_WIDTH, BLOCK_KEY)
    start, stop = tl.load(offsets + node), tl.load(offsets + node + 1)
    q = tl.load(query + node * (HEADS * KEY_WIDTH) + k_place, mask=is_k, other=0.0).to(SUM) * SCALE
    g = tl.load(gradient + node * (HEADS * VALUE_WIDTH) + v_place, mask=is_v, other=0.0).to(SUM)
    largest = tl.full((BLOCK_HEADS,), float("-inf"), SUM)
    total = tl.zeros((BLOCK_HEADS,), SUM)
    mean = tl.zeros((BLOCK_HEADS,), SUM)  # sum of p dp
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        edge, is_edge = edge[:, None, None], is_edge[:, None, None]
        k = tl.load(key + edge * (HEADS * KEY_WIDTH) + k_place[None], mask=is_edge & is_k[None], other=0.0).to(SUM)
        v = tl.load(value + edge * (HEADS * VALUE_WIDTH) + v_place[None], mask=is_edge & is_v[None], other=0.0).to(SUM)
        scores = tl.sum(tl.where(is_edge, k * q[None], float("-inf")), 2)
        weights, largest, shrink = weigh(scores, largest)
        total = total * shrink + tl.sum(weights, 0)
        mean = mean * shrink + tl.sum(weights * tl.sum(v * g[None], 2), 0)
    total = tl.where(start < stop, total, 1.0)
    mean = divide(mean, total)
    q_sum = tl.zeros((BLOCK_HEADS, BLOCK_KEY), SUM)
    for first in range(start, stop, BLOCK_EDGES):
        edge, is_edge = edges_of_block(order, first, stop, BLOCK_EDGES)
        edge, is_edge = edge[:, None, None], is_edge[:, None, None]
        k_rows, v_rows = edge * (HEADS * KEY_WIDTH) + k_place[None], edge * (HEADS * VALUE_WIDTH) + v_place[None]
        k = tl.load(key + k_rows, mask=is_edge & is_k[None], other=0.0).to(SUM)
        v = tl.load(value + v_rows, mask=is_edge & is_v[None], other=0.0).to(SUM)
        scores = tl.sum(tl.where(is_edge, k * q[None], float("-inf")), 2)
        weights = tl.exp(scores - largest[None]) / total[None]
        score_gradient = (weights * (tl.sum(v * g[None], 2) - mean[None]))[:, :, None]
        q_sum += tl.sum(score_gradient * k, 0)
        v_gradient = (weights[:, :, None] * g[None]).to(value_gradient.dtype.element_ty)
        k_gradient = (score_gradient * q[None]).to(key_gradient.dtype.element_ty)
        tl.store(value_gradient + v_rows, v_gradient, mask=is_edge & is_v[None])
        tl.store(key_gradient + k_rows, k_gradient, mask=is_edge & is_k[None])
    q_sum = (q_sum * SCALE).to(query_gradient.dtype.element_ty)
    tl.store(query_gradient + node * (HEADS * KEY_WIDTH) + k_place, q_sum, mask=is_k)


def attend(value: Tensor, key: Tensor, query: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
    """Attention with the heads' features side by side.

    Args:
        value: [E, H, V].
        key: [E, H, K].
        query: [N, H, K].
        order: [E] int64, the edges grouped by destination.
        offsets: [N + 1] int64; the incoming edges of node n are ``order[offsets[n]:offsets[n + 1]]``.

    Returns:
        [N, H, V] in the dtype of ``value``; 0 for a node without incoming edges.
    """
    output = value.new_empty(len(query), *value.shape[1:])
    if len(query) > 0:
        chosen = _launch(value, key, query)
        launch(_forward_kernel, chosen.grid,
            value.contiguous(), key.contiguous(), query.contiguous(), order, offsets, output,
            **chosen.constants, num_warps=chosen.warps, num_stages=NUM_STAGES,
        )  # fmt: skip
    return output


def attend_backward(
    value: Tensor, key: Tensor, query: Tensor, order: Tensor, offsets: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of value, key and query, each in its dtype.

    Args:
        value: [E, H, V].
        key: [E, H, K].
        query: [N, H, K].
        order: [E] int64, the edges grouped by destination.
        offsets: [N + 1] int64, where the edges of each node begin.
        gradient: [N, H, V], that of the output.
    """
    of_value, of_key, of_query = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (value, key, query))
    if len(query) > 0:
        chosen = _launch(value, key, query)
        launch(_backward_kernel, chosen.grid,
            value.contiguous(), key.contiguous(), query.contiguous(), order, offsets, gradient.contiguous(),
            of_value, of_key, of_query,
            **chosen.constants, num_warps=chosen.warps, num_stages=NUM_STAGES,
        )  # fmt: skip
    return of_value, of_key, of_query


NUM_STAGES = 1  # only loops with matrix products would be pipelined
_TILE_VALUES = 2048
_VALUES_PER_THREAD = 16
SECTOR_BYTES = 32


class Launch(NamedTuple):
    """How a kernel is launched: a program per node and group of heads."""

    grid: tuple[int, int]
    constants: dict[str, object]
    warps: int


def _launch(value: Tensor, key: Tensor, query: Tensor) -> Launch:
    num_nodes, num_heads, key_width = query.shape
    value_width = value.shape[2]
    is_double = torch.float64 in (value.dtype, key.dtype, query.dtype)
    dtype = torch.float64 if is_double else min(value.dtype, key.dtype, key=lambda dtype: dtype.itemsize)
    tile = _tile(num_nodes, len(value), num_heads, (value_width, key_width), dtype)
    constants = _constants(tile, num_heads, value_width, key_width) | {"SUM": sum_type(dtype)}
    return Launch((num_nodes, triton.cdiv(num_heads, tile.heads)), constants, tile.warps)


def _constants(tile: AttentionTile, num_heads: int, value_width: int, key_width: int) -> dict[str, object]:
    return {
        "HEADS": num_heads,
        "VALUE_WIDTH": value_width,
        "KEY_WIDTH": key_width,
        "SCALE": 1.0 / math.sqrt(num_heads * key_width),
        "BLOCK_EDGES": tile.edges,
        "BLOCK_HEADS": tile.heads,
        "BLOCK_VALUE": triton.next_power_of_2(value_width),
        "BLOCK_KEY": triton.next_power_of_2(key_width),
    }


class AttentionTile(NamedTuple):
    """Edges and heads of a program's tile, and its warps."""

    edges: int
    heads: int
    warps: int


def _tile(num_nodes: int, num_edges: int, num_heads: int, widths: tuple[int, int], dtype: torch.dtype) -> AttentionTile:
    """The tile [edges, heads, features] of a program.

    2,048 values on 4 warps are 16 a thread, with which the backward kernel does not spill. Features take what they need. Edges come
    next, as many as a node has on average: the fewer heads a program has, the more programs there are, which counts where nodes are
    few and have many edges (``protein_full``: 300). But what a program reads of an edge should fill the sectors of memory that it
    comes from, so narrow heads stay together. Heads then take what is left: all 8 in ``qm9``, where a node has 2 edges.

    Args:
        num_nodes: N.
        num_edges: E.
        num_heads: H.
        widths: V and K.
        dtype: of the values; float64 where anything is.
    """
    all_heads = triton.next_power_of_2(num_heads)
    room = max(_TILE_VALUES // triton.next_power_of_2(max(widths)), 1)  # for edges x heads
    fewest_heads = triton.next_power_of_2(triton.cdiv(SECTOR_BYTES, min(widths) * dtype.itemsize))
    fewest_heads = min(fewest_heads, all_heads, room)
    edges = min(triton.next_power_of_2(max(triton.cdiv(num_edges, num_nodes), 1)), room // fewest_heads)
    heads = min(room // edges, all_heads)
    values = edges * heads * triton.next_power_of_2(max(widths))
    return AttentionTile(edges, heads, min(max(values // (_VALUES_PER_THREAD * 32), 1), 8))


def cost(num_nodes: int, num_edges: int, num_heads: int, value_width: int, key_width: int, itemsize: int) -> tuple[Cost, Cost]:
    """The work of :func:`attend` and of :func:`attend_backward`.

    Args:
        num_nodes: N.
        num_edges: E.
        num_heads: H.
        value_width: V.
        key_width: K.
        itemsize: bytes of a value.
    """
    v, k = num_heads * value_width, num_heads * key_width
    forward = Cost(
        0,
        num_edges * (2 * k + 2 * v + 10 * num_heads),
        num_edges * ((k + v) * itemsize + 8) + num_nodes * ((k + v) * itemsize + 16),
    )
    backward = Cost(
        0,
        num_edges * (7 * k + 5 * v + 20 * num_heads),
        num_edges * (2 * (k + v) * itemsize + 8) + num_nodes * ((2 * k + v) * itemsize + 16),
    )
    return forward, backward


WORKLOADS = {
    "qm9": (4344, 9000, 8, 4, 16),
    "protein_full": (300, 89700, 4, 2, 8),
    "protein_wide": (300, 25000, 4, 2, 32),
}
"""Nodes, edges, heads, degrees, and the channels of keys and of values in each."""


def compile_cases() -> list[CompileCase]:
    """All kernels at the launches of the workloads, by dtype."""
    cases = []
    for workload, sizes in WORKLOADS.items():
        for name in DTYPES:
            cases += _cases(workload, name, *sizes)
    return cases


def _cases(
    workload: str, name: str, num_nodes: int, num_edges: int, num_heads: int, num_degrees: int, channels: int
) -> list[CompileCase]:
    width = num_degrees**2 * channels // num_heads
    tile = _tile(num_nodes, num_edges, num_heads, (width, width), DTYPES[name])
    constants = _constants(tile, num_heads, width, width) | {"SUM": sum_type(DTYPES[name])}
    cases = []
    for direction, kernel in (("forward", _forward_kernel), ("backward", _backward_kernel)):
        types = signature(kernel, constants, {"order": "*i64", "offsets": "*i64"}, f"*{name}")
        cases.append(CompileCase(f"{direction} {workload} {name}", kernel, types, constants, tile.warps, NUM_STAGES))
    return cases
