"""The Triton convolution contracted by source against ``dense`` in float64: output and every gradient, on small graphs.

In Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import pytest
import torch

from se3_fast import ConvSE3, Fiber
from tests.ops.test_tfn_conv import CASES, FULL, NONE, PARTIAL, Case, assert_equal, run, run_operation
from tests.support import TOLERANCE, make_convolution, random_graph

pytest.importorskip("triton")

from se3_fast import contraction
from se3_fast.backends.launch_tables import values_per_node
from se3_fast.backends.triton import tfn_conv_by_source as by_source
from se3_fast.contraction import cost, is_less_time_by_source

SIZES = {"num_nodes": 4, "num_edges": 9}
SMALL = {
    "full, 3 degrees": Case({0: 3, 1: 3, 2: 3}, {0: 5, 1: 5, 2: 5}, FULL, **SIZES),
    "full, degree 0 only": CASES["full, degree 0 only"]._replace(**SIZES),
    "full, 1 to 17 channels": Case({0: 1, 1: 1}, {0: 17, 1: 17}, FULL, **SIZES),
    "by output, mixed": Case({0: 5, 1: 5}, {0: 7, 1: 3, 2: 1}, PARTIAL, **SIZES),
    "by input, mixed": Case({0: 5, 1: 3, 2: 1}, {0: 4, 1: 4}, PARTIAL, **SIZES),
    "pairs, protein fibers": CASES["pairs, protein fibers"]._replace(**SIZES),
    "pairs, gaps in the degrees": Case({1: 2, 4: 1}, {0: 3, 3: 1}, NONE, num_nodes=3, num_edges=5),
    "more than a tile of edges from one node": Case({0: 2, 1: 2}, {0: 3, 1: 3}, FULL, num_nodes=2, num_edges=40),
    "zero-length edges": Case({0: 4, 1: 2}, {0: 3, 1: 2}, NONE, **SIZES, zero_length_edges=4),
    "only zero-length edges": CASES["only zero-length edges"],
    "one edge": CASES["one edge"],
    "no edges": CASES["no edges"],
    "one node, self-loops": CASES["one node, self-loops"],
}


@pytest.fixture(autouse=True)
def contracted_by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConvSE3, "contraction_order", "source")


@pytest.mark.parametrize("name", SMALL)
def test_equals_dense(name: str) -> None:
    """Half the cases pooled, half per edge: the interpreter is slow."""
    pool = list(SMALL).index(name) % 2 == 0
    assert_equal(*(run(SMALL[name], backend, pool=pool) for backend in ("triton", "dense")), TOLERANCE[torch.float64])


@pytest.mark.parametrize("pool", [False, True], ids=["per edge", "pooled"])
def test_a_chunk_for_every_node(pool: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_source, "BUFFER_BYTES", 1)
    case = SMALL["by output, mixed"]
    assert_equal(*(run(case, backend, pool=pool) for backend in ("triton", "dense")), TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["by output, mixed", "pairs, protein fibers"])
def test_operation_in_each_dtype(name: str, dtype: torch.dtype) -> None:
    result = run_operation(SMALL[name], "triton", dtype)
    assert {value.dtype for value in (result.outputs | result.gradients).values()} == {dtype}
    assert_equal(result, run_operation(SMALL[name], "dense", torch.float64), TOLERANCE[dtype])


def test_tall_tiles_of_half_precision() -> None:
    """70 edges of one node: a full tile of 64 and the rest."""
    case = Case({0: 2, 1: 2}, {0: 3, 1: 3}, FULL, num_nodes=2, num_edges=70)
    truth = run_operation(case, "dense", torch.float64)
    assert_equal(run_operation(case, "triton", torch.float16), truth, TOLERANCE[torch.float16])


def test_two_runs_are_identical() -> None:
    first, second = (run(SMALL["by output, mixed"], "triton", torch.float32, pool=True) for _ in range(2))
    for name, value in (first.outputs | first.gradients).items():
        assert torch.equal(value, (second.outputs | second.gradients)[name]), name


def test_tiles_hold_every_edge_once() -> None:
    graph = random_graph(9, 100)
    order = by_source.source_order(graph)
    tiles, _ = order.tiles(8)
    offsets = order.graph.outgoing().offsets
    taken = [
        place
        for node, first in tiles.tolist()
        for place in range(first, min(first + 8, int(offsets[node + 1])))
        if int(order.graph.src[place]) == node
    ]
    assert sorted(taken) == list(range(100))
    assert torch.equal(graph.src[order.edges], order.graph.src)
    assert torch.equal(order.edges[order.places], torch.arange(100))
    assert by_source.source_order(graph) is order


@pytest.mark.parametrize(
    ("fibers", "edges_per_node", "dtype", "is_by_source"),
    [
        ((Fiber.create(4, 32), Fiber.create(4, 32)), 2, torch.float16, False),
        ((Fiber.create(4, 32), Fiber.create(4, 32)), 17, torch.float16, False),
        ((Fiber.create(4, 32), Fiber.create(4, 32)), 63, torch.float16, True),
        ((Fiber.create(4, 32), Fiber.create(4, 32)), 2, torch.float32, False),
        ((Fiber.create(4, 32), Fiber.create(4, 32)), 30, torch.float32, True),
        ((Fiber({0: 8, 1: 3}), Fiber.create(2, 16)), 299, torch.float32, True),
        ((Fiber({0: 64, 1: 2}), Fiber.create(2, 64)), 99, torch.float32, True),
    ],
)
def test_choice_of_order(
    fibers: tuple[Fiber, Fiber], edges_per_node: int, dtype: torch.dtype, is_by_source: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    plan = make_convolution(*fibers).plan
    assert is_less_time_by_source(plan, 1000, 1000 * edges_per_node, 32, dtype) == is_by_source


def test_edge_features_are_contracted_by_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plan = make_convolution(Fiber({0: 8, 1: 8}), Fiber({0: 8, 1: 8}), Fiber({1: 1}), NONE).plan
    assert not contraction.is_by_source("auto", plan, lambda: is_less_time_by_source(plan, 10, 10_000, 32, torch.float32))


def test_cost_counts_products_of_nodes_and_edges() -> None:
    """14 MFLOP per node and 0.44 per edge at 4 degrees and 32 channels."""
    plan = make_convolution(Fiber.create(4, 32), Fiber.create(4, 32)).plan
    values = values_per_node(plan, 32)
    forward, backward = cost(plan, num_nodes=10, num_edges=100, width=32, dtype=torch.float16, is_by_source=True)
    assert forward.matrix_flop == 10 * 2 * 32 * values + 100 * 2 * values
    assert backward.matrix_flop == 3 * 10 * 2 * 32 * values + 2 * 100 * 2 * values
    assert 14e6 < 2 * 32 * values < 14.5e6
