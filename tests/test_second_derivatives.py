"""Derivatives of second and third order, with respect to whatever is asked for: every backend against ``dense``, and that against
central differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import Fiber, Graph, SE3Transformer
from se3_fast.native import library
from se3_fast.ops import second_derivatives
from tests.support import random_features, random_graph, relative_error

BACKENDS = ["torch", *(["cpp"] if library.is_available() else []), "triton"]
EXACT = 1e-10
FIBER_IN, FIBER_EDGE = Fiber({0: 3, 1: 2}), Fiber({0: 2, 1: 1})


class Problem:
    """A small model with its inputs, all of which require grad, and a loss.

    Args:
        arguments: of the model; ``edge`` its edge fiber.
    """

    def __init__(self, dtype: torch.dtype = torch.float64, num_edges: int = 14, **arguments: Any) -> None:
        torch.manual_seed(0)
        fiber_edge = arguments.pop("fiber_edge", FIBER_EDGE)
        self.positions_are_followed = arguments.pop("positions", False)
        options: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "channels_div": 2, "fiber_edge": fiber_edge, **arguments}
        self.model: nn.Module = SE3Transformer(
            fiber_in=FIBER_IN, fiber_hidden=Fiber.create(2, 4), fiber_out=Fiber({0: 2, 1: 1}), **options
        ).to(dtype)
        graph = random_graph(5, num_edges)
        self.graph = graph
        self.rel_pos = graph.edata["rel_pos"].to(dtype).requires_grad_(self.positions_are_followed)
        self.nodes = {key: value.to(dtype).requires_grad_() for key, value in random_features(FIBER_IN, 5).items()}
        edges = random_features(fiber_edge, num_edges, seed=2)
        self.edges = {key: value.to(dtype).requires_grad_() for key, value in edges.items()}

    def loss(self) -> Tensor:
        graph = Graph(self.graph.src, self.graph.dst, 5, edata={"rel_pos": self.rel_pos})
        output = self.model(graph, self.nodes, self.edges)
        return torch.stack([(tensor.double() ** 3).sum() for tensor in output.values()]).sum()

    def variables(self, kind: str) -> list[Tensor]:
        named: dict[str, list[Tensor]] = {
            "parameters": list(self.model.parameters()),
            "radial": [tensor for name, tensor in self.model.named_parameters() if "radial" in name],
            "nodes": list(self.nodes.values()),
            "edges": list(self.edges.values()),
            "positions": [self.rel_pos] if self.positions_are_followed else [],
        }
        return [tensor for part in kind.split("+") for tensor in named[part]]


def directions(tensors: list[Tensor], seed: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor) for tensor in tensors]


def products(backend: str, first: str, second: str, order: int = 2, **arguments: Any) -> list[Tensor]:
    """The derivative of the loss along directions of ``first``, differentiated by ``second`` (``order`` - 1 times)."""
    problem = Problem(**arguments)
    with se3_fast.backend(backend):
        value = problem.loss()
        for repetition in range(order - 1):
            inputs = problem.variables(first)
            gradients = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
            along = directions(inputs, repetition)
            value = torch.stack([(one * other).sum() for one, other in zip(gradients, along, strict=True)]).sum()
        found = torch.autograd.grad(value, problem.variables(second), materialize_grads=True)
    return [tensor.detach() for tensor in (value, *found)]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen edges at a time."""
    monkeypatch.setattr(second_derivatives, "CHUNK_BYTES", 1)


MODELS: dict[str, dict[str, Any]] = {
    "partial": {},
    "full, no edge vectors": {"tensor_cores": True, "fiber_edge": Fiber({0: 2})},
    "low memory": {"low_memory": True},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("second", ["parameters", "nodes+edges"])
@pytest.mark.parametrize("first", ["parameters", "radial", "nodes"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_positions(backend: str, first: str, second: str, name: str) -> None:
    expected = products("dense", first, second, **MODELS[name])
    found = products(backend, first, second, **MODELS[name])
    assert max(map(relative_error, found, expected)) < EXACT
