"""The stand-in for DGL next to DGL itself, where that is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast.compat import dgl as stand_in


@pytest.fixture(params=["stand-in", "dgl"])
def library(request: pytest.FixtureRequest) -> Any:
    return stand_in if request.param == "stand-in" else pytest.importorskip("dgl")


EDGES = (torch.tensor([0, 2, 1, 1]), torch.tensor([1, 1, 0, 3]))


def with_data(library: Any, num_nodes: int) -> Any:
    graph = library.graph(EDGES, num_nodes=num_nodes)
    graph.edata["rel_pos"] = torch.arange(12.0).view(4, 3)
    graph.ndata["pos"] = torch.ones(num_nodes, 3)
    return graph


def test_a_graph_from_its_edges(library: Any) -> None:
    for graph, count in ((with_data(library, 6), 6), (library.graph(EDGES), 4), (library.graph(([0, 2], [1, 0])), 3)):
        assert graph.num_nodes() == graph.number_of_nodes() == count and graph.nodes().tolist() == list(range(count))
        assert graph.num_edges() == graph.number_of_edges() == len(graph.edges()[0])
        assert graph.batch_num_nodes().tolist() == [count] and graph.batch_size == 1
    graph = with_data(library, 6)
    assert all(torch.equal(*ends) for ends in zip(graph.edges(), EDGES, strict=True))
    assert graph.in_degrees().tolist() == [1, 2, 0, 1, 0, 0] and graph.out_degrees().tolist() == [1, 2, 1, 0, 0, 0]
    moved = graph.to("cpu").cpu()
    assert moved.device == torch.device("cpu") and "rel_pos" in moved.edata and "pos" in moved.ndata
    assert isinstance(graph, library.DGLGraph)


def test_batches(library: Any) -> None:
    parts = [with_data(library, 6), with_data(library, 4)]
    batch = library.batch(parts)
    assert batch.batch_num_nodes().tolist() == [6, 4] and batch.batch_num_edges().tolist() == [4, 4] and batch.batch_size == 2
    assert batch.edges()[0].tolist() == [0, 2, 1, 1, 6, 8, 7, 7]
    for part, again in zip(parts, library.unbatch(batch), strict=True):
        assert all(torch.equal(*ends) for ends in zip(part.edges(), again.edges(), strict=True))
        assert again.num_nodes() == part.num_nodes() and torch.equal(again.edata["rel_pos"], part.edata["rel_pos"])
        assert again.ndata["pos"].shape == part.ndata["pos"].shape


def test_no_edges_and_other_integers() -> None:
    empty: list[int] = []
    assert stand_in.graph((empty, empty)).num_nodes() == 0 and stand_in.graph((empty, empty), num_nodes=3).num_nodes() == 3
    assert stand_in.graph((EDGES[0].int(), EDGES[1].int())).src.dtype == torch.int64
    assert stand_in.graph(EDGES, num_nodes=torch.tensor(5), device="cpu").num_nodes() == 5
    assert stand_in.unbatch(stand_in.graph(EDGES))[0].num_edges() == 4


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "min"])
def test_reductions_in_a_graph_without_edges_are_zero(library: Any, reduction: str) -> None:
    """Not the infinities of nodes without incoming edges in a graph that has some."""
    none = torch.zeros(0, dtype=torch.int64)
    graph, nodes, edges = library.graph((none, none), num_nodes=3), torch.randn(3, 2), torch.randn(0, 2)
    for name, operands in (("copy_u", [nodes]), ("copy_e", [edges]), ("u_mul_e", [nodes, edges])):
        assert torch.equal(getattr(library.ops, f"{name}_{reduction}")(graph, *operands), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("data", "num_nodes", "error", "message"),
    [
        (torch.zeros(2, 3), None, TypeError, r"data: expected a pair \(src, dst\), got Tensor"),
        ((torch.tensor([0.5]), torch.tensor([1])), None, TypeError, "src: expected an int64 tensor, got torch.float32"),
        (EDGES, 3, ValueError, "dst: expected node numbers from 0 to 2, got 0 to 3"),
    ],
)
def test_bad_arguments(data: tuple[Tensor, Tensor], num_nodes: int | None, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        stand_in.graph(data, num_nodes=num_nodes)


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(
        AttributeError, match=r"^dgl\.knn_graph: se3_fast stands in for a part of dgl only, without it: install DGL$"
    ):
        stand_in.knn_graph  # noqa: B018
    assert issubclass(stand_in.DGLGraph, se3_fast.Graph)
