"""Forces: first derivatives of an invariant with respect to positions, and losses on them (second derivatives)."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import EdgeGeometry, Fiber, Graph, SE3Transformer
from se3_fast.backends.cpp import library
from se3_fast.backends.torch import second_derivatives
from tests.support import TOLERANCE, make_convolution, random_features, random_graph, relative_error

EXACT = TOLERANCE[torch.float64]
BACKENDS = ["torch", *(["cpp"] if library.is_available() else [])]
FIBER_IN, FIBER_EDGE = Fiber({0: 3, 1: 2}), Fiber({0: 2, 1: 1})


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen edges at a time."""
    monkeypatch.setattr(second_derivatives, "CHUNK_BYTES", 1)


def _model(num_degrees: int = 2, **arguments: bool) -> nn.Module:
    torch.manual_seed(0)
    return SE3Transformer(
        num_layers=2,
        fiber_in=FIBER_IN,
        fiber_hidden=Fiber.create(num_degrees, 4),
        fiber_out=Fiber({0: 3}),
        num_heads=2,
        channels_div=2,
        fiber_edge=FIBER_EDGE,
        **arguments,
    ).double()


def _positions(num_nodes: int = 7) -> Tensor:
    return 2 * torch.randn(num_nodes, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _energy(model: nn.Module, pos: Tensor, edges: Graph, nodes: dict[str, Tensor], bonds: dict[str, Tensor]) -> Tensor:
    graph = Graph(edges.src, edges.dst, len(pos), edata={"rel_pos": pos[edges.dst] - pos[edges.src]})
    return model(graph, nodes, bonds)["0"].square().sum()


def _problem(num_edges: int = 40) -> tuple[Graph, dict[str, Tensor], dict[str, Tensor]]:
    """A graph with two self-loops, whose edges have no direction."""
    graph = random_graph(7, num_edges)
    graph.dst[:2] = graph.src[:2]
    return graph, random_features(FIBER_IN, 7), random_features(FIBER_EDGE, num_edges, seed=2)


def _gradients_of_force_loss(backend: str, arguments: dict[str, bool]) -> list[Tensor]:
    model, pos = _model(**arguments), _positions().requires_grad_()
    with se3_fast.backend(backend):
        energy = _energy(model, pos, *_problem())
        (gradient,) = torch.autograd.grad(energy, pos, create_graph=True)
        (gradient.square().sum() + energy).backward()
    return [gradient.detach(), pos.grad, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.usefixtures("small_chunks")
def test_loss_on_forces_by_triton() -> None:
    arguments = {"tensor_cores": True}
    expected, found = (_gradients_of_force_loss(name, arguments) for name in ("dense", "triton"))
    assert max(map(relative_error, found, expected)) < 100 * EXACT


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("arguments", [{"tensor_cores": True}, {}, {"low_memory": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_on_forces(backend: str, arguments: dict[str, bool]) -> None:
    """Also through chunks, edges without direction and edge features of degree 1."""
    expected = _gradients_of_force_loss("dense", arguments)
    found = _gradients_of_force_loss(backend, arguments)
    assert max(map(relative_error, found, expected)) < 100 * EXACT


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("pool", [False, True])
def test_second_derivatives_numerically(pool: bool) -> None:
    convolution = make_convolution(Fiber({0: 1, 1: 2}), Fiber({0: 1, 1: 1}), pool=pool)
    graph, nodes = random_graph(4, 18), random_features(Fiber({0: 1, 1: 2}), 4)

    def messages(rel_pos: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
        geometry = EdgeGeometry.from_relative_positions(rel_pos, 1)
        lengths = rel_pos.norm(dim=-1)[:, None, None]
        return tuple(convolution({**nodes, "1": vectors}, {"0": lengths}, graph, geometry).values())

    operands = [graph.edata["rel_pos"].requires_grad_(), nodes["1"].requires_grad_()]
    with se3_fast.backend("torch"):
        assert torch.autograd.gradcheck(messages, operands, fast_mode=True)
        assert torch.autograd.gradgradcheck(messages, operands, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forces_are_central_differences(backend: str) -> None:
    """Degrees up to 4."""
    model, pos, problem = _model(num_degrees=5), _positions(), _problem()
    step = 1e-5
    with se3_fast.backend(backend):
        leaf = pos.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_energy(model, leaf, *problem), leaf)
        with torch.no_grad():
            for node, axis in product((0, 3), range(3)):
                shift = torch.zeros_like(pos)
                shift[node, axis] = step
                above, below = (_energy(model, moved, *problem) for moved in (pos + shift, pos - shift))
                difference = (above - below) / (2 * step)
                assert float((difference - gradient[node, axis]).abs()) < 1e-7 * float(gradient.abs().max())


@pytest.mark.parametrize("offset", [0.0, 1e-7, 1e-12])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_singularity_at_the_poles(backend: str, offset: float) -> None:
    """Edges along the polar axis, and within 1e-7 of it."""
    results = []
    for name in ("dense", backend):
        convolution = make_convolution(FIBER_IN, Fiber({0: 2, 1: 1, 2: 1}))
        graph = random_graph(5, 12)
        rel_pos = (
            torch.tensor([offset, 1.5, -offset], dtype=torch.float64).expand(12, 3) * torch.tensor([1.0, -1.0]).repeat(6)[:, None]
        )
        rel_pos = rel_pos.clone().requires_grad_()
        with se3_fast.backend(name):
            geometry = EdgeGeometry.from_relative_positions(rel_pos, 2)
            lengths = rel_pos.norm(dim=-1)[:, None, None]
            messages = convolution(random_features(FIBER_IN, 5), {"0": lengths}, graph, geometry)
            loss = torch.stack([message.square().sum() for message in messages.values()]).sum()
            (gradient,) = torch.autograd.grad(loss, rel_pos, create_graph=True)
            (second,) = torch.autograd.grad(gradient.square().sum(), rel_pos)
        results.append((gradient.detach(), second))
    assert max(map(relative_error, results[1], results[0])) < 1e-9
