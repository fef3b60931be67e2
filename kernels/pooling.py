"""Maximum or mean over the nodes of each graph: one launch each way, without atomics.

    max: out[b, f] = max over the nodes n of graph b of x[n, f];   mean: the sum over them divided by their number

x: [N, F], the nodes of a graph one after the other; graph b has the sizes[b] nodes before ends[b]; out: [B, F], 0 for a graph
without nodes. Among tied nodes the first wins; a NaN counts as larger than any number, so that it shows.

Backward: dx[n, f] = g[b, f] for the node that won, which the forward pass writes down, and 0 for the others; or g[b, f] / sizes[b].

A program has one graph and a block of features and walks over the nodes; in the backward pass several share the nodes of a graph.

Cost: one operation per value of x; x read once and dx written once. Bound by memory; a batch of few large graphs has few programs
in the forward pass.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .precision import DTYPES, sum_type
from .resources import CompileCase, signature

_NODES, _FEATURES = 16, 64  # a tile, 8 values a thread
_WARPS = 4
_BACKWARD_PROGRAMS = 1024  # that fill a large GPU: small batches of large graphs share the nodes of a graph
_NONE = tl.constexpr(2**62)  # larger than any node number


@triton.jit
def _forward_kernel(
    feature, sizes, ends, output, winners, num_features, IS_MAX: tl.constexpr, NODES: tl.constexpr, FEATURES: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    graph = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    is_feature = number < num_features
    stop, size = tl.load(ends + graph), tl.load(sizes + graph)
    start = stop - size
    place = graph * num_features + number
    if IS_MAX:
        largest = tl.full((FEATURES,), float("-inf"), SUM)
        winner = tl.full((FEATURES,), _NONE, tl.int64)
        for first in range(start, stop, NODES):
            node = first + tl.arange(0, NODES).to(tl.int64)
            is_value = (node < stop)[:, None] & is_feature[None]
            values = tl.load(feature + node[:, None] * num_features + number[None], mask=is_value, other=0.0).to(SUM)
            is_nan = (values != values) & is_value
            block_nan = tl.min(tl.where(is_nan, node[:, None], _NONE), 0)
            block_largest = tl.max(tl.where(is_value & (values == values), values, float("-inf")), 0)
            is_largest = is_value & (values == block_largest[None])
            block_winner = tl.min(tl.where(is_largest, node[:, None], _NONE), 0)
            has_nan = block_nan < _NONE
            was_nan = largest != largest
            # Nothing beats a NaN; an equal value does not beat an earlier one, but a first value does beat no value.
            is_better = ((block_largest > largest) | (winner == _NONE) | has_nan) & (was_nan == 0)
            winner = tl.where(is_better, tl.where(has_nan, block_nan, block_winner), winner)
            largest = tl.where(is_better, tl.where(has_nan, float("nan"), block_largest), largest)
        result = tl.where(winner == _NONE, 0.0, largest)
        tl.store(winners + place, winner, mask=is_feature)
    else:
        total = tl.zeros((FEATURES,), SUM)
        for first in range(start, stop, NODES):
            node = first + tl.arange(0, NODES).to(tl.int64)
            is_value = (node < stop)[:, None] & is_feature[None]
            values = tl.load(feature + node[:, None] * num_features + number[None], mask=is_value, other=0.0)
            total += tl.sum(values.to(SUM), 0)
        result = total / tl.maximum(size, 1).to(SUM)
    tl.store(output + place, result.to(output.dtype.element_ty), mask=is_feature)


@triton.jit
def _backward_kernel(
    gradient, sizes, ends, winners, result, num_features, IS_MAX: tl.constexpr, NODES: tl.constexpr, FEATURES: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    graph = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    is_feature = number < num_features
    stop, size = tl.load(ends + graph), tl.load(sizes + graph)
    start = stop - size
    place = graph * num_features + number
    of_output = tl.load(gradient + place, mask=is_feature, other=0.0).to(SUM)
    share = of_output / tl.maximum(size, 1).to(SUM)
    winner = tl.load(winners + place, mask=is_feature, other=0) if IS_MAX else number
    for first in range(start + tl.program_id(2) * NODES, stop, tl.num_programs(2) * NODES):
        node = first + tl.arange(0, NODES).to(tl.int64)
        is_value = (node < stop)[:, None] & is_feature[None]
        values = tl.where(node[:, None] == winner[None], of_output[None], 0.0) if IS_MAX else (node[:, None] * 0 + share[None])
        target = result + node[:, None] * num_features + number[None]
        tl.store(target, values.to(result.dtype.element_ty), mask=is_value)


def forward(feature: Tensor, sizes: Tensor, ends: Tensor, is_max: bool) -> tuple[Tensor, Tensor]:
    """Pool.

    Args:
        feature: [N, F], contiguous.
        sizes: [B] int64, nodes of each graph; they add up to N.
        ends: [B] int64, their cumulative sums.
        is_max: the maximum; otherwise the mean.

    Returns:
        [B, F] in the dtype of ``feature``; and, of a maximum, the number of the node that has it, [B, F] int64.
    """
    num_graphs, num_features = len(sizes), feature.shape[1]
    output = feature.new_empty(num_graphs, num_features)
    winners = torch.empty(num_graphs if is_max else 0, num_features, dtype=torch.int64, device=feature.device)
    if output.numel() > 0:
        launch(
            _forward_kernel, (num_graphs, triton.cdiv(num_features, _FEATURES)),
            feature, sizes, ends, output, winners, num_features, **_constants(feature.dtype, is_max), num_warps=_WARPS,
        )  # fmt: skip
    return output, winners


def backward(gradient: Tensor, sizes: Tensor, ends: Tensor, winners: Tensor, num_nodes: int, is_max: bool) -> Tensor:
    """Gradient of the features, [N, F].

    Args:
        gradient: [B, F] of the output, contiguous.
        sizes: as in :func:`forward`.
        ends: as in :func:`forward`.
        winners: of :func:`forward`.
        num_nodes: N.
        is_max: as in :func:`forward`.
    """
    num_graphs, num_features = gradient.shape
    result = gradient.new_empty(num_nodes, num_features)
    if result.numel() > 0:
        blocks = triton.cdiv(num_features, _FEATURES)
        shares = max(1, min(triton.cdiv(num_nodes, num_graphs * _NODES), _BACKWARD_PROGRAMS // (num_graphs * blocks)))
        launch(
            _backward_kernel, (num_graphs, blocks, shares),
            gradient, sizes, ends, winners, result, num_features, **_constants(gradient.dtype, is_max), num_warps=_WARPS,
        )  # fmt: skip
    return result


def _constants(dtype: torch.dtype, is_max: bool) -> dict[str, object]:
    return {"IS_MAX": is_max, "NODES": _NODES, "FEATURES": _FEATURES, "SUM": sum_type(dtype)}


def cost(num_nodes: int, num_graphs: int, num_features: int, itemsize: int, is_max: bool) -> tuple[Cost, Cost]:
    """The work of a launch, forward and backward.

    Args:
        num_nodes: N.
        num_graphs: B.
        num_features: F.
        itemsize: bytes of a value.
        is_max: whether it is a maximum, whose winners are written down.
    """
    values, pooled = num_nodes * num_features, num_graphs * num_features
    in_bytes = values * itemsize + pooled * (itemsize + (8 if is_max else 0)) + 16 * num_graphs
    return Cost(0, values, in_bytes), Cost(0, 0 if is_max else pooled, in_bytes)


def compile_cases() -> list[CompileCase]:
    """Both kernels, maximum and mean, by dtype."""
    cases = []
    tables = dict.fromkeys(("sizes", "ends", "winners"), "*i64") | {"num_features": "i32"}
    for name, dtype in DTYPES.items():
        for kind, is_max in (("max", True), ("mean", False)):
            for direction, kernel in (("forward", _forward_kernel), ("backward", _backward_kernel)):
                constants = _constants(dtype, is_max)
                types = signature(kernel, constants, tables, f"*{name}")
                cases.append(CompileCase(f"{direction} {kind} {name}", kernel, types, constants, _WARPS, num_stages=3))
    return cases
