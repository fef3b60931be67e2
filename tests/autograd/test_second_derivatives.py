"""Derivatives of second and third order, with respect to whatever is asked for: every backend against ``dense``, and that against
central differences."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import AttentionBlockSE3, ConvSE3, EdgeGeometry, Fiber, Graph, SE3TransformerPooled
from se3_fast.backends.cpp import library
from se3_fast.backends.dense.layer_norm import layer_norm
from se3_fast.backends.torch import second_derivatives
from se3_fast.ops.basis import get_basis, update_basis_with_fused
from tests.support import TOLERANCE, make_convolution, random_features, random_graph, relative_error

BACKENDS = ["torch", *(["cpp"] if library.is_available() else []), "triton"]
FIBER_IN, FIBER_EDGE = Fiber({0: 2, 1: 1}), Fiber({0: 1, 1: 1})
NUM_NODES = 4
EXACT = 100 * TOLERANCE[torch.float64]


class Problem:
    """A small model with its inputs, all of which require grad but for the positions, and a loss.

    Args:
        dtype: of all tensors.
        positions: whether the positions require grad, too.
        num_edges: E.
        zero_length_edges: edges without direction.
        fiber_edge: structure of the edge features.
        **arguments: of the model.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float64,
        positions: bool = False,
        num_edges: int = 7,
        zero_length_edges: int = 0,
        fiber_edge: Fiber = FIBER_EDGE,
        **arguments: Any,
    ) -> None:
        torch.manual_seed(0)
        options: dict[str, Any] = {"num_layers": 1, "num_heads": 1, "channels_div": 1, "norm": True, **arguments}
        self.model: nn.Module = SE3TransformerPooled(
            fiber_in=FIBER_IN,
            fiber_out=Fiber({0: 2}),
            fiber_edge=fiber_edge,
            num_degrees=2,
            num_channels=2,
            output_dim=1,
            pooling="avg",
            **options,
        ).to(dtype)
        self.edges = random_graph(NUM_NODES, num_edges, zero_length_edges=zero_length_edges)
        self.rel_pos = self.edges.edata["rel_pos"].to(dtype).requires_grad_(positions)
        self.node_features = {key: value.to(dtype).requires_grad_() for key, value in random_features(FIBER_IN, NUM_NODES).items()}
        self.edge_features = {
            key: value.to(dtype).requires_grad_() for key, value in random_features(fiber_edge, num_edges, seed=2).items()
        }

    def loss(self) -> Tensor:
        """Not linear in the output."""
        graph = Graph(self.edges.src, self.edges.dst, NUM_NODES, edata={"rel_pos": self.rel_pos})
        return (self.model(graph, self.node_features, self.edge_features).double() ** 3).sum()

    def variables(self, kinds: str) -> list[Tensor]:
        """Of one kind or of several, ``nodes+edges``."""
        of_kind = {
            "parameters": list(self.model.parameters()),
            "radial": [tensor for name, tensor in self.model.named_parameters() if "radial" in name],
            "nodes": list(self.node_features.values()),
            "edges": list(self.edge_features.values()),
            "positions": [self.rel_pos],
        }
        return [tensor for kind in kinds.split("+") for tensor in of_kind[kind]]


def along(tensors: list[Tensor], directions_of: list[Tensor], seed: int) -> Tensor:
    """The sum of products with fixed random directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(like.shape, generator=generator, dtype=torch.float64) for like in directions_of]
    return torch.stack(
        [(tensor * other.to(tensor)).sum().double() for tensor, other in zip(tensors, directions, strict=True)]
    ).sum()


def derivatives(backend: str, first: str, second: str, order: int = 2, **arguments: Any) -> list[Tensor]:
    """The loss differentiated along directions of ``first``, ``order`` - 1 times; and the gradients of that by ``second``."""
    problem = Problem(**arguments)
    with se3_fast.backend(backend):
        value = problem.loss()
    for repetition in range(order - 1):
        inputs = problem.variables(first)
        gradients = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
        value = along(list(gradients), inputs, repetition)
    found = torch.autograd.grad(value, problem.variables(second), materialize_grads=True)
    return [tensor.detach() for tensor in (value, *found)]


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(map(relative_error, found, expected))


@pytest.fixture(params=["by edge", "by source"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both orders of contraction, on every backend."""
    choose_order(monkeypatch, request.param == "by source")


