"""The choice between by edge and by source on a CPU: made for each pass by itself, and held against measured figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import se3_fast
from bench.orders import PASSES, RATES, fitted_rates, hidden_convolution, regular_graph, rows_of, table
from bench.orders import problem as problem_of
from se3_fast import Fiber
from se3_fast.backends.torch import operand_convolution
from se3_fast.contraction import edge_work, is_by_source, passes_by_source, source_work
from tests.ops.test_tfn_conv import CASES, assert_equal, run, run_operation
from tests.support import BACKENDS, TOLERANCE, make_convolution, relative_error

ON_CPU = [name for name in RATES if name in BACKENDS]
MEASURED = json.loads((Path(__file__).parents[2] / "bench" / "results" / "orders_cpu.json").read_text())["rows"]
LARGEST_LOSS = 0.16
"""Longer than the other order that a pass takes at most, by the figures measured; noise included."""


@pytest.mark.parametrize("backend", RATES)
def test_bond_graphs_go_by_edge_and_complete_ones_by_source(backend: str) -> None:
    plan = hidden_convolution("qm9").plan
    assert passes_by_source(plan, 1000, 2000, RATES[backend]) == (False, False)
    assert passes_by_source(plan, 1000, 20000, RATES[backend]) == (True, True)
    assert passes_by_source(plan, 9, 72, RATES["cpp"])[0] is False
    assert passes_by_source(plan, 200, 1200, RATES[backend]) == (False, False)


def test_edge_features_go_by_edge() -> None:
    fiber = Fiber.create(4, 32)
    plan, with_edges = (make_convolution(fiber, fiber, edges).plan for edges in (None, Fiber({1: 2})))
    assert is_by_source("source", plan, lambda: False)
    assert not is_by_source("source", with_edges, lambda: True)
    assert not is_by_source("auto", with_edges, lambda: True)


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: "-".join(str(row[name]) for name in list(row)[:5]))
def test_the_chosen_order_is_hardly_slower(row: dict) -> None:
    """Whatever the rates are: on every graph of ``bench/results/orders_cpu.json``."""
    plan, edges = hidden_convolution(row["workload"]).plan, row["nodes"] * row["edges_a_node"]
    is_source = passes_by_source(plan, row["nodes"], edges, RATES[row["backend"]])[PASSES.index(row["pass"])]
    times = (row["by_edge_ms"], row["by_source_ms"])
    assert times[is_source] <= (1 + LARGEST_LOSS) * min(times)


@pytest.fixture(params=[(False, True), (True, False)], ids=["back by source", "back by edge"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[bool, bool]]:
    """The passes of all convolutions in orders of their own."""
    monkeypatch.setattr(operand_convolution, "passes_by_source", lambda *_: request.param)
    return request.param


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("case", ["by output, mixed", "pairs, gaps in the degrees", "zero-length edges", "one edge", "no edges"])
@pytest.mark.usefixtures("passes")
def test_passes_in_different_orders_equal_dense(case: str, backend: str) -> None:
    assert_equal(run(CASES[case], backend), run(CASES[case], "dense"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("passes")
def test_passes_in_different_orders_in_each_dtype(dtype: torch.dtype, backend: str) -> None:
    case = CASES["full, 4 degrees"]
    found, again = (run_operation(case, backend, dtype) for _ in range(2))
    assert_equal(found, run_operation(case, "dense", torch.float64), TOLERANCE[dtype])
    for name, value in (found.outputs | found.gradients).items():
        assert value.equal((again.outputs | again.gradients)[name])


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.usefixtures("passes")
def test_second_derivatives_with_passes_in_different_orders(backend: str) -> None:
    found = []
    for name in (backend, "dense"):
        torch.manual_seed(0)
        made = problem_of(hidden_convolution("protein_refine"), regular_graph(5, 3), "auto")
        with se3_fast.backend(name):
            outputs = made.forward()
        first = torch.autograd.grad([output.square().sum() for output in outputs], made.operands, create_graph=True)
        found.append(torch.autograd.grad([each.square().sum() for each in first], made.operands))
    for value, truth in zip(*found, strict=True):
        assert relative_error(value, truth) < 1e-5  # both are float32


@pytest.mark.parametrize("backend", ON_CPU)
def test_each_pass_asks_for_its_own_order(passes: tuple[bool, bool], backend: str) -> None:
    """The outputs are to the bit those of the forward pass's order alone, the gradients those of the other."""
    convolution, graph = hidden_convolution("protein_refine"), regular_graph(7, 3)
    torch.manual_seed(0)
    mixed = problem_of(convolution, graph, "auto")
    alone = []
    for order in ("edge", "source"):
        torch.manual_seed(0)
        alone.append(problem_of(convolution, graph, order))
    with se3_fast.backend(backend):
        outputs = [made.forward() for made in (mixed, *alone)]
    gradients = [
        torch.autograd.grad(each, made.operands, [torch.ones_like(output) for output in each])
        for each, made in zip(outputs, (mixed, *alone), strict=True)
    ]
    for results, is_source in ((outputs, passes[0]), (gradients, passes[1])):
        same, other = results[1 + is_source], results[2 - is_source]
        assert all(value.equal(of) for value, of in zip(results[0], same, strict=True))
        assert not all(value.equal(of) for value, of in zip(results[0], other, strict=True))


def test_rates_are_found_again() -> None:
    """From the times that they say themselves."""
    for backend, rates in RATES.items():
        rows = []
        for workload in ("qm9", "protein_refine", "protein_wide"):
            for nodes, degree in ((9, 8), (40, 3), (60, 16), (200, 6), (300, 2), (150, 40)):
                plan = hidden_convolution(workload).plan
                edge = edge_work(plan, nodes * degree, rates.forms_weights)
                source = source_work(plan, nodes, nodes * degree)
                for name in PASSES:
                    of_pass = getattr(rates, name)
                    row = {"backend": backend, "workload": workload, "nodes": nodes, "edges_a_node": degree, "pass": name}
                    row["by_edge_ms"] = 1e-6 * sum(a * b for a, b in zip(of_pass.by_edge, edge, strict=True))
                    row["by_source_ms"] = 1e-6 * sum(a * b for a, b in zip(of_pass.by_source, source, strict=True))
                    rows.append(row)
        found = fitted_rates(rows)
        for name in PASSES:
            for of_found, of_rates in zip(getattr(found, name), getattr(rates, name), strict=True):
                assert of_found == pytest.approx(of_rates, abs=1e-9)


@pytest.mark.parametrize("backend", ON_CPU)
def test_rows_and_table(backend: str) -> None:
    rows = rows_of(backend, "protein_refine", [(5, 2)], 0.0)
    assert [row["pass"] for row in rows] == ["forward", "backward"]
    assert all(row["by_edge_ms"] > 0 and row["by_source_ms"] > 0 and row["loss"] >= 0 for row in rows)
    assert len(table(rows).splitlines()) == 4 and f"| {backend} | protein_refine | 5 | 2 | forward |" in table(rows)
