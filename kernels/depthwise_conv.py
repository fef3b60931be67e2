"""The depthwise convolution and its first and second derivatives (formula: se3_fast/backends/dense/depthwise_conv.py).

    R_p = s T_p                                             [E, C], the radial weights of edges, on chip only
    y[k] = sum over edges to a node, runs (p, k), pairs l of  R_p b_p[l, k] x[source, l]
    b_p[l, k] = sum over terms of  coefficient Y[J]

s: [E, K] what the knots of the radial table count for each edge, T_p: [K, C] of each path, x: [N, components, C],
Y: [E, harmonics]; y as x. It is linear in each of x, Y, s and T, and so are its gradients, with g the gradient of y:

    dx[l] = sum over edges from a node of R_p b_p[l, k] g[k]           dR_p = sum over pairs of b_p[l, k] x[l] g[k]
    dY[J] = sum over terms of coefficient (sum over channels of R_p x[l] g[k])
    ds = sum over paths of dR_p T_p^T,   dT_p = s^T dR_p

ALONG: the derivative of the same along a direction (x', Y', s') of x, Y and s, by the rule of products; these are the gradients
of the gradients. dT is a product of matrices of PyTorch, for which dR is stored where it is wanted.

A program of the sums owns a component of a node and a block of channels, one of the gradients of edges all incoming edges of a
node; edges are walked over a block at a time. Nothing is added to by two programs.

Cost per edge at C = 64, K = 32, degree 1 (5 paths, 25 pairs): 20 kFLOP of products and 5 besides forward; every component makes
the R of its own paths, 11 products of 5 that differ.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .precision import add_product, padded, product_constants
from .resources import CompileCase, signature

_EDGES = 16
_MOST_CHANNELS, _FEWER_CHANNELS = 64, 32  # of a block; fewer where values, their gradients and derivatives fill the registers
_NUM_WARPS = 4
_NUM_STAGES = 1  # software pipelining would take shared memory for what comes from the caches

Runs = tuple[tuple[int, int, int, int], ...]
Pairs = tuple[tuple[int, int, int], ...]
Terms = tuple[tuple[int, float], ...]


class Couplings(NamedTuple):
    """What couples with what, as compile-time constants.

    Attributes:
        runs: path, component of the message, first and last + 1 of its pairs; ordered by path.
        pairs: component of the features, first and last + 1 of its terms.
        terms: harmonic and coefficient.
        num_paths: P.
        components_in: of the features.
        components_out: of the messages.
        harmonics: of an edge.
    """

    runs: Runs
    pairs: Pairs
    terms: Terms
    num_paths: int
    components_in: int
    components_out: int
    harmonics: int


class Rows(NamedTuple):
    """The tensors that have a row for each node or edge: x [N, components_in, C], Y [E, harmonics], s [E, K]."""

    features: Tensor
    harmonics: Tensor
    shares: Tensor


class Ends(NamedTuple):
    """Edges by the node at one of their ends, as :class:`se3_fast.graph.EdgeOrder`, and the node at the other.

    Attributes:
        order: [E].
        offsets: [N + 1].
        others: [E], the node at the other end of each edge.
    """

    order: Tensor
    offsets: Tensor
    others: Tensor


@triton.jit
def _element(harmonics, edge, is_edge, HARMONICS: tl.constexpr, TERMS: tl.constexpr, FIRST: tl.constexpr, STOP: tl.constexpr):
    """b of a pair, [EDGES]."""
    total = tl.zeros(edge.shape, harmonics.dtype.element_ty)
    for term in tl.static_range(FIRST, STOP):
        total += tl.load(harmonics + edge * HARMONICS + TERMS[term][0], mask=is_edge, other=0.0) * TERMS[term][1]
    return total


@triton.jit
def _weights(
    shares, table, edge, is_edge, channel, is_channel, path,
    PATHS: tl.constexpr, CHANNELS: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """R_p of some edges and channels, [EDGES, BLOCK]."""
    knot = tl.arange(0, WIDTH)
    share = tl.load(shares + (edge[:, None] * K + knot[None]), mask=is_edge[:, None] & (knot < K)[None], other=0.0)
    place = knot[:, None] * (PATHS * CHANNELS) + path * CHANNELS + channel[None]
    weights = tl.load(table + place, mask=(knot < K)[:, None] & is_channel[None], other=0.0)
    return add_product(share, weights, tl.zeros((edge.shape[0], channel.shape[0]), share.dtype), PRECISION, OPERAND)


@triton.jit
def _edges_from(start, stop, order, others, EDGES: tl.constexpr):
    """Numbers of some edges of a node, which of them there are, and the nodes at their other ends, [EDGES]."""
    place = start + tl.arange(0, EDGES)
    is_edge = place < stop
    edge = tl.load(order + place, mask=is_edge, other=0)
    return edge, is_edge, tl.load(others + edge, mask=is_edge, other=0)


@triton.jit
def _sums_kernel(
    sums, rows, direction, table, ends,
    RUNS: tl.constexpr, PAIRS: tl.constexpr, TERMS: tl.constexpr, PATHS: tl.constexpr, COMPONENTS_IN: tl.constexpr,
    COMPONENTS_OUT: tl.constexpr, HARMONICS: tl.constexpr, CHANNELS: tl.constexpr, K: tl.constexpr, ALONG: tl.constexpr,
    EDGES: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """y of a node's component and a block of channels, or y' along the direction."""
    features, harmonics, shares = rows
    features_dot, harmonics_dot, shares_dot = direction
    order, offsets, sources = ends
    node, component = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < CHANNELS
    total = tl.zeros((BLOCK,), SUM)
    stop = tl.load(offsets + node + 1)
    for start in range(tl.load(offsets + node), stop, EDGES):
        edge, is_edge, source = _edges_from(start, stop, order, sources, EDGES)
        is_value = is_edge[:, None] & is_channel[None]
        for run in tl.static_range(len(RUNS)):
            if component == RUNS[run][1]:
                path: tl.constexpr = RUNS[run][0]
                message = tl.zeros((EDGES, BLOCK), SUM)
                message_dot = tl.zeros((EDGES, BLOCK), SUM)
                for pair in tl.static_range(RUNS[run][2], RUNS[run][3]):
                    at = (source[:, None] * COMPONENTS_IN + PAIRS[pair][0]) * CHANNELS + channel[None]
                    x = tl.load(features + at, mask=is_value, other=0.0)
                    b = _element(harmonics, edge, is_edge, HARMONICS, TERMS, PAIRS[pair][1], PAIRS[pair][2])
                    message += b[:, None] * x
                    if ALONG:
                        b_dot = _element(harmonics_dot, edge, is_edge, HARMONICS, TERMS, PAIRS[pair][1], PAIRS[pair][2])
                        message_dot += b[:, None] * tl.load(features_dot + at, mask=is_value, other=0.0) + b_dot[:, None] * x
                weight = _weights(
                    shares, table, edge, is_edge, channel, is_channel, path, PATHS, CHANNELS, K, WIDTH, PRECISION, OPERAND
                )  # fmt: skip
                if ALONG:
                    weight_dot = _weights(
                        shares_dot, table, edge, is_edge, channel, is_channel, path, PATHS, CHANNELS, K, WIDTH, PRECISION, OPERAND
                    )  # fmt: skip
                    total += tl.sum(weight * message_dot + weight_dot * message, 0)
                else:
                    total += tl.sum(weight * message, 0)
    tl.store(sums + (node * COMPONENTS_OUT + component) * CHANNELS + channel, total, mask=is_channel)


@triton.jit
def _source_gradient_kernel(
    of_features, gradient, rows, direction, table, ends,
    RUNS: tl.constexpr, PAIRS: tl.constexpr, TERMS: tl.constexpr, PATHS: tl.constexpr, COMPONENTS_IN: tl.constexpr,
    COMPONENTS_OUT: tl.constexpr, HARMONICS: tl.constexpr, CHANNELS: tl.constexpr, K: tl.constexpr, ALONG: tl.constexpr,
    EDGES: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """dx of a node's component and a block of channels, or dx' along the direction; edges by their sources."""
    _, harmonics, shares = rows
    _, harmonics_dot, shares_dot = direction
    order, offsets, destinations = ends
    node, component = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_channel = channel < CHANNELS
    total = tl.zeros((BLOCK,), SUM)
    stop = tl.load(offsets + node + 1)
    for start in range(tl.load(offsets + node), stop, EDGES):
        edge, is_edge, destination = _edges_from(start, stop, order, destinations, EDGES)
        is_value = is_edge[:, None] & is_channel[None]
        for run in tl.static_range(len(RUNS)):
            for pair in tl.static_range(RUNS[run][2], RUNS[run][3]):
                if component == PAIRS[pair][0]:
                    path: tl.constexpr = RUNS[run][0]
                    at = (destination[:, None] * COMPONENTS_OUT + RUNS[run][1]) * CHANNELS + channel[None]
                    g = tl.load(gradient + at, mask=is_value, other=0.0)
                    b = _element(harmonics, edge, is_edge, HARMONICS, TERMS, PAIRS[pair][1], PAIRS[pair][2])
                    weight = _weights(
                        shares, table, edge, is_edge, channel, is_channel, path, PATHS, CHANNELS, K, WIDTH, PRECISION, OPERAND
                    )  # fmt: skip
                    if ALONG:
                        b_dot = _element(harmonics_dot, edge, is_edge, HARMONICS, TERMS, PAIRS[pair][1], PAIRS[pair][2])
                        weight_dot = _weights(
                            shares_dot, table, edge, is_edge, channel, is_channel, path, PATHS, CHANNELS, K, WIDTH, PRECISION,
                            OPERAND,
                        )  # fmt: skip
                        total += tl.sum((weight * b_dot[:, None] + weight_dot * b[:, None]) * g, 0)
                    else:
                        total += tl.sum(weight * b[:, None] * g, 0)
    tl.store(of_features + (node * COMPONENTS_IN + component) * CHANNELS + channel, total, mask=is_channel)


@triton.jit
def _add_terms(total, of_element, column, TERMS: tl.constexpr, FIRST: tl.constexpr, STOP: tl.constexpr):
    """The gradient of a pair's matrix element, [EDGES], added to those of its harmonics, [EDGES, COLUMNS]."""
    for term in tl.static_range(FIRST, STOP):
        total += tl.where((column == TERMS[term][0])[None], (of_element * TERMS[term][1])[:, None], 0.0)
    return total