def choose_order(monkeypatch: pytest.MonkeyPatch, by_source: bool) -> None:
    monkeypatch.setattr(ConvSE3, "contraction_order", "source" if by_source else "edge")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen edges at a time."""
    monkeypatch.setattr(second_derivatives, "CHUNK_BYTES", 1)


ALL = "parameters+nodes+edges"
PARTS = [("radial", "radial"), ("radial", "nodes"), ("nodes", "radial"), ("edges", "edges")]
SHORT: dict[str, Any] = {"final_layer": "lin"}
"""One convolution, not two."""

MODELS: dict[str, dict[str, Any]] = {
    "partial": {},
    "full": {"tensor_cores": True, "fiber_edge": Fiber({0: 1})},
    "low memory": {"low_memory": True},
}


@pytest.mark.parametrize(
    ("backend", "name"), [(backend, name) for backend in BACKENDS for name in MODELS if backend != "triton" or name == "partial"]
)
def test_without_positions(backend: str, name: str) -> None:
    """Hessian-vector products of a loss, penalties on gradients, and what one optimizer step before another needs."""
    expected, found = (derivatives(one, ALL, ALL, **MODELS[name]) for one in ("dense", backend))
    assert largest_error(found, expected) < EXACT


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [(backend, kinds) for backend in BACKENDS for kinds in PARTS if backend != "triton" or kinds == ("radial", "radial")],
    ids=str,
)
def test_of_a_part_alone(backend: str, kinds: tuple[str, str]) -> None:
    """Autograd runs through no node that does not lead to what is asked for."""
    expected, found = (derivatives(one, *kinds, **SHORT) for one in ("dense", backend))
    assert largest_error(found, expected) < EXACT


@pytest.mark.parametrize(
    ("backend", "first"), [(backend, first) for backend in BACKENDS for first in ("positions", "parameters")][:-1]
)
@pytest.mark.usefixtures("small_chunks", "order")
def test_with_positions(backend: str, first: str) -> None:
    options: dict[str, Any] = {**SHORT, "positions": True, "fiber_edge": Fiber({0: 1}), "num_edges": 18, "zero_length_edges": 1}
    expected, found = (derivatives(one, first, ALL + "+positions", **options) for one in ("dense", backend))
    assert largest_error(found, expected) < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_source_without_positions(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_order(monkeypatch, by_source=True)
    options: dict[str, Any] = {**SHORT, "fiber_edge": Fiber({0: 1}), "tensor_cores": True}
    expected, found = (derivatives(one, "parameters", ALL, **options) for one in ("dense", backend))
    assert largest_error(found, expected) < EXACT


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [(backend, kinds) for backend in BACKENDS for kinds in (("parameters", ALL), ("positions", "parameters+positions"))][:-1],
    ids=str,
)
def test_third_order(backend: str, kinds: tuple[str, str]) -> None:
    """Hessian-vector products of a loss on forces."""
    expected, found = (derivatives(one, *kinds, order=3, positions=kinds[0] == "positions", **SHORT) for one in ("dense", backend))
    assert largest_error(found, expected) < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_edges(backend: str) -> None:
    expected, found = (derivatives(one, ALL, ALL + "+positions", num_edges=0, positions=True) for one in ("dense", backend))
    assert largest_error(found, expected) < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_float32(backend: str) -> None:
    """Small parts of the gradient are measured with the large ones: by all of it together.

    The loss amplifies rounding, by how much depends on the processor's arithmetic and on chance: no more than ten times what
    ``dense`` loses (on one processor 8 times, on others twice).
    """
    truth = derivatives("dense", "parameters", ALL, **SHORT)
    exact, rounded, found = (
        torch.cat([tensor.double().flatten() for tensor in tensors])
        for tensors in (truth, *(derivatives(one, "parameters", ALL, dtype=torch.float32, **SHORT) for one in ("dense", backend)))
    )
    assert relative_error(found, exact) < 10 * max(TOLERANCE[torch.float32], relative_error(rounded, exact))


@pytest.mark.parametrize(("backend", "low_memory"), [("torch", False), *((backend, True) for backend in BACKENDS[1:])])
def test_under_autocast(backend: str, low_memory: bool) -> None:
    """An attention block in bfloat16."""

    def run(backend: str, dtype: torch.dtype, is_amp: bool) -> Tensor:
        torch.manual_seed(0)
        block = AttentionBlockSE3(
            FIBER_IN, Fiber({0: 4, 1: 4}), num_heads=1, channels_div=1, max_degree=1, low_memory=low_memory
        ).to(dtype)
        graph = random_graph(NUM_NODES, 7)
        rel_pos = graph.edata["rel_pos"].to(dtype)
        nodes = {key: value.to(dtype).requires_grad_() for key, value in random_features(FIBER_IN, NUM_NODES).items()}
        lengths = {"0": rel_pos.norm(dim=-1)[:, None, None]}
        with se3_fast.backend(backend), torch.autocast("cpu", torch.bfloat16, enabled=is_amp):
            geometry = EdgeGeometry.from_relative_positions(rel_pos, 1)
            outputs = block(nodes, lengths, graph, geometry)
        value = torch.stack([(output.double() ** 2).sum() for output in outputs.values()]).sum()
        inputs = list(block.parameters())
        gradients = torch.autograd.grad(value, inputs, create_graph=True)
        found = torch.autograd.grad(along(list(gradients), inputs, 0), [*inputs, *nodes.values()])
        return torch.cat([tensor.double().flatten() for tensor in found])

    error = relative_error(run(backend, torch.float32, True), run("dense", torch.float64, False))
    assert error < 2.5 * TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("kinds", [("parameters", "parameters+positions"), ("positions", "parameters+positions")], ids=str)
def test_by_central_differences(kinds: tuple[str, str], order: int) -> None:
    """Along one direction of all that is asked for: the derivatives of ``dense``, to which all other tests hold."""
    step = 1e-6

    def moved(factor: float) -> float:
        problem = Problem(positions=True)
        variables, inputs = problem.variables(kinds[1]), problem.variables(kinds[0])
        generator = torch.Generator().manual_seed(11)
        with se3_fast.backend("dense"), torch.no_grad():
            for variable in variables:
                variable += factor * torch.randn(variable.shape, generator=generator, dtype=torch.float64)
        with se3_fast.backend("dense"):
            value = problem.loss()
        for repetition in range(order - 1):
            gradients = torch.autograd.grad(value, inputs, create_graph=order > 2, materialize_grads=True)
            value = along(list(gradients), inputs, repetition)
        return float(value.detach())

    _, *found = derivatives("dense", *kinds, order=order, positions=True)
    slope = (moved(step) - moved(-step)) / (2 * step)
    generator = torch.Generator().manual_seed(11)
    directions = [torch.randn(gradient.shape, generator=generator, dtype=torch.float64) for gradient in found]
    product = float(sum((one * other).sum() for one, other in zip(found, directions, strict=True)))
    assert abs(product - slope) < 1e-6 * abs(slope)


def test_a_gradient_that_depends_on_another_operand() -> None:
    """Operands computed from one another count once: the projection reads what the attention made of its other input."""
    torch.manual_seed(0)
    gradients = []
    for backend in ("dense", "triton"):
        torch.manual_seed(0)
        layer = se3_fast.LinearSE3(Fiber({0: 4}), Fiber({0: 2})).double()
        beside = random_features(Fiber({0: 2}), 3)["0"].requires_grad_()
        with se3_fast.backend(backend):
            output = layer({"0": beside**2}, beside={"0": beside})["0"]
        (gradient,) = torch.autograd.grad((output**3).sum(), beside, create_graph=True)
        gradients.append(torch.autograd.grad((gradient**2).sum(), beside)[0])
    assert relative_error(gradients[1], gradients[0]) < EXACT


def test_layer_normalisation() -> None:
    """PyTorch's own takes mean and variance for constants in its third derivative."""

    def by_formula(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale + shift

    results = []
    for function in (by_formula, lambda *operands: layer_norm(*operands, 1e-5)):
        operands = [
            value[:shape].clone().requires_grad_()
            for value, shape in zip(
                torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), (4, 1, 1), strict=True
            )
        ]
        value = (function(operands[0], operands[1][0], operands[2][0]) ** 3).sum()
        results.append([value.detach()])
        for repetition in range(4):
            gradients = torch.autograd.grad(value, operands, create_graph=True)
            value = along(list(gradients), operands, repetition)
            results[-1] += [gradient.detach() for gradient in gradients]
    assert largest_error(results[1], results[0]) < EXACT


