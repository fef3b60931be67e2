"""Operations on the edges and incoming edges of a graph; their names are ``<operand>_<operation>[_<operand>][_<reduction>]``.

Operands: ``u`` (sources, [N, ...]), ``v`` (destinations, [N, ...]), ``e`` (edges, [E, ...]). Of two operands the feature axes are
aligned at the end and broadcast. Everything can be differentiated, any number of times.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from se3_fast.compat.message_passing.function import BINARY_OPERATIONS, TARGETS
from se3_fast.graph import Graph, as_graph

REDUCTIONS = ("sum", "mean", "max", "min")
ALL = "__ALL__"
"""All nodes, or all edges."""

_NAMES = {"u": "source", "v": "destination", "e": "edge"}


def gsddmm(
    g: Any,
    op: str,
    lhs_data: Tensor | None,
    rhs_data: Tensor | None,
    lhs_target: str = "u",
    rhs_target: str = "v",
) -> Tensor:
    """Two operands combined on every edge.

    Args:
        g: the graph.
        op: ``add``, ``sub``, ``mul``, ``div``, ``dot`` (over the last axis, which stays with size 1), ``copy_lhs`` or ``copy_rhs``.
        lhs_data: the left operand; None for ``copy_rhs``.
        rhs_data: the right operand; None for ``copy_lhs``.
        lhs_target: where the left one is, ``u``, ``v`` or ``e``.
        rhs_target: where the right one is.

    Returns:
        [E, ...].

    Raises:
        ValueError: for another ``op`` or target, or an operand of another number of rows than nodes or edges.
    """
    graph = as_graph(g)
    if op in ("copy_lhs", "copy_rhs"):
        data, target = (lhs_data, lhs_target) if op == "copy_lhs" else (rhs_data, rhs_target)
        return _on_edges(graph, data, target)
    if op not in BINARY_OPERATIONS:
        raise ValueError(f"op: expected one of {', '.join(BINARY_OPERATIONS)}, copy_lhs, copy_rhs, got {op!r}")
    left, right = _on_edges(graph, lhs_data, lhs_target), _on_edges(graph, rhs_data, rhs_target)
    if op == "dot":
        if left.ndim == right.ndim == 1:
            return left * right
        left, right = _aligned(left, right)
        return (left * right).sum(-1, keepdim=True)
    left, right = _aligned(left, right)
    operations: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "div": operator.truediv,
    }
    return operations[op](left, right)


def gspmm(g: Any, op: str, reduce_op: str, lhs_data: Tensor | None, rhs_data: Tensor | None) -> Tensor:
    """What the sources (left operand) and the edges (right operand) combine to, reduced over each node's incoming edges.

    Args:
        g: the graph.
        op: as for :func:`gsddmm`.
        reduce_op: ``sum``, ``mean``, ``max`` or ``min``.
        lhs_data: [N, ...]; None for ``copy_rhs``.
        rhs_data: [E, ...]; None for ``copy_lhs``.

    Returns:
        [N, ...]; nodes without incoming edges have 0, or the infinity of no maximum and no minimum; 0 in a graph without any edge.

    Raises:
        ValueError: for another ``op`` or ``reduce_op``, or an operand of another number of rows.
    """
    graph = as_graph(g)
    messages = gsddmm(graph, op, lhs_data, rhs_data, "u", "e")
    found = reduce_groups(messages, graph.dst, graph.num_nodes(), reduce_op)
    return found if len(messages) else torch.zeros_like(found)


def reduce_groups(values: Tensor, group: Tensor, num_groups: int, operation: str) -> Tensor:
    """Values [M, ...] of the groups [M] reduced to [G, ...]; an empty group has 0, or an infinity for ``max`` and ``min``.

    Raises:
        ValueError: for another ``operation``.
    """
    if operation not in REDUCTIONS:
        raise ValueError(f"reduce_op: expected one of {', '.join(REDUCTIONS)}, got {operation!r}")
    if operation in ("max", "min"):
        return _extreme(values, group, num_groups, operation)
    total = values.new_zeros(num_groups, *values.shape[1:]).index_add(0, group, values)
    if operation == "sum":
        return total
    counts = torch.bincount(group, minlength=num_groups).clamp(min=1)
    return total / counts.to(total.dtype).view(-1, *[1] * (values.ndim - 1))


def _extreme(values: Tensor, group: Tensor, num_groups: int, operation: str) -> Tensor:
    """By the number of the first value that is the extreme one, so that gradients of every order go to it."""
    sign = 1 if operation == "max" else -1
    empty = (
        -sign * torch.inf
        if values.is_floating_point()
        else (torch.iinfo(values.dtype).min if sign > 0 else torch.iinfo(values.dtype).max)
    )
    if len(values) == 0:
        return values.new_full((num_groups, *values.shape[1:]), empty)
    rows = group.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    shape = (num_groups, *values.shape[1:])
    with torch.no_grad():
        best = values.new_full(shape, empty).scatter_reduce(0, rows, values, f"a{operation}")
        is_best = (values == best.gather(0, rows)) | values.isnan()
        numbers = torch.arange(len(values), device=values.device).view(-1, *[1] * (values.ndim - 1)).expand_as(values)
        numbers = numbers.where(is_best, len(values))
        first = numbers.new_full(shape, len(values)).scatter_reduce(0, rows, numbers, "amin")
    return values.gather(0, first.clamp(max=len(values) - 1)).masked_fill(first == len(values), empty)


def edge_softmax(graph: Any, logits: Tensor, eids: Tensor | str = ALL, norm_by: str = "dst") -> Tensor:
    """Softmax over the incoming edges of each node, or over the outgoing ones.

    Args:
        graph: the graph.
        logits: [E, ...], or of the edges ``eids``.
        eids: the edges that there are; default: all.
        norm_by: ``dst`` or ``src``: over the edges into, or out of, each node.

    Returns:
        As ``logits``.

    Raises:
        ValueError: for another ``norm_by`` or number of rows.
    """
    if norm_by not in ("dst", "src"):
        raise ValueError(f"norm_by: expected 'dst' or 'src', got {norm_by!r}")
    graph = as_graph(graph)
    node = graph.dst if norm_by == "dst" else graph.src
    if not isinstance(eids, str):
        node = node[eids]
    if len(logits) != len(node):
        raise ValueError(f"logits: expected a row for each of {len(node)} edges, got {len(logits)}")
    largest = reduce_groups(logits.detach(), node, graph.num_nodes(), "max")
    weights = (logits - largest.index_select(0, node)).exp()
    return weights / reduce_groups(weights, node, graph.num_nodes(), "sum").index_select(0, node)


def segment_reduce(seglen: Tensor, value: Tensor, reducer: str = "sum") -> Tensor:
    """Consecutive rows reduced: ``value`` [M, ...] in segments of ``seglen`` [B] rows to [B, ...], 0 for an empty segment.

    Raises:
        ValueError: if the lengths do not add up to M, or for another ``reducer``.
    """
    if int(seglen.sum()) != len(value):
        raise ValueError(f"seglen: expected lengths that add up to {len(value)}, got {int(seglen.sum())}")
    segment = torch.arange(len(seglen), device=value.device).repeat_interleave(seglen.to(value.device))
    reduced = reduce_groups(value, segment, len(seglen), reducer)
    is_empty = (seglen == 0).to(value.device).view(-1, *[1] * (value.ndim - 1))
    return reduced.masked_fill(is_empty, 0)


def segment_softmax(seglen: Tensor, value: Tensor) -> Tensor:
    """Softmax over the consecutive rows of each segment, [M, ...]."""
    segment = torch.arange(len(seglen), device=value.device).repeat_interleave(seglen.to(value.device))
    weights = (value - segment_reduce(seglen, value.detach(), "max").index_select(0, segment)).exp()
    return weights / segment_reduce(seglen, weights, "sum").index_select(0, segment)


def _on_edges(graph: Graph, data: Tensor | None, target: str) -> Tensor:
    if target not in TARGETS:
        raise ValueError(f"target: expected 'u', 'v' or 'e', got {target!r}")
    expected = graph.num_edges() if target == "e" else graph.num_nodes()
    if data is None or data.ndim == 0 or len(data) != expected:
        came = "none" if data is None else f"shape {list(data.shape)}"
        raise ValueError(f"{_NAMES[target]} data: expected a tensor of {expected} rows, got {came}")
    if target == "e":
        return data
    return data.index_select(0, graph.src if target == "u" else graph.dst)


def _aligned(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many feature axes, those that lack some with axes of size 1 after the first."""
    axes = max(left.ndim, right.ndim)
    one, other = (data.reshape(len(data), *[1] * (axes - data.ndim), *data.shape[1:]) for data in (left, right))
    return one, other


