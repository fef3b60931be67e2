"""Options of the protein-design branches: what is appended to edge features, the last layer, pooling, divisors per degree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import AttentionBlockSE3, ConvSE3FuseLevel, EdgeGeometry, Fiber, Graph, LinearSE3, SE3Transformer, get_basis
from tests.support import (
    make_convolution,
    random_features,
    random_graph,
    random_rotation,
    relative_error,
    rotate_features,
)

FIBERS: dict[str, Any] = {
    "fiber_in": Fiber({0: 3, 1: 2}),
    "fiber_hidden": Fiber.create(3, 4),
    "fiber_out": Fiber({0: 4, 1: 2}),
    "fiber_edge": Fiber({0: 2}),
}
ARGUMENTS: dict[str, Any] = {**FIBERS, "num_layers": 1, "num_heads": 2, "channels_div": 2}
BACKENDS = ["dense", "auto"]


def model(**options: Any) -> SE3Transformer:
    torch.manual_seed(0)
    return SE3Transformer(**{**ARGUMENTS, **options}).double()


def problem() -> tuple[Graph, dict[str, Tensor], dict[str, Tensor]]:
    graph = random_graph(6, 25, zero_length_edges=2)
    graph.edata["rel_pos"] *= 4.0  # shorter and longer than 4
    return graph, random_features(FIBERS["fiber_in"], 6), random_features(FIBERS["fiber_edge"], 25)


APPENDED = {
    "lin": lambda length: length,
    "arcsin": lambda length: torch.arcsinh((length - 4.0).relu()) / 3.0,
    "log": lambda length: (1.0 + length).log(),
    "zero": lambda length: 0.0 * length,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("populate_edge", APPENDED)
@pytest.mark.parametrize("has_edge_features", [True, False], ids=["edge features", "none"])
def test_what_is_appended_to_edge_features(populate_edge: str, has_edge_features: bool, backend: str) -> None:
    network = model(populate_edge=populate_edge, **({} if has_edge_features else {"fiber_edge": Fiber({})}))
    graph, nodes, edges = problem()
    length = graph.edata["rel_pos"].norm(dim=-1)[:, None, None]
    assert length.min() < 4 < length.max()
    appended = [edges["0"]] * has_edge_features + [APPENDED[populate_edge](length)]
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 2)
    with se3_fast.backend(backend), torch.no_grad():
        truth = network.graph_modules(nodes, {"0": torch.cat(appended, 1)}, graph=graph, basis=geometry)
        result = network(graph, nodes, edges if has_edge_features else None)
    for degree, value in result.items():
        assert relative_error(value, truth[degree]) < 1e-12
    assert edges["0"].shape == (25, 2, 1)  # not what the model appends to


@pytest.mark.parametrize("populate_edge", APPENDED)
def test_gradients_through_what_is_appended(populate_edge: str) -> None:
    network = model(populate_edge=populate_edge)
    graph, nodes, edges = problem()
    rel_pos = graph.edata["rel_pos"][2:].clone().requires_grad_()
    moved = Graph(graph.src[2:], graph.dst[2:], 6, edata={"rel_pos": rel_pos})
    gradients = []
    for backend in BACKENDS:
        with se3_fast.backend(backend):
            result = network(moved, nodes, {"0": edges["0"][2:]})
        loss = result["0"].square().sum() + result["1"].square().sum()
        gradients.append(torch.autograd.grad(loss, [rel_pos, *network.parameters()], allow_unused=True, materialize_grads=True))
    for value, truth in zip(*gradients, strict=True):
        assert relative_error(value, truth) < 1e-11


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("low_memory", [False, True], ids=["kept", "low memory"])
@pytest.mark.parametrize("self_interaction", [False, True], ids=["messages", "self-interaction"])
@pytest.mark.parametrize("num_edges", [0, 1, 33])
def test_mean_over_incoming_edges(num_edges: int, self_interaction: bool, low_memory: bool, backend: str) -> None:
    fiber_in, fiber_out = Fiber({0: 5, 1: 3}), Fiber({0: 1, 1: 3, 2: 2})
    options = {"self_interaction": self_interaction, "fuse_level": ConvSE3FuseLevel.PARTIAL}
    messages_of = make_convolution(fiber_in, fiber_out, pool=False, **options)
    mean_of = make_convolution(fiber_in, fiber_out, sum_over_edge=False, low_memory=low_memory, **options)
    graph = random_graph(7, num_edges)
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 2)
    edges = {"0": torch.rand(num_edges, 1, 1, dtype=torch.float64)}
    nodes = {degree: feature.requires_grad_() for degree, feature in random_features(fiber_in, 7).items()}
    with se3_fast.backend("dense"):
        messages = messages_of(nodes, edges, graph, geometry)
    truth = {}
    for degree, message in messages.items():
        means = [message[graph.dst == node].mean(0) if (graph.dst == node).any() else 0 * message.sum(0) for node in range(7)]
        truth[degree] = torch.stack(means)
    with se3_fast.backend(backend):
        result = mean_of(nodes, edges, graph, geometry)
    weights = random_features(fiber_out, 7, seed=3)
    gradients = []
    for values, parameters in ((result, mean_of.parameters()), (truth, messages_of.parameters())):
        loss = torch.stack([(values[degree] * weight).sum() for degree, weight in weights.items()]).sum()
        leaves = [*nodes.values(), *parameters]
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    for degree, value in result.items():
        assert relative_error(value, truth[degree]) < 1e-12
    for value, expected in zip(*gradients, strict=True):
        assert relative_error(value, expected) < 1e-11


def test_the_model_takes_the_mean_in_its_last_layer() -> None:
    graph, nodes, edges = problem()
    summed, mean = model(), model(sum_over_edge=False)
    with torch.no_grad():
        sums, means = summed(graph, nodes, edges), mean(graph, nodes, edges)
    for degree, total in sums.items():
        counts = graph.in_degrees().clamp(min=1)[:, None, None]
        assert relative_error(means[degree], total / counts) < 1e-12


def test_final_linear_layer() -> None:
    graph, nodes, edges = problem()
    network = model(final_layer="lin")
    last = network.graph_modules[-1]
    assert isinstance(last, LinearSE3) and "graph_modules.2.weights.1" in network.state_dict()
    hidden: list[dict[str, Tensor]] = []
    last.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0]))
    with torch.no_grad():
        for degree, value in network(graph, nodes, edges).items():
            assert relative_error(value, last.weights[degree] @ hidden[0][degree]) < 1e-12
    with pytest.raises(ValueError, match="fiber_out: expected degrees among those of fiber_in"):
        model(final_layer="lin", fiber_out=Fiber({3: 1}))


@pytest.mark.parametrize("backend", BACKENDS)
def test_final_attention_block(backend: str) -> None:
    graph, nodes, edges = problem()
    network = model(final_layer="att", num_heads=1, fiber_out=Fiber({0: 4, 1: 3}))
    last = network.graph_modules[-1]
    assert isinstance(last, AttentionBlockSE3) and last.attention.num_heads == 1
    assert dict(last.value_fiber.structure) == {0: 2, 1: 3}  # degree 1 is not divided
    rotation = random_rotation()
    turned = Graph(graph.src, graph.dst, 6, edata={"rel_pos": graph.edata["rel_pos"] @ rotation.T})
    with se3_fast.backend(backend), torch.no_grad():
        truth = rotate_features(network(graph, nodes, edges), rotation)
        for degree, value in network(turned, rotate_features(nodes, rotation), edges).items():
            assert relative_error(value, truth[degree]) < 1e-11


@pytest.mark.parametrize("divisors", [{0: 4, 1: 1, 2: 2}, {"0": 4, "1": 1, "2": 2}], ids=["numbers", "text"])
def test_divisors_per_degree(divisors: Any) -> None:
    graph, nodes, edges = problem()
    network = model(channels_div=divisors, num_heads=1)
    assert dict(network.graph_modules[0].value_fiber.structure) == {0: 1, 1: 4, 2: 2}
    with torch.no_grad():
        result = network(graph, nodes, edges)
        with se3_fast.backend("dense"):
            truth = network(graph, nodes, edges)
    for degree, value in result.items():
        assert relative_error(value, truth[degree]) < 1e-12
    assert dict(model(channels_div=None).graph_modules[0].value_fiber.structure) == {0: 4, 1: 4, 2: 4}
    final = model(channels_div=divisors, num_heads=1, final_layer="att").graph_modules[-1]
    assert dict(final.value_fiber.structure) == {0: 1, 1: 2}


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_through_edge_lengths_alone(backend: str) -> None:
    """``compute_gradients=False`` gives the published gradient, in which the bases are constants."""
    graph, nodes, edges = problem()
    gradients = []
    for option, basis in ((False, None), (None, get_basis(graph.edata["rel_pos"], 2)), (True, None), (None, None)):
        rel_pos = graph.edata["rel_pos"].clone().requires_grad_()
        moved = Graph(graph.src, graph.dst, 6, edata={"rel_pos": rel_pos})
        with se3_fast.backend(backend):
            model(compute_gradients=option)(moved, nodes, edges, basis)["1"].square().sum().backward()
        gradients.append(rel_pos.grad)
    through_length, published, complete, automatic = gradients
    assert relative_error(through_length, published) < 1e-11 and relative_error(complete, published) > 0.1
    assert relative_error(complete, automatic) < 1e-15


def test_errors() -> None:
    with pytest.raises(ValueError, match="final_layer: expected one of conv, lin, att, got 'linear'"):
        model(final_layer="linear")
    with pytest.raises(ValueError, match="populate_edge: expected one of lin, arcsin, log, zero, got 'exp'"):
        model(populate_edge="exp")
    with pytest.raises(ValueError, match=r"channels_div: expected divisors for the degrees .* of fiber_out, got none for \[2\]"):
        model(channels_div={0: 2, 1: 2})
    with pytest.raises(ValueError, match="channels_div: expected a divisor of the 4 channels of degree 1 in fiber_out, got 3"):
        model(channels_div={0: 2, 1: 3, 2: 2})