@pytest.mark.parametrize("is_padded", [False, True])
def test_bases(is_padded: bool) -> None:
    """Of the published basis functions; backend triton has kernels for both."""
    results = []
    for backend in ("dense", "triton"):
        rel_pos = random_graph(3, 5).edata["rel_pos"].requires_grad_()
        with se3_fast.backend(backend):
            pairwise = get_basis(rel_pos, 1, compute_gradients=True, use_pad_trick=is_padded)
            bases = update_basis_with_fused(pairwise, 1, is_padded, fully_fused=True)
        value = torch.stack([(bases[key] ** 3).sum() for key in sorted(bases)]).sum()
        (gradient,) = torch.autograd.grad(value, rel_pos, create_graph=True)
        results.append([gradient.detach(), *torch.autograd.grad((gradient**2).sum(), rel_pos)])
    assert largest_error(results[1], results[0]) < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_without_radial_part(backend: str) -> None:
    """A convolution whose invariants do not depend on the positions: what is left is the turning of the frames."""
    results = []
    for name in ("dense", backend):
        convolution = make_convolution(FIBER_IN, Fiber({0: 1, 1: 1}))
        graph = random_graph(NUM_NODES, 6)
        rel_pos = graph.edata["rel_pos"].requires_grad_()
        with se3_fast.backend(name):
            geometry = EdgeGeometry.from_relative_positions(rel_pos, 1)
            length = rel_pos.detach().norm(dim=-1)[:, None, None]
            messages = convolution(random_features(FIBER_IN, NUM_NODES), {"0": length}, graph, geometry)
        value = torch.stack([(message**3).sum() for message in messages.values()]).sum()
        (gradient,) = torch.autograd.grad(value, rel_pos, create_graph=True)
        second = torch.autograd.grad((gradient**2).sum(), [rel_pos, *convolution.parameters()])
        results.append([gradient.detach(), *second])
    assert largest_error(results[1], results[0]) < EXACT


