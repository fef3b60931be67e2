from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from se3_fast import Graph, complete_graph, nearest_neighbour_graph, radius_graph
from se3_fast.graph import as_graph
from tests.support import random_graph


def positions(count: int) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


def test_edge_orders() -> None:
    graph = random_graph(9, 40)
    for ends, (order, offsets), degrees in (
        (graph.dst, graph.incoming(), graph.in_degrees()),
        (graph.src, graph.outgoing(), graph.out_degrees()),
    ):
        for node in range(9):
            edges = order[offsets[node] : offsets[node + 1]]
            assert edges.tolist() == (ends == node).nonzero().squeeze(1).tolist()
            assert degrees[node] == len(edges)
    assert graph.incoming() is graph.incoming()


def test_sources_by_out_degree() -> None:
    nodes, counts = random_graph(9, 40).sources_by_out_degree()
    assert counts == sorted(counts, reverse=True) and sum(counts) == 40 and 8 not in nodes.tolist()


def test_batch() -> None:
    graphs = [complete_graph(positions(count)) for count in (3, 1, 4)]
    batch = Graph.batch(graphs)
    assert batch.batch_size == 3 and batch.num_nodes() == 8 and batch.num_edges() == 18
    assert batch.batch_num_nodes().tolist() == [3, 1, 4] and batch.batch_num_edges().tolist() == [6, 0, 12]
    assert torch.equal(batch.ndata["pos"][batch.dst] - batch.ndata["pos"][batch.src], batch.edata["rel_pos"])
    with pytest.raises(ValueError, match="graphs"):
        Graph.batch([])


def test_complete_graph_of_a_batch() -> None:
    graph = complete_graph(positions(5), [2, 3])
    pairs = set(zip(graph.src.tolist(), graph.dst.tolist(), strict=True))
    assert pairs == {(0, 1), (1, 0), (2, 3), (3, 2), (2, 4), (4, 2), (3, 4), (4, 3)}


def test_radius_graph() -> None:
    pos = positions(20)
    graph = radius_graph(pos, 1.2, [12, 8])
    expected = {(i, j) for i in range(20) for j in range(20) if i != j and (i < 12) == (j < 12) and (pos[i] - pos[j]).norm() <= 1.2}
    assert set(zip(graph.src.tolist(), graph.dst.tolist(), strict=True)) == expected
    on_a_line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    assert radius_graph(on_a_line, 1.0).num_edges() == 4  # a distance equal to the cutoff is an edge
    with pytest.raises(ValueError, match="cutoff"):
        radius_graph(pos, 0.0)


def test_nearest_neighbour_graph() -> None:
    pos = positions(12)
    graph = nearest_neighbour_graph(pos, 4, [9, 3])
    assert graph.in_degrees().tolist() == [4] * 9 + [2] * 3
    distances = torch.cdist(pos[:9], pos[:9]).fill_diagonal_(torch.inf)
    for node in range(9):
        sources = graph.src[graph.dst == node]
        assert set(sources.tolist()) == set(distances[node].topk(4, largest=False).indices.tolist())
    with pytest.raises(ValueError, match="neighbours"):
        nearest_neighbour_graph(pos, 0)


def test_builders_keep_the_gradient_to_positions() -> None:
    pos = positions(4).requires_grad_()
    complete_graph(pos).edata["rel_pos"].square().sum().backward()
    assert pos.grad is not None and pos.grad.abs().min() > 0


def test_to_the_same_device_is_itself() -> None:
    graph = random_graph(3, 4)
    assert graph.to("cpu") is graph
    graph.incoming()
    meta = graph.to("meta")
    assert meta.device.type == "meta" and meta.num_edges() == 4 and meta.edata["rel_pos"].device.type == "meta"


def test_no_edges_and_no_nodes() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert Graph(empty, empty, 3).in_degrees().tolist() == [0, 0, 0]
    assert Graph(empty, empty, 0).sources_by_out_degree()[1] == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.tensor([0.0]), torch.tensor([0]), 1), TypeError, "src: expected an int64 tensor, got torch.float32"),
        ((torch.tensor([0, 1]), torch.tensor([0]), 2), ValueError, r"dst: expected shape \[2\], got \[1\]"),
        ((torch.tensor([0]), torch.tensor([2]), 2), ValueError, "dst: expected node numbers from 0 to 1, got 2 to 2"),
        ((torch.tensor([0]), torch.tensor([0]), 2, [1]), ValueError, "batch_num_nodes: expected sizes that add up to 2"),
        ((torch.tensor([0]), torch.tensor([0]), 2, [1, 1], [1]), ValueError, "batch_num_edges: expected 2 graphs"),
    ],
)
def test_bad_arguments(arguments: tuple, error: type[Exception], message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(error, match=message):
        Graph(*arguments)


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"graph: expected a se3_fast.Graph, .* got SimpleNamespace"):
        as_graph(SimpleNamespace())


def test_dgl_graph() -> None:
    dgl = pytest.importorskip("dgl")
    parts = [random_graph(4, 6), random_graph(3, 5, seed=1)]
    made = []
    for part in parts:
        graph = dgl.graph((part.src, part.dst), num_nodes=part.num_nodes())
        graph.edata["rel_pos"] = part.edata["rel_pos"]
        made.append(graph)
    ours, expected = as_graph(dgl.batch(made)), Graph.batch(parts)
    assert torch.equal(ours.src, expected.src) and torch.equal(ours.dst, expected.dst)
    assert torch.equal(ours.edata["rel_pos"], expected.edata["rel_pos"])
    assert ours.batch_num_nodes().tolist() == [4, 3] and ours.batch_num_edges().tolist() == [6, 5]


def test_pyg_data_and_batch() -> None:
    data_module = pytest.importorskip("torch_geometric.data")
    parts = [complete_graph(positions(count)) for count in (3, 1, 4)]
    data = [
        data_module.Data(pos=part.ndata["pos"], edge_index=torch.stack(part.edges()), num_nodes=part.num_nodes()) for part in parts
    ]
    ours, expected = as_graph(data_module.Batch.from_data_list(data)), Graph.batch(parts)
    assert torch.equal(ours.src, expected.src) and torch.equal(ours.edata["rel_pos"], expected.edata["rel_pos"])
    assert ours.batch_num_nodes().tolist() == [3, 1, 4] and ours.batch_num_edges().tolist() == [6, 0, 12]
    assert as_graph(data[0]).batch_size == 1


def test_without_data_the_edges_are_shared() -> None:
    graph = random_graph(4, 9)
    alone = graph.without_data()
    assert alone.ndata == alone.edata == {}
    assert alone.src is graph.src and alone.num_nodes() == 4 and torch.equal(alone.batch_num_nodes(), graph.batch_num_nodes())
    assert alone.incoming() is graph.incoming() and graph.outgoing() is alone.outgoing()
    graph.dst[0] = 3
    assert alone.incoming() is graph.incoming()
    assert alone.in_degrees().tolist() == torch.bincount(graph.dst, minlength=4).tolist()
