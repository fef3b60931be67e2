"""Sizes that do not fit each other are refused by every layer on every backend, in one line that names the argument."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import (
    AttentionBlockSE3,
    AttentionSE3,
    ConvSE3,
    EdgeGeometry,
    Fiber,
    GPooling,
    Graph,
    LinearSE3,
    NormSE3,
    SE3Transformer,
)
from se3_fast.backends.operands import Convolution
from se3_fast.ops.basis import get_basis
from se3_fast.ops.tfn_conv import tfn_conv
from tests.support import BACKENDS, TRITON_DEVICE, device_of, make_convolution, random_features, random_graph

NUM_NODES, NUM_EDGES = 5, 12
FIBER = Fiber({0: 4, 1: 4})


def features(count: int, device: torch.device, fiber: Fiber = FIBER) -> dict[str, Tensor]:
    return {key: tensor.float().to(device) for key, tensor in random_features(fiber, count).items()}


def lengths(count: int, device: torch.device) -> dict[str, Tensor]:
    return {"0": torch.rand(count, 1, 1, device=device)}


def geometry(count: int, device: torch.device) -> EdgeGeometry:
    return EdgeGeometry.from_relative_positions(torch.randn(count, 3, device=device), 1)


def bases(count: int, device: torch.device) -> dict[str, Tensor]:
    return get_basis(torch.randn(count, 3, device=device), 1)


def graph_on(device: torch.device) -> Graph:
    graph = random_graph(NUM_NODES, NUM_EDGES)
    return Graph(*graph.edges(), NUM_NODES, edata={"rel_pos": graph.edata["rel_pos"].float()}).to(device)


def model_on(device: torch.device) -> SE3Transformer:
    arguments = {"num_layers": 1, "num_heads": 2, "channels_div": 2}
    return SE3Transformer(fiber_in=FIBER, fiber_hidden=FIBER, fiber_out=FIBER, **arguments).to(device)  # type: ignore[arg-type]


Make = Callable[[int, torch.device], object]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1, NUM_EDGES - 1, NUM_EDGES + 1, 1000])
@pytest.mark.parametrize("make", [geometry, bases])
def test_geometry_of_another_edge_count(make: Make, count: int, backend: str) -> None:
    device = device_of(backend)
    graph, nodes, edges = graph_on(device), features(NUM_NODES, device), lengths(NUM_EDGES, device)
    convolution = ConvSE3(FIBER, FIBER, Fiber({}), max_degree=1).to(device)
    per_edge = ConvSE3(FIBER, FIBER, Fiber({}), max_degree=1, pool=False, low_memory=True).to(device)
    block = AttentionBlockSE3(FIBER, FIBER, num_heads=2, max_degree=1).to(device)
    message = f"basis: expected that of the graph's {NUM_EDGES} edges, got that of {count} edges"
    with se3_fast.backend(backend):
        basis = make(count, device)
        for layer in (convolution, per_edge, block):
            with pytest.raises(ValueError, match=message):
                layer(nodes, edges, graph, basis)
        with pytest.raises(ValueError, match=message):
            model_on(device)(graph, nodes, None, basis)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, NUM_NODES - 1, NUM_NODES + 1, 1000])
def test_nodes(count: int, backend: str) -> None:
    device = device_of(backend)
    graph, edges, wrong = graph_on(device), lengths(NUM_EDGES, device), features(count, device)
    with se3_fast.backend(backend):
        basis = geometry(NUM_EDGES, device)
        for layer in (ConvSE3(FIBER, FIBER, Fiber({}), max_degree=1), AttentionBlockSE3(FIBER, FIBER, num_heads=2, max_degree=1)):
            with pytest.raises(ValueError, match=f"node_feats: expected features of the graph's {NUM_NODES} nodes, got {count}"):
                layer.to(device)(wrong, edges, graph, basis)
        with pytest.raises(ValueError, match=f"node_feats: .*got {count}"):
            model_on(device)(graph, wrong)
        for pool, degree in (("max", 0), ("avg", 0), ("avg", 1)):
            with pytest.raises(ValueError, match=rf"features\['{degree}'\]: expected shape \[{NUM_NODES}, C, .\], got \[{count}"):
                GPooling(degree, pool)(wrong, graph)  # type: ignore[arg-type]
        mixed = {"0": features(NUM_NODES, device)["0"], "1": wrong["1"]}
        for layer in (NormSE3(FIBER), LinearSE3(FIBER, FIBER)):
            with pytest.raises(ValueError, match=rf"features\['1'\]: expected shape \[{NUM_NODES}, 4, 3\], got \[{count}, 4, 3\]"):
                layer.to(device)(mixed)
        attention, right = AttentionSE3(2, FIBER, FIBER), features(NUM_EDGES, device)
        with pytest.raises(ValueError, match=rf"query: expected shape \[{NUM_NODES}, 2, 8\], got \[{count}, 2, 8\]"):
            attention(right, right, wrong, graph)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, NUM_EDGES - 1, NUM_EDGES + 1, 1000])
def test_edges(count: int, backend: str) -> None:
    device = device_of(backend)
    graph, nodes = graph_on(device), features(NUM_NODES, device)
    with se3_fast.backend(backend):
        basis = geometry(NUM_EDGES, device)
        for layer in (ConvSE3(FIBER, FIBER, Fiber({}), max_degree=1), AttentionBlockSE3(FIBER, FIBER, num_heads=2, max_degree=1)):
            with pytest.raises(ValueError, match=f"edge_feats: expected features of the graph's {NUM_EDGES} edges, got {count}"):
                layer.to(device)(nodes, lengths(count, device), graph, basis)
        attention, right, wrong = AttentionSE3(2, FIBER, FIBER), features(NUM_EDGES, device), features(count, device)
        for name, value, key in (("value", wrong, right), ("key", right, wrong)):
            with pytest.raises(ValueError, match=rf"{name}: expected shape \[{NUM_EDGES}, 2, 8\], got \[{count}, 2, 8\]"):
                attention(value, key, nodes, graph)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels(backend: str) -> None:
    device = device_of(backend)
    graph, nodes, edges = graph_on(device), features(NUM_NODES, device), features(NUM_EDGES, device)
    wrong = features(NUM_EDGES, device, Fiber({0: 4, 1: 2}))
    attention = AttentionSE3(2, FIBER, FIBER)
    with se3_fast.backend(backend):
        with pytest.raises(ValueError, match=r"value\['1'\]: expected shape \[12, 4, 3\], got \[12, 2, 3\]"):
            attention(wrong, edges, nodes, graph)
        with pytest.raises(ValueError, match=r"key: expected 3 axes, of 4 components, got shape \[12, 4, 3\]"):
            attention(edges, edges["1"], nodes, graph)
        with pytest.raises(ValueError, match=r"features\['1'\]: expected shape \[12, 4, 3\], got \[12, 2, 3\]"):
            LinearSE3(FIBER, FIBER).to(device)(wrong)
        with pytest.raises(ValueError, match=r"features: expected degrees \['0', '1'\], got \['0'\]"):
            LinearSE3(FIBER, FIBER).to(device)({"0": nodes["0"]})
        with pytest.raises(ValueError, match=r"features: expected degree '1', got \['0'\]"):
            GPooling(1, "avg")({"0": nodes["0"]}, graph)


@pytest.mark.parametrize("backend", BACKENDS)
def test_operands_of_the_convolution(backend: str) -> None:
    """Called by itself."""
    device = device_of(backend)
    plan, graph = make_convolution(FIBER, FIBER).plan, graph_on(device)
    group = plan.groups[0]
    arguments = {
        "geometry": geometry(NUM_EDGES, device),
        "node_features": features(NUM_NODES, device),
        "hidden": [torch.randn(NUM_EDGES, 32, device=device)],
        "weights": [torch.randn(group.channels_out * group.channels_in * group.num_paths, 32, device=device)],
    }
    changes = {
        "geometry": (geometry(3, device), "geometry: expected one of the graph's 12 edges, got one of 3 edges"),
        "node_features": (features(4, device), r"node_features\['0'\]: expected shape \[5, 4, 1\], got \[4, 4, 1\]"),
        "hidden": ([torch.randn(11, 32, device=device)], r"hidden\[0\]: expected shape \[12, 32\], got \[11, 32\]"),
        "weights": ([torch.randn(7, 32, device=device)], r"weights\[0\]: expected shape \[96, 32\], got \[7, 32\]"),
    }
    with se3_fast.backend(backend):
        for name, (wrong, message) in changes.items():
            with pytest.raises(ValueError, match=message):
                tfn_conv(Convolution(plan, graph, edge_features={}, pool=True, **arguments | {name: wrong}))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_edges", [0, 3])
def test_a_degree_without_channels(num_edges: int, backend: str) -> None:
    layer = make_convolution(Fiber({0: 1}), Fiber({0: 1, 1: 0})).to(TRITON_DEVICE)
    graph = random_graph(2, num_edges).to(TRITON_DEVICE)
    nodes = random_features(Fiber({0: 1}), 2)["0"].to(TRITON_DEVICE).requires_grad_()
    length = graph.edata["rel_pos"].norm(dim=-1)[:, None, None]
    with se3_fast.backend(backend):
        output = layer({"0": nodes}, {"0": length}, graph)
        assert [list(output[key].shape) for key in "01"] == [[2, 1, 1], [2, 0, 3]]
        sum(one.sum() for one in output.values()).backward()
    assert nodes.grad is not None and nodes.grad.isfinite().all()