@triton.jit
def _store_if(place, values, is_value, IS_WANTED: tl.constexpr):
    if IS_WANTED:
        tl.store(place, values, mask=is_value)


@triton.jit
def _edge_gradient_kernel(
    of_harmonics, of_shares, of_weights, of_weights_dot, gradient, rows, direction, table, ends,
    RUNS: tl.constexpr, PAIRS: tl.constexpr, TERMS: tl.constexpr, PATHS: tl.constexpr, COMPONENTS_IN: tl.constexpr,
    COMPONENTS_OUT: tl.constexpr, HARMONICS: tl.constexpr, CHANNELS: tl.constexpr, K: tl.constexpr, ALONG: tl.constexpr,
    WITH_WEIGHTS: tl.constexpr, COLUMNS: tl.constexpr, EDGES: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """dY and dh of a node's incoming edges, or dY' and dh'; dR, and dR', where the gradient of W is wanted."""
    features, harmonics, shares = rows
    features_dot, harmonics_dot, shares_dot = direction
    order, offsets, sources = ends
    node = tl.program_id(0).to(tl.int64)
    knot, column = tl.arange(0, WIDTH), tl.arange(0, COLUMNS)
    stop = tl.load(offsets + node + 1)
    for start in range(tl.load(offsets + node), stop, EDGES):
        edge, is_edge, source = _edges_from(start, stop, order, sources, EDGES)
        for_harmonics = tl.zeros((EDGES, COLUMNS), SUM)
        for_shares = tl.zeros((EDGES, WIDTH), SUM)
        for first in range(0, CHANNELS, BLOCK):
            channel = first + tl.arange(0, BLOCK)
            is_channel = channel < CHANNELS
            is_value = is_edge[:, None] & is_channel[None]
            for path in tl.static_range(PATHS):
                weight = _weights(
                    shares, table, edge, is_edge, channel, is_channel, path, PATHS, CHANNELS, K, WIDTH, PRECISION, OPERAND
                )  # fmt: skip
                weight_dot = weight
                if ALONG:
                    weight_dot = _weights(
                        shares_dot, table, edge, is_edge, channel, is_channel, path, PATHS, CHANNELS, K, WIDTH, PRECISION, OPERAND
                    )  # fmt: skip
                of_weight = tl.zeros((EDGES, BLOCK), SUM)
                of_weight_dot = tl.zeros((EDGES, BLOCK), SUM)
                for run in tl.static_range(len(RUNS)):
                    if RUNS[run][0] == path:
                        at = (node * COMPONENTS_OUT + RUNS[run][1]) * CHANNELS + channel
                        g = tl.load(gradient + at, mask=is_channel, other=0.0)[None]
                        for pair in tl.static_range(RUNS[run][2], RUNS[run][3]):
                            at_source = (source[:, None] * COMPONENTS_IN + PAIRS[pair][0]) * CHANNELS + channel[None]
                            x = tl.load(features + at_source, mask=is_value, other=0.0)
                            b = _element(harmonics, edge, is_edge, HARMONICS, TERMS, PAIRS[pair][1], PAIRS[pair][2])
                            of_weight += b[:, None] * x * g
                            if ALONG:
                                x_dot = tl.load(features_dot + at_source, mask=is_value, other=0.0)
                                b_dot = _element(harmonics_dot, edge, is_edge, HARMONICS, TERMS, PAIRS[pair][1], PAIRS[pair][2])
                                of_weight_dot += (b[:, None] * x_dot + b_dot[:, None] * x) * g
                                of_element = tl.sum((weight_dot * x + weight * x_dot) * g, 1)
                            else:
                                of_element = tl.sum(weight * x * g, 1)
                            for_harmonics = _add_terms(for_harmonics, of_element, column, TERMS, PAIRS[pair][1], PAIRS[pair][2])
                at_weight = knot[None] * (PATHS * CHANNELS) + path * CHANNELS + channel[:, None]
                transposed = tl.load(table + at_weight, mask=(knot < K)[None] & is_channel[:, None], other=0.0)
                for_shares = add_product(of_weight_dot if ALONG else of_weight, transposed, for_shares, PRECISION, OPERAND)
                at_edge = edge[:, None] * (PATHS * CHANNELS) + path * CHANNELS + channel[None]
                _store_if(of_weights + at_edge, of_weight, is_value, WITH_WEIGHTS)
                _store_if(of_weights_dot + at_edge, of_weight_dot, is_value, WITH_WEIGHTS and ALONG)
        tl.store(
            of_harmonics + (edge[:, None] * HARMONICS + column[None]),
            for_harmonics,
            mask=is_edge[:, None] & (column < HARMONICS)[None],
        )
        tl.store(of_shares + (edge[:, None] * K + knot[None]), for_shares, mask=is_edge[:, None] & (knot < K)[None])


def _block(channels: int, dtype: torch.dtype, has_more: bool) -> int:
    """Channels of a block; ``has_more``: gradients or derivatives beside the values."""
    most = _FEWER_CHANNELS if has_more else _MOST_CHANNELS
    return padded(channels, 16 if dtype == torch.float64 else most)


def _constants(couplings: Couplings, channels: int, width: int, dtype: torch.dtype, is_along: bool) -> dict[str, object]:
    return {
        "RUNS": couplings.runs,
        "PAIRS": couplings.pairs,
        "TERMS": couplings.terms,
        "PATHS": couplings.num_paths,
        "COMPONENTS_IN": couplings.components_in,
        "COMPONENTS_OUT": couplings.components_out,
        "HARMONICS": couplings.harmonics,
        "CHANNELS": channels,
        "K": width,
        "EDGES": _EDGES,
        "ALONG": is_along,
        "BLOCK": _block(channels, dtype, is_along),
        "WIDTH": padded(width),
        **product_constants(dtype),
    }


def sums(couplings: Couplings, rows: Rows, table: Tensor, ends: Ends, direction: Rows | None = None) -> Tensor:
    """y, [N, components_out, C], or its derivative along a direction of the rows; edges by destination."""
    num_nodes, _, channels = rows.features.shape
    result = rows.features.new_empty(num_nodes, couplings.components_out, channels)
    constants = _constants(couplings, channels, rows.shares.shape[1], result.dtype, direction is not None)
    grid = (num_nodes, couplings.components_out, triton.cdiv(channels, _block(channels, result.dtype, direction is not None)))
    arguments = (result, tuple(rows), tuple(direction or rows), table, tuple(ends))
    launch(_sums_kernel, grid, *arguments, num_warps=_NUM_WARPS, num_stages=_NUM_STAGES, **constants)
    return result


def source_gradient(
    couplings: Couplings, gradient: Tensor, rows: Rows, table: Tensor, ends: Ends, direction: Rows | None = None
) -> Tensor:
    """dx, [N, components_in, C], or its derivative along a direction; edges by source."""
    result = torch.empty_like(rows.features)
    num_nodes, _, channels = result.shape
    constants = _constants(couplings, channels, rows.shares.shape[1], result.dtype, direction is not None)
    grid = (num_nodes, couplings.components_in, triton.cdiv(channels, _block(channels, result.dtype, direction is not None)))
    arguments = (result, gradient, tuple(rows), tuple(direction or rows), table, tuple(ends))
    launch(_source_gradient_kernel, grid, *arguments, num_warps=_NUM_WARPS, num_stages=_NUM_STAGES, **constants)
    return result


class EdgeGradients(NamedTuple):
    """dY [E, harmonics], dh [E, K], and where the gradient of W is wanted dR and its derivative, [E, P C]; else None."""

    harmonics: Tensor
    shares: Tensor
    weights: Tensor | None
    weights_along: Tensor | None


def edge_gradients(
    couplings: Couplings,
    gradient: Tensor,
    rows: Rows,
    table: Tensor,
    ends: Ends,
    with_weights: bool,
    direction: Rows | None = None,
) -> EdgeGradients:
    """The gradients that belong to edges, or their derivatives along a direction; edges by destination."""
    num_nodes, _, channels = rows.features.shape
    of_harmonics, of_shares = torch.empty_like(rows.harmonics), torch.empty_like(rows.shares)
    is_along = direction is not None
    of_weights = rows.shares.new_empty(len(rows.shares), table.shape[1]) if with_weights else None
    of_weights_dot = torch.empty_like(of_weights) if of_weights is not None and is_along else None
    constants = _constants(couplings, channels, rows.shares.shape[1], table.dtype, is_along)
    stored = (of_shares if of_weights is None else of_weights, of_shares if of_weights_dot is None else of_weights_dot)
    arguments = (of_harmonics, of_shares, *stored, gradient, tuple(rows), tuple(direction or rows), table, tuple(ends))
    constants["BLOCK"] = _block(channels, table.dtype, has_more=True)
    more = {"WITH_WEIGHTS": with_weights, "COLUMNS": triton.next_power_of_2(couplings.harmonics)}
    launch(_edge_gradient_kernel, (num_nodes,), *arguments, num_warps=_NUM_WARPS, num_stages=_NUM_STAGES, **more, **constants)
    return EdgeGradients(of_harmonics, of_shares, of_weights, of_weights_dot)


def cost(counts: tuple[int, int], widths: tuple[int, int], couplings: tuple[int, int], itemsize: int) -> tuple[Cost, Cost]:
    """The work of the convolution, forward and backward, without that which components do twice.

    Args:
        counts: N and E.
        widths: C and K.
        couplings: paths and pairs.
        itemsize: bytes of a value.
    """
    (num_nodes, num_edges), (channels, width), (paths, pairs) = counts, widths, couplings
    products, sums_of_pairs = 2 * num_edges * width * paths * channels, 4 * num_edges * pairs * channels
    rows = itemsize * (num_nodes * channels + num_edges * width)
    return Cost(products, sums_of_pairs, 2 * rows), Cost(4 * products, 3 * sums_of_pairs, 4 * rows)


def compile_cases() -> list[CompileCase]:
    """All kernels for a layer of 64 channels of the degrees 0 and 1, five paths, with and without a direction.

    In float32, which force fields are trained and run in. In float64 the kernels spill registers: that is for comparisons.
    """
    vector = range(1, 4)
    pairs = [(0, 0, 1), *((row, row, row + 1) for row in vector), *((0, row, row + 1) for row in vector)]
    pairs += [*((row, 0, 1) for row in vector), *((row, 4 + row, 6 + row) for _ in vector for row in vector)]
    runs = [(0, 0, 0, 1), (1, 0, 1, 4), *((2, row, 3 + row, 4 + row) for row in vector)]
    runs += [*((3, row, 6 + row, 7 + row) for row in vector), *((4, row, 7 + 3 * row, 10 + 3 * row) for row in vector)]
    terms = tuple((number, 1.5) for number in range(9))
    couplings = Couplings(tuple(runs), tuple(pairs), terms, num_paths=5, components_in=4, components_out=4, harmonics=9)
    integers = ("*i64", "*i64", "*i64")
    types = {"ends": integers, "rows": ("*fp32",) * 3, "direction": ("*fp32",) * 3}
    cases = []
    for is_along in (False, True):
        constants = _constants(couplings, 64, 32, torch.float32, is_along)
        suffix = f"{'along ' if is_along else ''}fp32"
        for title, kernel in (("sums", _sums_kernel), ("source gradient", _source_gradient_kernel)):
            typed = signature(kernel, constants, types, "*fp32")
            cases.append(CompileCase(f"{title} {suffix}", kernel, typed, constants, _NUM_WARPS, _NUM_STAGES))
        more = constants | {"BLOCK": _block(64, torch.float32, has_more=True), "WITH_WEIGHTS": True, "COLUMNS": 16}
        typed = signature(_edge_gradient_kernel, more, types, "*fp32")
        cases.append(CompileCase(f"edge gradient {suffix}", _edge_gradient_kernel, typed, more, _NUM_WARPS, _NUM_STAGES))
    return cases
