"""Tensors of any strides, from every entry: results and gradients are those of contiguous ones on every backend."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import EdgeGeometry, Fiber, GPooling, Graph, NormSE3, SE3Transformer
from se3_fast.graph import EdgeOrder, as_graph
from se3_fast.ops.perceptron import perceptron
from tests.support import BACKENDS, TRITON_DEVICE, device_of, make_convolution, random_features, random_graph, relative_error

NUM_NODES, NUM_EDGES = 6, 14
FIBER_IN, FIBER_OUT = Fiber({0: 2, 1: 2}), Fiber({0: 2, 1: 1})


def spread(tensor: Tensor) -> Tensor:
    """The same values with a gap behind each."""
    return torch.stack([tensor, torch.full_like(tensor, 3)], -1)[..., 0]


def turned(tensor: Tensor) -> Tensor:
    """The same values, the last axis varying slowest in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


class FromPyG:
    """What :func:`as_graph` reads of PyTorch Geometric data."""

    def __init__(self, edge_index: Tensor) -> None:
        self.edge_index, self.num_nodes = edge_index, NUM_NODES


EDGE_LISTS: dict[str, Callable[[Tensor], Graph]] = {
    "columns": lambda pairs: Graph(pairs[:, 0], pairs[:, 1], NUM_NODES),
    "transposed": lambda pairs: Graph(*pairs.t(), NUM_NODES),
    "int32": lambda pairs: Graph(*pairs.int().t(), NUM_NODES),
    "from numpy": lambda pairs: Graph(*torch.from_numpy(np.ascontiguousarray(pairs.numpy()).T), NUM_NODES),
    "every second": lambda pairs: Graph(spread(pairs[:, 0].contiguous()), spread(pairs[:, 1].contiguous()), NUM_NODES),
    "PyTorch Geometric": lambda pairs: as_graph(FromPyG(pairs.t())),
    "orders": lambda pairs: strided_orders(Graph(*pairs.t(), NUM_NODES)),
}


def strided_orders(graph: Graph) -> Graph:
    orders = (EdgeOrder(*map(spread, order)) for order in (graph.incoming(), graph.outgoing()))
    sizes = (spread(graph.batch_num_nodes()), spread(graph.batch_num_edges()))
    return Graph.from_orders(spread(graph.src), spread(graph.dst), *orders, *sizes)


def pairs_of(graph: Graph) -> Tensor:
    """[E, 2] contiguous."""
    return torch.stack(graph.edges(), 1)


def make_model(**arguments: object) -> SE3Transformer:
    torch.manual_seed(0)
    arguments = {"num_layers": 1, "num_heads": 2, "channels_div": 2, "fiber_edge": Fiber({1: 1})} | arguments
    return SE3Transformer(fiber_in=FIBER_IN, fiber_hidden=Fiber({0: 4, 1: 4}), fiber_out=FIBER_OUT, **arguments)  # type: ignore[arg-type]


