"""``torch.func`` transforms and batched gradients: on every backend the same as plain autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

import se3_fast
from se3_fast import Fiber, Graph, SE3TransformerPooled
from se3_fast.backends.cpp import library
from tests.support import random_features, random_graph, relative_error

BACKENDS = ["dense", "torch", *(["cpp"] if library.is_available() else []), "triton"]
FIBER_IN, FIBER_EDGE = Fiber({0: 2, 1: 2}), Fiber({0: 1})
EXACT = 1e-11

Features = dict[str, Tensor]


def make_model(seed: int = 0, **arguments: Any) -> nn.Module:
    """With one convolution and no norm unless the arguments say otherwise."""
    torch.manual_seed(seed)
    return SE3TransformerPooled(
        num_layers=1,
        num_degrees=2,
        num_channels=2,
        output_dim=1,
        fiber_in=FIBER_IN,
        fiber_out=Fiber({0: 2}),
        fiber_edge=FIBER_EDGE,
        num_heads=1,
        channels_div=1,
        **{"final_layer": "lin", "norm": False, **arguments},
    ).double()


def inputs(num_edges: int = 5) -> tuple[Graph, Tensor, Features, Features]:
    """Edges, positions, node and edge features of four nodes."""
    graph = random_graph(4, num_edges, seed=3)
    graph.dst[graph.dst == graph.src] = 3
    pos = torch.randn(4, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return graph, pos, random_features(FIBER_IN, 4), random_features(FIBER_EDGE, num_edges, seed=2)


def graph_at(edges: Graph, pos: Tensor) -> Graph:
    """The edges between nodes at some positions, in a graph that has met no transform yet."""
    rel_pos = pos.index_select(0, edges.dst) - pos.index_select(0, edges.src)
    return Graph(edges.src, edges.dst, len(pos), edata={"rel_pos": rel_pos})


def energy(model: nn.Module, edges: Graph, pos: Tensor, nodes: Features, bonds: Features) -> Tensor:
    return model(graph_at(edges, pos), nodes, bonds).square().sum()


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def gradient_of(tensor: Tensor) -> Tensor:
    """Zeros where nothing depends on a tensor, as a transform returns them."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def assert_equal(found: Any, expected: Any, tolerance: float = EXACT) -> None:
    """Tensors in the same tree."""
    pairs = zip(*(torch.utils._pytree.tree_leaves(tree) for tree in (found, expected)), strict=True)
    assert max(relative_error(one, other) for one, other in pairs) < tolerance


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_parameters(backend: str, low_memory: bool) -> None:
    model, arguments = make_model(low_memory=low_memory, final_layer="conv", norm=True), inputs()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        edges, pos, nodes, bonds = arguments
        return functional_call(model, parameters, (graph_at(edges, pos), nodes, bonds)).square().sum()

    with se3_fast.backend(backend):
        found = grad(loss)(parameters_of(model))
    with se3_fast.backend("dense"):
        energy(model, *arguments).backward()
    assert_equal(found, {name: parameter.grad for name, parameter in model.named_parameters()})


