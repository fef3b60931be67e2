"""Batches of graphs: where one graph ends and the next begins, whoever made the batch; empty graphs and graphs of one node."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Fiber, Graph, SE3TransformerPooled, complete_graph, nearest_neighbour_graph, radius_graph
from se3_fast.graph import as_graph
from tests.support import random_features

SIZES = [3, 0, 1, 4, 0]


def positions(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def batch_of(sizes: list[int]) -> Tensor:
    """The graph of each node."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def shuffled(graph: Graph) -> Graph:
    """The same edges in another order; sizes of the graphs are not said."""
    order = torch.randperm(graph.num_edges(), generator=torch.Generator().manual_seed(1))
    edata = {"rel_pos": graph.edata["rel_pos"][order]}
    return Graph(graph.src[order], graph.dst[order], graph.num_nodes(), graph.batch_num_nodes(), edata=edata)


def pyg(graph: Graph, **more: Any) -> Any:
    data = pytest.importorskip("torch_geometric.data")
    return data.Data(pos=graph.ndata["pos"], edge_index=torch.stack(graph.edges()), num_nodes=graph.num_nodes(), **more)


def pooled_model() -> SE3TransformerPooled:
    torch.manual_seed(0)
    fibers = {"fiber_in": Fiber({0: 2}), "fiber_out": Fiber({0: 4}), "fiber_edge": Fiber({})}
    return SE3TransformerPooled(
        **fibers, num_degrees=2, num_channels=2, output_dim=2, num_layers=1, num_heads=1, channels_div=1
    ).double()


@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, [5], [0], [], [0, 0, 2]], ids=str)
def test_edges_are_counted(sizes: list[int], is_shuffled: bool) -> None:
    graph = complete_graph(positions(sum(sizes)), sizes)
    made = shuffled(graph) if is_shuffled else Graph(*graph.edges(), graph.num_nodes(), sizes)
    assert made.batch_num_edges().tolist() == [size * (size - 1) for size in sizes]
    assert made.batch_num_edges().dtype == torch.int64


def test_edges_between_graphs_are_not_counted() -> None:
    with pytest.raises(ValueError, match="batch_num_nodes: expected edges within the graphs, got edge 1 from graph 0 to graph 2"):
        Graph(torch.tensor([0, 1]), torch.tensor([1, 2]), 4, [2, 0, 2])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([-1, 4], r"batch_num_nodes: expected sizes that add up to 3, none negative, got \[-1, 4\]"),
        ([1, 1], r"batch_num_nodes: expected sizes that add up to 3, none negative, got \[1, 1\], 2 in all"),
        ([1.5, 1.5], r"batch_num_nodes: expected whole numbers of shape \[B\], got \[2\], torch.float32"),
        ([[1, 2]], r"batch_num_nodes: expected whole numbers of shape \[B\], got \[1, 2\], torch.int64"),
    ],
)
def test_sizes_that_are_none(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(torch.tensor([0]), torch.tensor([0]), 3, sizes)


@pytest.mark.parametrize("form", ["batch", "ptr", "both", "int32 batch"])
def test_pyg_data_knows_its_graphs(form: str) -> None:
    sizes = [3, 0, 1, 4]  # a last graph without nodes cannot be told from ``batch``
    graph = complete_graph(positions(8), sizes)
    batch, pointer = batch_of(sizes), torch.tensor([0, 3, 3, 4, 8])
    more = {"batch": {"batch": batch}, "ptr": {"ptr": pointer}, "both": {"batch": batch, "ptr": pointer}}
    ours = as_graph(pyg(graph, **(more | {"int32 batch": {"batch": batch.int()}})[form]))
    assert ours.batch_num_nodes().tolist() == sizes and ours.batch_num_edges().tolist() == [6, 0, 0, 12]
    assert torch.equal(ours.src, graph.src) and torch.equal(ours.edata["rel_pos"], graph.edata["rel_pos"])


def test_pyg_batch_pools_each_molecule() -> None:
    model, graph = pooled_model(), complete_graph(positions(7), [4, 3])
    nodes = random_features(Fiber({0: 2}), 7)
    with torch.no_grad():
        truth = model(graph, nodes)
        assert truth.shape == (2, 2)
        assert torch.equal(model(pyg(graph, batch=batch_of([4, 3])), nodes), truth)
        torch.testing.assert_close(model(shuffled(graph), nodes), truth, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch": [0, 1, 0]}, "graph: expected batch to number the graphs in ascending order, node after node, got it unsorted"),
        ({"batch": [-1, 0, 0]}, "graph: expected batch to number the graphs in ascending order"),
        ({"batch": [0, 0]}, r"graph: expected batch of shape \[3\], int64, got \[2\], torch.int64"),
        ({"batch": [0.0, 0.0, 1.0]}, r"graph: expected batch of shape \[3\], int64, got \[3\], torch.float32"),
        ({"batch": [0, 0, 1], "ptr": [0, 1, 3]}, r"graph: expected ptr to give \[2, 1\] nodes as batch does, got \[1, 2\]"),
        ({"batch": [0, 0, 2], "ptr": [0, 2, 3]}, r"graph: expected ptr to give \[2, 0, 1\] nodes as batch does, got \[2, 1\]"),
        ({"ptr": [0, 2]}, "batch_num_nodes: expected sizes that add up to 3"),
        ({"batch": [0, 0, 1]}, "batch_num_nodes: expected edges within the graphs, got edge 1 from graph 0 to graph 1"),
    ],
    ids=str,
)
def test_pyg_data_that_contradicts_itself(more: dict[str, list[float]], message: str) -> None:
    data = pytest.importorskip("torch_geometric.data")
    edges = torch.tensor([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match=message):
        as_graph(data.Data(pos=positions(3), edge_index=edges, **{name: torch.tensor(value) for name, value in more.items()}))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_pyg_transposed_adjacency() -> None:
    transforms = pytest.importorskip("torch_geometric.transforms")
    graph = complete_graph(positions(5))
    graph = Graph(graph.src[:9], graph.dst[:9], 5, ndata=graph.ndata)  # some pairs one way only
    data = transforms.ToSparseTensor()(pyg(graph))
    assert data.edge_index is None
    ours = as_graph(data)
    assert set(zip(*map(Tensor.tolist, ours.edges()), strict=True)) == set(zip(*map(Tensor.tolist, graph.edges()), strict=True))
    pos = graph.ndata["pos"]
    assert torch.equal(ours.edata["rel_pos"], pos[ours.dst] - pos[ours.src])


def test_adjacency_of_another_library() -> None:
    src, dst = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 0])
    adjacency = SimpleNamespace(coo=lambda: (dst, src, None))
    ours = as_graph(SimpleNamespace(edge_index=None, adj_t=adjacency, num_nodes=3, pos=positions(3)))
    assert torch.equal(ours.src, src) and torch.equal(ours.dst, dst)