def evaluate(model: SE3Transformer, graph: Graph, backend: str, change: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Outputs and all gradients of their sum, whose gradients are expanded; ``change`` gives inputs other strides."""
    change = change or (lambda tensor: tensor)
    device = device_of(backend)
    inputs = [
        random_graph(NUM_NODES, NUM_EDGES).edata["rel_pos"],
        *random_features(FIBER_IN, NUM_NODES).values(),
        *random_features(Fiber({1: 1}), NUM_EDGES, seed=2).values(),
    ]
    rel_pos, scalars, vectors, of_edges = (change(tensor.float().to(device)).detach().requires_grad_() for tensor in inputs)
    graph = graph.to(device)
    graph.edata["rel_pos"] = rel_pos
    model = model.to(device)
    with se3_fast.backend(backend):
        outputs = model(graph, {"0": scalars, "1": vectors}, {"1": of_edges})
        outputs = outputs if isinstance(outputs, dict) else {"0": outputs}
        leaves = [rel_pos, scalars, vectors, of_edges, *model.parameters()]
        total = sum(output.sum() for output in outputs.values())
        gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    return [*outputs.values(), *(gradient for gradient in gradients if gradient is not None)]


def assert_same(results: list[Tensor], expected: list[Tensor]) -> None:
    """To rounding: PyTorch's own products may sum in another order where strides differ."""
    assert len(results) == len(expected)
    for result, truth in zip(results, expected, strict=True):
        assert relative_error(result, truth) < 1e-5


@pytest.mark.parametrize(
    ("form", "backend"),
    [*product(EDGE_LISTS, BACKENDS[:-1]), ("transposed", "triton"), ("orders", "triton")],  # the interpreter takes its time
)
def test_edge_lists(form: str, backend: str) -> None:
    graph = random_graph(NUM_NODES, NUM_EDGES)
    model = make_model(return_type=0, pooling="max")
    strided = EDGE_LISTS[form](pairs_of(graph))
    assert_same(evaluate(model, strided, backend), evaluate(model, Graph(*graph.edges(), NUM_NODES), backend))


@pytest.mark.parametrize("backend", BACKENDS[:-1])
def test_expanded_destination(backend: str) -> None:
    src = torch.arange(NUM_EDGES) % NUM_NODES
    expanded = Graph(src, torch.tensor([2]).expand(NUM_EDGES), NUM_NODES)
    written_out = Graph(src, torch.full((NUM_EDGES,), 2), NUM_NODES)
    assert_same(evaluate(make_model(), expanded, backend), evaluate(make_model(), written_out, backend))


@pytest.mark.parametrize("backend", BACKENDS[:-1])
def test_combinations(backend: str) -> None:
    pairs = torch.combinations(torch.arange(NUM_NODES))[:NUM_EDGES]
    listed = torch.tensor(list(combinations(range(NUM_NODES), 2))[:NUM_EDGES])
    written_out = Graph(listed[:, 0].clone(), listed[:, 1].clone(), NUM_NODES)
    assert_same(evaluate(make_model(), Graph(*pairs.t(), NUM_NODES), backend), evaluate(make_model(), written_out, backend))


@pytest.mark.parametrize(
    ("change", "options", "backend"),
    [*product([spread, turned], [{}, {"low_memory": True}], BACKENDS[:-1]), (turned, {}, "triton")],
)
def test_features_and_positions(change: Callable[[Tensor], Tensor], options: dict[str, object], backend: str) -> None:
    graph = random_graph(NUM_NODES, NUM_EDGES)
    model = make_model(**options)
    assert_same(evaluate(model, graph, backend, change), evaluate(model, graph, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters(backend: str) -> None:
    """Strided parameters, as a checkpoint that is mapped into them or a tied weight may leave them."""
    graph = random_graph(NUM_NODES, NUM_EDGES)
    expected = evaluate(make_model(), graph, backend)
    model = make_model()
    for parameter in model.parameters():
        parameter.data = spread(parameter.data) if parameter.ndim == 1 else turned(parameter.data)
    assert_same(evaluate(model, graph, backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_pooling_and_perceptron(backend: str) -> None:
    device = device_of(backend)
    fiber = Fiber({0: 2, 1: 2})
    sizes = torch.tensor([[2, 7], [4, 7]])[:, 0]
    empty = torch.zeros(0, dtype=torch.int64)
    layers = {"0": torch.randn(3, 2, device=device).double(), "1": torch.randn(1, 3, device=device).double()}
    results = []
    for change in (spread, turned, torch.clone):
        norm = NormSE3(fiber).double().to(device)
        assert norm.group_norm is not None
        norm.group_norm.weight.data = spread(norm.group_norm.weight.data)
        features = {key: change(tensor.to(device)) for key, tensor in random_features(fiber, NUM_NODES).items()}
        for tensor in features.values():
            tensor.requires_grad_()
        with se3_fast.backend(backend):
            normed = norm(features)
            graph = Graph(empty, empty, NUM_NODES, batch_num_nodes=sizes, batch_num_edges=[0, 0]).to(device)
            pooled = [GPooling(0, "max")(normed, graph), GPooling(1, "avg")(normed, graph)]
            first, second = ((change(weight), spread(weight[:, 0])) for weight in layers.values())
            outputs = [*normed.values(), *pooled, perceptron(change(pooled[0]), first, second)]
            gradients = torch.autograd.grad(sum(output.sum() for output in outputs), list(features.values()))
        results.append([*outputs, *gradients])
    for strided in results[:-1]:
        assert_same(strided, results[-1])


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_geometry(backend: str) -> None:
    """The tensors that a geometry is given, and those of chosen edges."""
    device = device_of(backend)
    graph = random_graph(NUM_NODES, NUM_EDGES).to(device)
    rel_pos = graph.edata["rel_pos"].float()
    nodes = {key: tensor.float().to(device) for key, tensor in random_features(Fiber({0: 2, 1: 2}), NUM_NODES).items()}
    convolution = make_model().graph_modules[-1].to(device)
    hidden = {key: torch.cat([tensor, tensor], 1) for key, tensor in nodes.items()}
    lengths = {"0": rel_pos.norm(dim=-1)[:, None, None], "1": rel_pos[:, None]}
    with se3_fast.backend(backend):
        whole = EdgeGeometry.from_relative_positions(rel_pos, 1).with_frames()
        given = EdgeGeometry(turned(rel_pos), 1, wigner=turned(whole.wigner), angles=turned(whole.angles))
        numbers = spread(torch.arange(NUM_EDGES, device=device))
        expected = convolution(hidden, lengths, graph, whole)
        for geometry in (given, given.index_select(numbers), given.to("cpu").to(device)):
            result = convolution(hidden, lengths, graph, geometry)
            assert_same(list(result.values()), list(expected.values()))


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_compiled_graphs(backend: str) -> None:
    """A graph that is made of strided edges where the compiler traces."""
    device = device_of(backend)
    graph = random_graph(NUM_NODES, NUM_EDGES).to(device)
    rel_pos = graph.edata["rel_pos"].float()
    nodes = [tensor.float().to(device) for tensor in random_features(FIBER_IN, NUM_NODES).values()]
    convolution = make_convolution(FIBER_IN, FIBER_OUT, pool=False).float().to(device)

    def call(pairs: Tensor, positions: Tensor, scalars: Tensor, vectors: Tensor) -> list[Tensor]:
        made = Graph(pairs[:, 0], pairs[:, 1], NUM_NODES)
        geometry = EdgeGeometry.from_relative_positions(positions, 1)
        lengths = {"0": positions.norm(dim=-1)[:, None, None]}
        return list(convolution({"0": scalars, "1": vectors}, lengths, made, geometry).values())

    with se3_fast.backend(backend), torch.no_grad():
        expected = call(pairs_of(graph), rel_pos, *nodes)
        compiled = torch.compile(call, backend="aot_eager")
        assert_same(compiled(turned(pairs_of(graph)), turned(rel_pos), *map(turned, nodes)), expected)


def test_registered_operators() -> None:
    """Called directly with strided operands, as the compiler may call them."""
    device = TRITON_DEVICE
    order, offsets = random_graph(NUM_NODES, NUM_EDGES).to(device).incoming()
    operands = [torch.randn(count, 2, width, device=device) for count, width in ((NUM_EDGES, 3), (NUM_EDGES, 2), (NUM_NODES, 2))]
    strided = [*map(turned, operands), spread(order), spread(offsets)]
    gradients = [torch.randn(NUM_NODES, 2, 3, device=device)]
    wanted = [True, True, True, False, False]
    operations = torch.ops.se3_fast
    with se3_fast.backend("triton"):
        expected = operations.edge_attention("", [*operands, order, offsets])
        assert_same(operations.edge_attention("", strided), expected)
        expected = operations.edge_attention_backward("", [*operands, order, offsets], gradients, wanted)
        assert_same(operations.edge_attention_backward("", strided, list(map(turned, gradients)), wanted), expected)
        feature, sizes = torch.randn(NUM_NODES, 2, 1, device=device), torch.tensor([2, 4], device=device)
        expected = operations.pooling("max", [feature, sizes])
        assert_same(operations.pooling("max", [spread(feature), spread(sizes)]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda order: EdgeOrder(order.order.int(), order.offsets), r"incoming.order: expected torch.int64 \[14\] on cpu"),
        (lambda order: EdgeOrder(order.order[1:], order.offsets), r"incoming.order: .* got torch.int64 \[13\] on cpu"),
        (lambda order: EdgeOrder(order.order, order.offsets[1:]), r"outgoing.offsets: expected torch.int64 \[6\]"),
        (lambda order: EdgeOrder(order.order.to("meta"), order.offsets), r"incoming.order: .* on meta"),
    ],
)
def test_orders_that_do_not_fit(change: Callable[[EdgeOrder], EdgeOrder], message: str) -> None:
    graph = random_graph(NUM_NODES, NUM_EDGES)
    with pytest.raises(ValueError, match=message):
        Graph.from_orders(*graph.edges(), change(graph.incoming()), graph.outgoing())


def test_edges_on_two_devices_are_refused() -> None:
    src = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="dst: expected a tensor on cpu as src, got one on meta"):
        Graph(src, src.to("meta"), 1)
    with pytest.raises(ValueError, match=r"src: expected shape \[E\], got \[2, 2\]"):
        Graph(torch.zeros(2, 2, dtype=torch.int64), src, 1)