@pytest.mark.parametrize("backend", BACKENDS)
def test_forces_and_their_derivatives(backend: str) -> None:
    """First and second derivatives along two directions in which the nodes move."""
    model, (edges, pos, nodes, bonds) = make_model(), inputs()
    moves = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    start, basis = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)

    def value(steps: Tensor) -> Tensor:
        return energy(model, edges, pos + (steps[:, None, None] * moves).sum(0), nodes, bonds)

    leaf = start.clone().requires_grad_()
    with se3_fast.backend("dense"):
        (expected,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
        second = torch.stack([torch.autograd.grad(entry, leaf, retain_graph=True)[0] for entry in expected])
    with se3_fast.backend(backend):
        assert_equal(grad(value)(start), expected.detach())
        assert_equal(hessian(value)(start), second, 1e-10)
        if backend != "triton":  # takes long in Triton's interpreter
            assert_equal(jacrev(jacrev(value))(start), second, 1e-10)
        (gradient,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
        (by_batch,) = torch.autograd.grad(gradient, leaf, basis, is_grads_batched=True)
        assert_equal(by_batch, second, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode(backend: str) -> None:
    """Along one direction of positions, features and parameters; also differentiated again in both modes."""
    model, (edges, pos, nodes, bonds) = make_model(), inputs()
    operands = (pos, nodes, parameters_of(model))

    def value(pos: Tensor, nodes: Features, parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(model, parameters, (graph_at(edges, pos), nodes, bonds)).square().sum()

    def step(factor: Tensor) -> Tensor:
        moved = torch.utils._pytree.tree_map(lambda operand: operand + factor * direction(operand), operands)
        return value(*moved)

    tangents = torch.utils._pytree.tree_map(direction, operands)
    with se3_fast.backend("dense"):
        gradients = torch.utils._pytree.tree_leaves(grad(value, argnums=(0, 1, 2))(*operands))
    slope = sum((one * other).sum() for one, other in zip(gradients, torch.utils._pytree.tree_leaves(tangents), strict=True))
    zero = torch.zeros((), dtype=torch.float64)
    with se3_fast.backend(backend):
        assert_equal(jvp(value, operands, tangents)[1], slope)
        if backend != "triton":
            second = jacrev(jacrev(step))(zero)
            assert_equal([jacfwd(jacfwd(step))(zero), jacrev(jacfwd(step))(zero)], [second, second], 1e-10)


def direction(like: Tensor) -> Tensor:
    return torch.sin(torch.arange(like.numel(), dtype=like.dtype)).view(like.shape)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_in_a_batch(backend: str) -> None:
    """First derivatives, for several gradients of the output at once."""
    model, (edges, pos, nodes, bonds) = make_model(), inputs()
    leaves = [pos.requires_grad_(), *model.parameters()]
    factors = torch.tensor([1.0, -0.5], dtype=torch.float64)
    with se3_fast.backend(backend):
        value = energy(model, edges, pos, nodes, bonds)
        all_found = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        expected = [gradient for gradient in all_found if gradient is not None]
        used = [leaf for leaf, gradient in zip(leaves, all_found, strict=True) if gradient is not None]
        found = torch.autograd.grad(value, used, factors, is_grads_batched=True)
    assert_equal(found, [torch.stack([gradient * factor for factor in factors]) for gradient in expected])


@pytest.mark.parametrize("backend", BACKENDS)
def test_ensemble(backend: str) -> None:
    """Several models at once, and their gradients."""
    models, arguments = [make_model(seed) for seed in range(2)], inputs()
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(models[0]).to("meta")

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        edges, pos, nodes, bonds = arguments
        return functional_call(base, (parameters, buffers), (graph_at(edges, pos), nodes, bonds)).square().sum()

    with se3_fast.backend(backend):
        found = vmap(loss)(parameters, buffers)
        found.sum().backward()
        gradients = vmap(grad(loss))(parameters, buffers) if backend != "triton" else None
    with se3_fast.backend("dense"):
        losses = [energy(model, *arguments) for model in models]
        torch.stack(losses).sum().backward()
    assert_equal(found.detach(), torch.stack(losses).detach())
    for name in parameters:
        truth = torch.stack([gradient_of(dict(model.named_parameters())[name]) for model in models])
        assert_equal(gradient_of(parameters[name]), truth)
        if gradients is not None:
            assert_equal(gradients[name], truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_each_sample(backend: str) -> None:
    """Of features, and of positions, that differ from entry to entry; by parameters and by positions."""
    model, (edges, pos, nodes, bonds) = make_model(), inputs()
    positions = torch.stack([pos, 1.1 * pos.flip(0)])
    features = {key: torch.stack([value, value.flip(0)]) for key, value in nodes.items()}

    def loss(parameters: dict[str, Tensor], pos: Tensor, nodes: Features) -> Tensor:
        return functional_call(model, parameters, (graph_at(edges, pos), nodes, bonds)).square().sum()

    with se3_fast.backend(backend):
        found = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0, 0))(parameters_of(model), positions, features)
    for entry in range(2):
        leaf = positions[entry].clone().requires_grad_()
        model.zero_grad()
        with se3_fast.backend("dense"):
            energy(model, edges, leaf, {key: value[entry] for key, value in features.items()}, bonds).backward()
        expected = {name: gradient_of(parameter) for name, parameter in model.named_parameters()}, leaf.grad
        assert_equal([{name: value[entry] for name, value in found[0].items()}, found[1][entry]], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_through_a_batch(backend: str) -> None:
    """Gradients from outside of a ``vmap``."""
    model, (edges, pos, nodes, bonds) = make_model(), inputs()
    factors = torch.tensor([1.0, 1.3], dtype=torch.float64)

    def total(pos: Tensor) -> Tensor:
        return vmap(lambda factor: energy(model, edges, factor * pos, nodes, bonds))(factors).sum()

    leaf = pos.clone().requires_grad_()
    with se3_fast.backend("dense"):
        torch.stack([energy(model, edges, factor * leaf, nodes, bonds) for factor in factors]).sum().backward()
    other = pos.clone().requires_grad_()
    with se3_fast.backend(backend):
        total(other).backward()
        assert_equal(other.grad, leaf.grad)
        if backend != "triton":
            assert_equal(grad(total)(pos), leaf.grad)
