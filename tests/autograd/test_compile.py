"""``torch.compile``: one graph without breaks for any number of nodes and edges, equal to eager in results and every gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import Fiber, Graph, NormSE3, SE3Transformer, SE3TransformerPooled
from tests.support import TOLERANCE, make_convolution, random_features, random_graph, relative_error

FIBERS: dict[str, Any] = {"fiber_in": Fiber({0: 3, 1: 2}), "fiber_edge": Fiber({0: 2}), "num_heads": 2, "channels_div": 2}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def _inputs(num_nodes: int, num_edges: int, zero_length_edges: int = 0) -> tuple[Graph, dict[str, Tensor], dict[str, Tensor]]:
    graph = random_graph(num_nodes, num_edges, seed=num_edges, zero_length_edges=zero_length_edges)
    return graph, random_features(FIBERS["fiber_in"], num_nodes), random_features(FIBERS["fiber_edge"], num_edges, seed=2)


def _transformer(**arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    model = SE3Transformer(num_layers=1, fiber_hidden=Fiber.create(2, 4), fiber_out=Fiber({0: 3, 1: 1}), **FIBERS, **arguments)
    return model.double()


def _results(call: Any, model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Outputs and all gradients."""
    model.zero_grad()
    output = call(*inputs)
    tensors = list(output.values()) if isinstance(output, dict) else [output]
    torch.stack([tensor.square().sum() for tensor in tensors]).sum().backward()
    return [*tensors, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def _check(model: nn.Module, sizes: list[tuple[int, ...]], compiler: str = "aot_eager") -> None:
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=compiler)
    for size in sizes:
        expected = _results(model, model, _inputs(*size))
        found = _results(compiled, model, _inputs(*size))
        assert len(found) == len(expected)
        assert max(map(relative_error, found, expected)) < 1e-12
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_transformer(backend: str, low_memory: bool) -> None:
    with se3_fast.backend(backend):
        _check(_transformer(low_memory=low_memory), [(5, 11), (7, 9)])


def test_edges_without_length() -> None:
    with se3_fast.backend("torch"):
        _check(_transformer(), [(5, 11, 0), (6, 9, 3)])


def test_code_of_the_default_compiler() -> None:
    model = make_convolution(Fiber({0: 3, 1: 2}), Fiber({0: 3}))
    graph, nodes, edges = _inputs(5, 11)
    edges = {"0": edges["0"][:, :1]}
    geometry = se3_fast.EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1)
    with se3_fast.backend("torch"):
        compiled = torch.compile(model, fullgraph=True)
        inputs = (nodes, edges, graph, geometry)
        assert max(map(relative_error, _results(compiled, model, inputs), _results(model, model, inputs))) < 1e-12


def test_pooled_model_with_autocast() -> None:
    torch.manual_seed(0)
    model = SE3TransformerPooled(
        num_layers=1, num_degrees=2, num_channels=4, output_dim=1, fiber_out=Fiber({0: 4}), tensor_cores=True, **FIBERS
    )
    graph, nodes, edges = _inputs(6, 13)
    graph = Graph(graph.src, graph.dst, 6, [4, 2], [9, 4], edata={"rel_pos": graph.edata["rel_pos"].float()})
    inputs = (graph, *({key: tensor.float() for key, tensor in part.items()} for part in (nodes, edges)))
    with se3_fast.backend("torch"), torch.autocast("cpu"):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        errors = map(relative_error, _results(compiled, model, inputs), _results(model, model, inputs))
        assert max(errors) < TOLERANCE[torch.bfloat16]


def test_gradient_to_positions() -> None:
    model = _transformer()
    gradients = []
    with se3_fast.backend("torch"):
        for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
            graph, *features = _inputs(5, 11)
            rel_pos = graph.edata["rel_pos"].requires_grad_()
            call(graph, *features)["0"].square().sum().backward()
            gradients.append(rel_pos.grad)
    assert gradients[0].norm() > 0
    assert relative_error(gradients[1], gradients[0]) < 1e-12


def test_norm_of_unequal_channels() -> None:
    norm = NormSE3(Fiber({0: 3, 1: 2})).double()
    features = random_features(norm.fiber, 5)
    with se3_fast.backend("triton"):
        compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
        assert max(map(relative_error, _results(compiled, norm, (features,)), _results(norm, norm, (features,)))) < 1e-12