def compiled_derivatives(backend: str) -> list[Tensor]:
    """As :func:`derivatives` of a compiled model without edge vectors."""
    torch._dynamo.reset()
    problem = Problem(fiber_edge=Fiber({0: 1}), **SHORT)
    variables = problem.variables(ALL)
    problem.model = torch.compile(problem.model, backend="eager", fullgraph=True)  # type: ignore[assignment]
    with se3_fast.backend(backend):
        loss = problem.loss()
    value = along(list(torch.autograd.grad(loss, variables, create_graph=True, materialize_grads=True)), variables, 0)
    return [value.detach(), *torch.autograd.grad(value, variables, materialize_grads=True)]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_of_a_compiled_graph(backend: str) -> None:
    expected = derivatives("dense", ALL, ALL, fiber_edge=Fiber({0: 1}), **SHORT)
    assert largest_error(compiled_derivatives(backend), expected) < EXACT


def test_compilers_refuse() -> None:
    """With respect to whatever is asked for."""
    torch._dynamo.reset()
    problem = Problem(**SHORT)
    variables = problem.variables("parameters+nodes")
    problem.model = torch.compile(problem.model, backend="aot_eager", fullgraph=True)  # type: ignore[assignment]
    with se3_fast.backend("torch"):
        loss = problem.loss()
    value = along(list(torch.autograd.grad(loss, variables, create_graph=True, materialize_grads=True)), variables, 0)
    for variable in variables:
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            torch.autograd.grad(value, variable, retain_graph=True)


def autograd_functions(base: type = torch.autograd.Function) -> Iterator[type]:
    for function in base.__subclasses__():
        if function.__module__.startswith("se3_fast"):
            yield function
        yield from autograd_functions(function)


def test_there_is_no_other_way_to_a_gradient() -> None:
    """Every autograd function of the package is one of those that are differentiated by formula, or a linear one."""
    for package in (se3_fast.ops, se3_fast.backends):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".operations"):  # the library of compiled operations, which is no module
                importlib.import_module(module.name)
    found = {function.__module__ for function in autograd_functions()}
    # LAMMPS exchanges features between its processes, there and back; it asks for no second derivatives.
    assert found - {"se3_fast.lammps"} == {"se3_fast.autograd.operation"}
