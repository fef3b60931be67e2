"""Published basis dicts that were changed: every backend computes with the tensors given, in every grad mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import (
    AttentionBlockSE3,
    ConvSE3,
    ConvSE3FuseLevel,
    EdgeGeometry,
    Fiber,
    Graph,
    SE3Transformer,
    get_basis,
    update_basis_with_fused,
)
from se3_fast.ops import given_bases
from se3_fast.ops.backend import backend
from tests.support import TRITON_DEVICE, make_convolution, random_features, random_graph, relative_error

Bases = dict[str, Tensor]
BACKENDS = ["torch", "cpp", "triton"]
LEVELS = list(ConvSE3FuseLevel)
NUM_NODES, NUM_EDGES, MAX_DEGREE = 6, 14, 1


@contextmanager
def on(name: str) -> Iterator[None]:
    if name == "triton":
        pytest.importorskip("triton")
    with backend(name):
        yield


def problem(dtype: torch.dtype = torch.float64) -> Graph:
    graph = random_graph(NUM_NODES, NUM_EDGES, zero_length_edges=1)
    graph.edata["rel_pos"] = graph.edata["rel_pos"].to(dtype)
    return graph


def model(level: ConvSE3FuseLevel = ConvSE3FuseLevel.PARTIAL, **arguments: Any) -> SE3Transformer:
    torch.manual_seed(0)
    return SE3Transformer(
        num_layers=1,
        fiber_in=Fiber({0: 2, 1: 2}),
        fiber_hidden=Fiber({0: 2, 1: 2}),
        fiber_out=Fiber({0: 2, 1: 2}),
        num_heads=1,
        channels_div=1,
        fuse_level=level,
        **arguments,
    ).double()


def outputs(module: SE3Transformer, graph: Graph, bases: Any) -> Tensor:
    dtype = next(module.parameters()).dtype
    nodes = {key: value.to(dtype) for key, value in random_features(Fiber({0: 2, 1: 2}), NUM_NODES).items()}
    result = module(graph, nodes, None, bases)
    return torch.cat([result["0"].flatten(), result["1"].flatten()])


def cutoff(rel_pos: Tensor) -> Tensor:
    """Smooth; negative on some edges, exactly zero on others."""
    squares = rel_pos.square().sum(-1)
    return torch.where(squares < 4.0, (4.0 - squares).square() * (squares - 1.0) / 10.0, 0.0)


def over_axes(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


def with_fused(bases: Bases) -> Bases:
    is_padded = bases["0,0"].shape[-1] == 2
    return update_basis_with_fused(bases, MAX_DEGREE, is_padded, fully_fused=True)


def scaled(bases: Bases, factor: Tensor) -> Bases:
    return {key: basis * over_axes(factor) for key, basis in bases.items()}


def noisy(bases: Bases) -> Bases:
    generator = torch.Generator().manual_seed(5)
    return {
        key: basis + 0.1 * torch.randn(basis.shape, generator=generator, dtype=basis.dtype) for key, basis in bases.items()
    }


def in_place(bases: Bases, factor: Tensor) -> Bases:
    for basis in bases.values():
        basis *= over_axes(factor)
    return bases


CHANGES: dict[str, Callable[[Tensor, Tensor], Bases]] = {
    "unchanged": lambda rel_pos, _: get_basis(rel_pos, MAX_DEGREE),
    "unchanged, fused": lambda rel_pos, _: with_fused(get_basis(rel_pos, MAX_DEGREE)),
    "of a larger degree": lambda rel_pos, _: with_fused(get_basis(rel_pos, MAX_DEGREE)) | get_basis(rel_pos, MAX_DEGREE + 1),
    "deep copy": lambda rel_pos, _: copy.deepcopy(get_basis(rel_pos, MAX_DEGREE)),
    "scaled": lambda rel_pos, factor: scaled(get_basis(rel_pos, MAX_DEGREE), factor),
    "scaled in place": lambda rel_pos, factor: in_place(get_basis(rel_pos, MAX_DEGREE), factor),
    "scaled, padded": lambda rel_pos, factor: scaled(get_basis(rel_pos, MAX_DEGREE, use_pad_trick=True), factor),
    "scaled, then fused": lambda rel_pos, factor: with_fused(scaled(get_basis(rel_pos, MAX_DEGREE), factor)),
    "padded, scaled, fused": lambda rel_pos, factor: with_fused(
        scaled(get_basis(rel_pos, MAX_DEGREE, use_pad_trick=True), factor)
    ),
    "fused, then scaled": lambda rel_pos, factor: scaled(with_fused(get_basis(rel_pos, MAX_DEGREE)), factor),
    "fused in place": lambda rel_pos, factor: in_place(with_fused(get_basis(rel_pos, MAX_DEGREE)), factor),
    "another normalisation": lambda rel_pos, _: {key: 3.0 * basis for key, basis in get_basis(rel_pos, MAX_DEGREE).items()},
    "one tensor": lambda rel_pos, factor: get_basis(rel_pos, MAX_DEGREE) | {"1,1": 2.0 * get_basis(rel_pos, MAX_DEGREE)["1,1"]},
    "one tensor in place": lambda rel_pos, factor: _one_in_place(get_basis(rel_pos, MAX_DEGREE)),
    "one fused tensor": lambda rel_pos, factor: _one_fused(with_fused(get_basis(rel_pos, MAX_DEGREE))),
    "pairwise after fusing": lambda rel_pos, factor: _pairwise_only(with_fused(get_basis(rel_pos, MAX_DEGREE)), factor),
    "by degree": lambda rel_pos, _: {
        key: (1.0 + int(key[-1])) * basis for key, basis in get_basis(rel_pos, MAX_DEGREE).items()
    },
    "one edge": lambda rel_pos, _: {
        key: torch.cat([basis[:-1], basis[-1:].flip(1)]) for key, basis in get_basis(rel_pos, MAX_DEGREE).items()
    },
    "rotated": lambda rel_pos, _: get_basis(rel_pos.roll(1, 1), MAX_DEGREE),
    "keys exchanged": lambda rel_pos, _: _exchanged(get_basis(rel_pos, MAX_DEGREE)),
    "noise": lambda rel_pos, _: noisy(get_basis(rel_pos, MAX_DEGREE)),
    "all zero": lambda rel_pos, _: {key: 0.0 * basis for key, basis in get_basis(rel_pos, MAX_DEGREE).items()},
}


def _one_in_place(bases: Bases) -> Bases:
    bases["0,1"].mul_(2.0)
    return bases


def _one_fused(bases: Bases) -> Bases:
    for key in ("fully_fused", "out1_fused"):
        bases[key].mul_(2.0)
    return bases


def _pairwise_only(bases: Bases, factor: Tensor) -> Bases:
    return {key: basis if "fused" in key else basis * over_axes(factor) for key, basis in bases.items()}


def _exchanged(bases: Bases) -> Bases:
    exchanged = {key: bases[key] for key in bases}
    exchanged["0,1"], exchanged["1,0"] = bases["1,0"].transpose(1, 3).contiguous(), bases["0,1"].transpose(1, 3).contiguous()
    exchanged["0,1"] = -exchanged["0,1"]
    return exchanged


def truth(module: SE3Transformer, graph: Graph, bases: Any) -> Tensor:
    """By the published formula, with what ``dense`` is given."""
    with backend("dense"):
        return outputs(module, graph, bases)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_given_is_computed_with(change: str, name: str) -> None:
    graph = problem()
    rel_pos = graph.edata["rel_pos"]
    for level in LEVELS:
        module = model(level)
        make = CHANGES[change]
        expected = truth(module, graph, make(rel_pos, cutoff(rel_pos)))
        with on(name):
            bases = make(rel_pos, cutoff(rel_pos))
            with_gradients = outputs(module, graph, bases)
            with torch.no_grad():
                without = outputs(module, graph, bases)
            with torch.inference_mode():
                inference = outputs(module, graph, make(rel_pos, cutoff(rel_pos)))
        for value in (with_gradients, without, inference):
            assert relative_error(value, expected) < 1e-11


def test_dense_computes_with_what_is_given() -> None:
    """One convolution by hand: the reference of all other tests is right."""
    graph, fiber = problem(), Fiber({0: 2, 1: 2})
    bases = noisy(get_basis(graph.edata["rel_pos"], 1))
    nodes, lengths = random_features(fiber, NUM_NODES), graph.edata["rel_pos"].norm(dim=-1)
    module = make_convolution(fiber, fiber, fuse_level=ConvSE3FuseLevel.PARTIAL)
    with backend("dense"):
        value = module(nodes, {"0": lengths[:, None, None]}, graph, bases)
    for degree_out in range(2):
        weights = module.conv_out[str(degree_out)].radial_func.net(lengths[:, None]).view(NUM_EDGES, 2, 2, -1)
        start, message = 0, 0.0
        for degree_in in range(2):
            basis = bases[f"{degree_in},{degree_out}"]
            paths = weights[..., start : start + basis.shape[2]]
            start += basis.shape[2]
            message = message + torch.einsum("eoif,elfk,eil->eok", paths, basis, nodes[str(degree_in)][graph.src])
        total = torch.zeros(NUM_NODES, 2, 2 * degree_out + 1, dtype=torch.float64).index_add(0, graph.dst, message)
        assert relative_error(value[str(degree_out)], total) < 1e-12


# Gradients


def _gate(rel_pos: Tensor, gate: Tensor, compute_gradients: bool) -> Bases:
    return scaled(get_basis(rel_pos, MAX_DEGREE, compute_gradients=compute_gradients), gate)


def _gates(bases: Bases, gate: Tensor) -> Bases:
    """Factors of their own for every basis, all one."""
    return {key: basis * (1.0 + number * (gate.sum() - gate.sum().detach())) for number, (key, basis) in enumerate(bases.items())}


DIFFERENTIABLE: dict[str, Callable[[Tensor, Tensor], Bases]] = {
    "unchanged": lambda rel_pos, _: get_basis(rel_pos, MAX_DEGREE, compute_gradients=True),
    "unchanged, fused": lambda rel_pos, _: with_fused(get_basis(rel_pos, MAX_DEGREE, compute_gradients=True)),
    "cutoff": lambda rel_pos, _: scaled(get_basis(rel_pos.detach(), MAX_DEGREE), cutoff(rel_pos)),
    "cutoff and directions": lambda rel_pos, _: scaled(get_basis(rel_pos, MAX_DEGREE, compute_gradients=True), cutoff(rel_pos)),
    "cutoff and directions, padded": lambda rel_pos, _: scaled(
        get_basis(rel_pos, MAX_DEGREE, compute_gradients=True, use_pad_trick=True), cutoff(rel_pos)
    ),
    "cutoff, then fused": lambda rel_pos, _: with_fused(
        scaled(get_basis(rel_pos, MAX_DEGREE, compute_gradients=True), cutoff(rel_pos))
    ),
    "fused, then cutoff": lambda rel_pos, _: scaled(
        with_fused(get_basis(rel_pos, MAX_DEGREE, compute_gradients=True)), cutoff(rel_pos)
    ),
    "gate": lambda rel_pos, gate: _gate(rel_pos, gate, False),
    "gate and directions": lambda rel_pos, gate: _gate(rel_pos, gate, True),
    "two gates": lambda rel_pos, gate: scaled(_gate(rel_pos, gate.exp(), True), gate.view(-1)),
    "gate and constants": lambda rel_pos, gate: scaled(_gate(rel_pos, gate, True), rel_pos.detach()[:, 0]),
    "gate in place": lambda rel_pos, gate: in_place(get_basis(rel_pos, MAX_DEGREE), gate),
    "one value for all edges": lambda rel_pos, gate: {
        key: basis * gate[3] for key, basis in get_basis(rel_pos, MAX_DEGREE, compute_gradients=True).items()
    },
    "a gate each": lambda rel_pos, gate: _gates(get_basis(rel_pos, MAX_DEGREE), gate),
    "a gate each and directions": lambda rel_pos, gate: _gates(get_basis(rel_pos, MAX_DEGREE, compute_gradients=True), gate),
    "along another axis": lambda rel_pos, gate: {
        key: basis * (gate[: basis.shape[-1]] / gate[: basis.shape[-1]].detach())
        for key, basis in get_basis(rel_pos, MAX_DEGREE).items()
    },
    "gate computed for each": lambda rel_pos, gate: {
        key: basis * over_axes(gate.exp()) for key, basis in get_basis(rel_pos, MAX_DEGREE).items()
    },
    "one tensor": lambda rel_pos, gate: get_basis(rel_pos, MAX_DEGREE)
    | {"1,1": get_basis(rel_pos, MAX_DEGREE)["1,1"] * over_axes(gate / gate.detach())},
    "sum": lambda rel_pos, gate: {
        key: basis + over_axes(gate) - over_axes(gate).detach() for key, basis in get_basis(rel_pos, MAX_DEGREE).items()
    },
    "quotient": lambda rel_pos, gate: {
        key: basis / over_axes(gate.exp()) for key, basis in get_basis(rel_pos, MAX_DEGREE, compute_gradients=True).items()
    },
    "masked": lambda rel_pos, gate: scaled(
        scaled(get_basis(rel_pos, MAX_DEGREE), (rel_pos.detach()[:, 0] > 0).to(rel_pos.dtype)), gate
    ),
    "changed without gradients": lambda rel_pos, gate: _changed_without_gradients(rel_pos, gate),
}


def _changed_without_gradients(rel_pos: Tensor, gate: Tensor) -> Bases:
    bases = get_basis(rel_pos, MAX_DEGREE, compute_gradients=True)
    with torch.no_grad():
        bases["1,1"].mul_(2.0)
    return scaled(bases, gate)


EXPECTED_FAST = {
    "unchanged", "unchanged, fused", "cutoff", "cutoff and directions", "cutoff and directions, padded", "cutoff, then fused",
    "fused, then cutoff", "gate", "gate and directions", "two gates", "gate in place", "one value for all edges", "masked",
}  # fmt: skip


def differentiate(name: str, module: SE3Transformer, change: str, twice: bool) -> list[Tensor]:
    graph = problem()
    rel_pos = graph.edata["rel_pos"].requires_grad_()
    gate = torch.randn(NUM_EDGES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gate[[2, 5]] = 0.0
    if "along" in change or "one tensor" in change or "quotient" in change:
        gate[[2, 5]] = 0.5
    gate.requires_grad_()
    with on(name):
        output = outputs(module, graph, DIFFERENTIABLE[change](rel_pos, gate))
        inputs = [rel_pos, gate, *module.parameters()]
        gradients = torch.autograd.grad(output.square().sum(), inputs, create_graph=twice, allow_unused=True, materialize_grads=True)
        if twice:
            loss = gradients[0].square().sum()
            gradients += torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return [output, *gradients]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("change", DIFFERENTIABLE)
def test_gradients_through_what_is_given(change: str, name: str) -> None:
    for level in LEVELS:
        module = model(level)
        expected = differentiate("dense", module, change, twice=False)
        found = differentiate(name, module, change, twice=False)
        for value, true in zip(found, expected, strict=True):
            assert relative_error(value, true) < 1e-10