def _copy(target: str) -> Callable[..., Tensor]:
    def operation(g: Any, x: Tensor) -> Tensor:
        return gsddmm(g, "copy_lhs", x, None, lhs_target=target)

    return _named(operation, f"copy_{target}", f"The {_NAMES[target]}'s rows on every edge, [E, ...].")


def _copy_reduced(target: str, reduction: str) -> Callable[..., Tensor]:
    def operation(g: Any, x: Tensor) -> Tensor:
        return gspmm(g, "copy_lhs", reduction, x, None) if target == "u" else gspmm(g, "copy_rhs", reduction, None, x)

    return _named(
        operation, f"copy_{target}_{reduction}", f"The {reduction} of {_NAMES[target]} rows over incoming edges, [N, ...]."
    )


def _combined(name: str, left: str, right: str) -> Callable[..., Tensor]:
    def operation(g: Any, x: Tensor, y: Tensor) -> Tensor:
        return gsddmm(g, name, x, y, left, right)

    return _named(
        operation, f"{left}_{name}_{right}", f"The {_NAMES[left]}'s rows {name} the {_NAMES[right]}'s on every edge, [E, ...]."
    )


def _combined_reduced(name: str, reduction: str) -> Callable[..., Tensor]:
    def operation(g: Any, x: Tensor, y: Tensor) -> Tensor:
        return gspmm(g, name, reduction, x, y)

    doc = f"The {reduction} of the sources' rows {name} the edges' over incoming edges, [N, ...]."
    return _named(operation, f"u_{name}_e_{reduction}", doc)


def _named(operation: Callable[..., Tensor], name: str, doc: str) -> Callable[..., Tensor]:
    operation.__name__ = operation.__qualname__ = name
    operation.__doc__ = doc
    return operation


_MADE = [
    *(_copy(target) for target in TARGETS),
    *(_copy_reduced(target, reduction) for target in ("u", "e") for reduction in REDUCTIONS),
    *(_combined(name, left, right) for name in BINARY_OPERATIONS for left, right in permutations(TARGETS, 2)),
    *(_combined_reduced(name, reduction) for name in BINARY_OPERATIONS[:4] for reduction in REDUCTIONS),
]
globals().update({operation.__name__: operation for operation in _MADE})

__all__ = ["edge_softmax", "gsddmm", "gspmm", "segment_reduce", "segment_softmax"]
__all__ += [operation.__name__ for operation in _MADE]