@pytest.mark.parametrize("edge_index", [None, torch.zeros(4, 3, dtype=torch.int64), [[0], [1]]], ids=["none", "shape", "list"])
def test_pyg_data_without_edges(edge_index: Any) -> None:
    message = r"graph: expected edge_index of shape \[2, E\]"
    with pytest.raises(ValueError, match=message):
        as_graph(SimpleNamespace(edge_index=edge_index, num_nodes=3, pos=positions(3)))


BUILDERS: dict[str, Callable[[Tensor, Any], Graph]] = {
    "complete": complete_graph,
    "radius": lambda pos, sizes: radius_graph(pos, 1e3, sizes),
    "nearest": lambda pos, sizes: nearest_neighbour_graph(pos, 10, sizes),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [SIZES, [0], [], [1], [1, 1], None], ids=str)
def test_builders(build: Callable[[Tensor, Any], Graph], sizes: list[int] | None, dtype: torch.dtype) -> None:
    counts = [4] if sizes is None else sizes
    pos = positions(sum(counts), dtype)
    graph = build(pos, sizes)
    assert graph.batch_size == len(counts) and graph.batch_num_nodes().tolist() == counts
    assert graph.batch_num_edges().tolist() == [count * (count - 1) for count in counts]
    assert torch.equal(graph.edata["rel_pos"], pos[graph.dst] - pos[graph.src]) and graph.edata["rel_pos"].dtype == dtype
    again = Graph.batch([graph, build(pos, sizes)])
    assert again.batch_num_edges().tolist() == 2 * graph.batch_num_edges().tolist()
    assert again.num_edges() == 2 * graph.num_edges()


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize(
    ("pos", "message"),
    [
        (torch.zeros(2, 2), r"pos: expected a floating-point tensor of shape \[N, 3\], got \[2, 2\], torch.float32"),
        (torch.zeros(2, 3, dtype=torch.int64), r"pos: expected a floating-point tensor .* got \[2, 3\], torch.int64"),
        ([[0.0, 0.0, 0.0]], r"pos: expected a floating-point tensor .* got an object of type list"),
        (torch.tensor([[0.0, 0, 0], [0, torch.nan, 1]]), r"pos: expected finite positions, got \[0.0, nan, 1.0\] at node 1"),
    ],
)
def test_builders_refuse(build: Callable[[Tensor, Any], Graph], pos: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(pos, None)


@pytest.mark.parametrize(
    ("cutoff", "shown"), [(float("nan"), "nan"), ("3", "'3'"), (None, "None"), (torch.tensor(1.0), r"tensor\(1.\)")]
)
def test_lengths_that_are_none(cutoff: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=f"cutoff: expected a positive length, got {shown}"):
        radius_graph(positions(2), cutoff)


@pytest.mark.parametrize("neighbours", [0, 1.5, "2"])
def test_numbers_of_neighbours_that_are_none(neighbours: Any) -> None:
    with pytest.raises(ValueError, match=f"neighbours: expected a whole number of at least 1, got {neighbours!r}"):
        nearest_neighbour_graph(positions(2), neighbours)


@pytest.mark.parametrize("backend", ["dense", "torch", "cpp", "triton"])
def test_model_on_a_batch_with_empty_graphs(backend: str) -> None:
    model = pooled_model()
    nodes = random_features(Fiber({0: 2}), 8)
    graph = nearest_neighbour_graph(positions(8), 2, SIZES)
    with se3_fast.backend(backend), torch.no_grad():
        value = model(graph, nodes)
    with se3_fast.backend("dense"), torch.no_grad():
        truth = model(graph, nodes)
    assert value.shape == (5, 2)
    torch.testing.assert_close(value, truth, rtol=1e-11, atol=1e-12)
