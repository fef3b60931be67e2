"""Which order of contraction takes less time on a CPU, by edge or by source node (DESIGN 1.3), from measured rates.

Multiply-adds alone do not say it: what is done once per call counts on small graphs, values that go through memory count on all.
``python -m bench.orders`` measures the rates of a backend and shows what its choice costs (docs/performance.md).
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import NamedTuple

from se3_fast.contraction.aligned import orders
from se3_fast.contraction.plan import ConvolutionPlan


class EdgeWork(NamedTuple):
    """What the order by edge does; or nanoseconds of one of each. All but the call are counted for each hidden unit.

    Attributes:
        call: 1.
        weights: values of the last radial weights, which are aligned once.
        multiply_adds: of R where it is formed; otherwise of the outer products of h and x~ with the weights.
        outer_values: values of these outer products.
    """

    call: float
    weights: float
    multiply_adds: float
    outer_values: float


class SourceWork(NamedTuple):
    """What the order by source does; or nanoseconds of one of each. All but the call are counted for each hidden unit.

    Attributes:
        call: 1.
        weights: values of the last radial weights, which are aligned once.
        multiply_adds: of T, for all source nodes.
        table_values: of T.
        edge_values: the multiply-adds of U, for all edges.
    """

    call: float
    weights: float
    multiply_adds: float
    table_values: float
    edge_values: float


class OrderRates(NamedTuple):
    """Nanoseconds on one core, of which the ratios count."""

    by_edge: EdgeWork
    by_source: SourceWork


class PassRates(NamedTuple):
    """Those of a backend.

    Attributes:
        forms_weights: by edge, R = W h is formed and then contracted (backend ``cpp``); otherwise the outer product of h and the
            aligned features is contracted with W (backend ``torch``).
        forward: of the forward pass.
        backward: of the backward pass.
    """

    forms_weights: bool
    forward: OrderRates
    backward: OrderRates


@lru_cache(maxsize=1024)
def passes_by_source(plan: ConvolutionPlan, num_sources: int, num_edges: int, rates: PassRates) -> tuple[bool, bool]:
    """Whether the order by source takes less time in the forward and in the backward pass.

    Args:
        plan: what is coupled.
        num_sources: how many nodes have outgoing edges.
        num_edges: E.
        rates: of the backend at hand.
    """
    edge, source = edge_work(plan, num_edges, rates.forms_weights), source_work(plan, num_sources, num_edges)
    forward, backward = (
        _total(of_pass.by_source, source) < _total(of_pass.by_edge, edge) for of_pass in (rates.forward, rates.backward)
    )
    return forward, backward


def edge_work(plan: ConvolutionPlan, num_edges: int, forms_weights: bool) -> EdgeWork:
    """What the order by edge does for a graph of E edges, ``forms_weights`` as in :class:`PassRates`."""
    counts = _counts(plan)
    multiply_adds = counts.weights if forms_weights else counts.outer_products
    return EdgeWork(1.0, counts.weights, num_edges * multiply_adds, num_edges * counts.outer_values)


def source_work(plan: ConvolutionPlan, num_sources: int, num_edges: int) -> SourceWork:
    """What the order by source does for a graph."""
    counts = _counts(plan)
    table_values = num_sources * counts.table_values
    return SourceWork(1.0, counts.weights, num_sources * counts.per_source, table_values, num_edges * counts.table_values)


def _total(rates: tuple[float, ...], work: tuple[float, ...]) -> float:
    return sum(rate * count for rate, count in zip(rates, work, strict=True))


class _Counts(NamedTuple):
    """For each hidden unit: values of W; per edge multiply-adds with the outer product, and its values; per source those of T."""

    weights: int
    outer_products: int
    outer_values: int
    per_source: int
    table_values: int


@cache
def _counts(plan: ConvolutionPlan) -> _Counts:
    weights = outer_products = outer_values = per_source = table_values = 0
    for group in plan.groups:
        for order in orders(group):
            columns = order.num_parities * len(order.degrees_out) * group.channels_out
            rows = len(order.degrees_in) * group.channels_in
            components = sum(2 * degree_in + 1 for degree_in in order.degrees_in)
            weights += rows * columns
            outer_products += order.num_parities * rows * columns
            outer_values += order.num_parities**2 * rows
            per_source += group.channels_in * components * columns
            table_values += components * columns
    return _Counts(weights, outer_products, outer_values, per_source, table_values)
