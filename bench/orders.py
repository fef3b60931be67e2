"""By edge or by source: both orders of contraction over graphs of few and many edges a node: ``python -m bench.orders``.

Every node of a graph sends edges to as many others. For every graph and pass the times of both orders, which is chosen, and how
much longer that takes than the other; at the end the rates that :mod:`se3_fast.contraction.order_on_cpu` takes. One thread,
processor time, the least of many rounds in turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

import se3_fast
from bench.arguments import new_file, seconds
from bench.environment import environment
from bench.problem import Problem, leaf
from bench.timing import change_slightly, keep_freed_memory
from bench.workloads import DESCRIPTIONS, Workload
from se3_fast import EdgeGeometry, Graph
from se3_fast.backends.cpp.order_rates import RATES as CPP_RATES
from se3_fast.backends.operands import Convolution
from se3_fast.backends.torch.order_rates import RATES as TORCH_RATES
from se3_fast.contraction import (
    ContractionOrder,
    EdgeWork,
    OrderRates,
    PassRates,
    SourceWork,
    edge_work,
    passes_by_source,
    source_work,
)
from se3_fast.layers import ConvSE3
from se3_fast.ops.tfn_conv import tfn_conv

WORKLOADS = ("qm9", "protein_refine", "protein_wide")
DEGREES = (2, 4, 6, 7, 8, 10, 12, 16)
GRAPHS = [(9, 8), *((nodes, degree) for nodes in (18, 60, 200) for degree in DEGREES), (60, 32)]
"""Nodes, and edges of a node."""

RATES = {"cpp": CPP_RATES, "torch": TORCH_RATES}
"""The backends whose choice this is."""

PASSES = ("forward", "backward")
ORDERS: tuple[ContractionOrder, ContractionOrder] = ("edge", "source")
SECONDS = 1.0
FEWEST_ROUNDS = 3

Row = dict[str, Any]


def regular_graph(num_nodes: int, degree: int) -> Graph:
    """Every node sends edges to the next ones."""
    src = torch.arange(num_nodes).repeat_interleave(degree)
    dst = (src + torch.arange(1, degree + 1).repeat(num_nodes)) % num_nodes
    generator = torch.Generator().manual_seed(0)
    return Graph(src, dst, num_nodes, edata={"rel_pos": torch.randn(len(src), 3, generator=generator)})


@cache
def hidden_convolution(workload: str) -> ConvSE3:
    """The convolution to keys and values in a hidden layer of a workload."""
    return Workload(DESCRIPTIONS[workload].made_by(se3_fast), ()).block.to_key_value


def problem(convolution: ConvSE3, graph: Graph, order: ContractionOrder) -> Problem:
    """A convolution on a graph, in an order."""
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], convolution.max_degree)
    nodes = {str(degree): leaf(graph.num_nodes(), channels, 2 * degree + 1) for degree, channels in convolution.fiber_in}
    weights = [profile.last_weight for profile in convolution.radial_profiles]
    hidden = [leaf(graph.num_edges(), weight.shape[1]) for weight in weights]
    call = Convolution(convolution.plan, graph, geometry, nodes, {}, hidden, weights, False, order)
    return Problem(lambda: list(tfn_conv(call).values()), [*nodes.values(), *hidden, *weights])


def pass_times(made: Problem) -> dict[str, float]:
    """Milliseconds of the processor of a forward and of a backward pass."""
    start = time.process_time()
    outputs = made.forward()
    middle = time.process_time()
    torch.autograd.grad(outputs, made.operands, [torch.ones_like(output) for output in outputs])
    return {"forward": 1e3 * (middle - start), "backward": 1e3 * (time.process_time() - middle)}


def least_times(problems: dict[ContractionOrder, Problem], seconds: float) -> dict[str, dict[ContractionOrder, float]]:
    """The least of many rounds, by pass and order."""
    least: dict[str, dict[ContractionOrder, float]] = {name: dict.fromkeys(problems, np.inf) for name in PASSES}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() < end:
        rounds += 1
        for order, made in problems.items():
            for name, milliseconds in pass_times(made).items():
                least[name][order] = min(least[name][order], milliseconds)
            change_slightly(made.operands)
    return least


def rows_of(backend: str, workload: str, graphs: Sequence[tuple[int, int]], seconds: float) -> list[Row]:
    """A row for every graph and pass."""
    rows = []
    convolution = hidden_convolution(workload)
    for nodes, degree in graphs:
        graph = regular_graph(nodes, degree)
        with se3_fast.backend(backend):
            found = least_times({order: problem(convolution, graph, order) for order in ORDERS}, seconds)
        by_source = passes_by_source(convolution.plan, nodes, nodes * degree, RATES[backend])
        for is_source, (name, times) in zip(by_source, found.items(), strict=True):
            chosen = ORDERS[is_source]
            row = {"backend": backend, "workload": workload, "nodes": nodes, "edges_a_node": degree, "pass": name}
            row |= {f"by_{order}_ms": milliseconds for order, milliseconds in times.items()}
            rows.append(row | {"chosen": chosen, "loss": times[chosen] / min(times.values()) - 1})
    return rows


def fitted_rates(rows: Sequence[Row]) -> PassRates:
    """The rates of a backend from its rows."""
    forms_weights = RATES[rows[0]["backend"]].forms_weights
    return PassRates(forms_weights, *(_rates([row for row in rows if row["pass"] == name], forms_weights) for name in PASSES))


def _rates(rows: Sequence[Row], forms_weights: bool) -> OrderRates:
    by_edge, by_source = [], []
    for row in rows:
        plan, nodes = hidden_convolution(row["workload"]).plan, row["nodes"]
        edges = nodes * row["edges_a_node"]
        by_edge.append(edge_work(plan, edges, forms_weights))
        by_source.append(source_work(plan, nodes, edges))
    times = np.array([[row["by_edge_ms"], row["by_source_ms"]] for row in rows])
    rates = [_fitted(work, milliseconds) for work, milliseconds in zip((by_edge, by_source), times.T, strict=True)]
    factor = _factor_of_least_loss(
        *(1e-6 * np.array(work) @ rate for work, rate in zip((by_edge, by_source), rates, strict=True)), times
    )
    return OrderRates(EdgeWork(*_digits(rates[0])), SourceWork(*_digits(factor * rates[1])))


def _factor_of_least_loss(by_edge: np.ndarray, by_source: np.ndarray, times: np.ndarray) -> float:
    """What the fitted times by source are multiplied with, so that the choice costs least where it costs most; near 1."""
    factors = sorted(np.linspace(0.8, 1.2, 41), key=lambda factor: abs(factor - 1))
    losses = [(np.where(factor * by_source < by_edge, *times.T[::-1]) / times.min(1)).max() for factor in factors]
    return float(factors[int(np.argmin(np.round(losses, 3)))])


def _fitted(work: Sequence[tuple[float, ...]], milliseconds: np.ndarray) -> np.ndarray:
    """Nanoseconds, none negative, with the least squares of the relative errors."""
    return nnls(np.array(work) / (1e6 * milliseconds[:, None]), np.ones(len(work)))[0]


def _digits(rates: np.ndarray) -> list[float]:
    return [float(f"{rate:.3g}") for rate in rates]


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = ["| backend | layer | nodes | edges a node | pass | by edge, ms | by source, ms | chosen | longer than the other |"]
    lines.append("|" + "---|" * 9)
    for row in rows:
        cells = [row["backend"], row["workload"], str(row["nodes"]), str(row["edges_a_node"]), row["pass"]]
        cells += [f"{row['by_edge_ms']:.2f}", f"{row['by_source_ms']:.2f}", f"by {row['chosen']}"]
        cells.append(f"{100 * row['loss']:.0f} %" if row["loss"] else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.orders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=WORKLOADS, help="whose hidden layers")
    parser.add_argument("--seconds", type=seconds, default=SECONDS, help="for the rounds of each graph")
    parser.add_argument("--json", type=new_file, help="file for the rows")
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = []
    for backend in arguments.backends:
        for workload in arguments.workloads:
            rows += rows_of(backend, workload, GRAPHS, arguments.seconds)
    print(table(rows))
    for backend in arguments.backends:
        print(f"{backend}: {fitted_rates([row for row in rows if row['backend'] == backend])}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
