"""Published basis dicts that were changed: every backend computes with the tensors given, in every grad mode."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from se3_fast import (
    ConvSE3FuseLevel,
    EdgeGeometry,
    Fiber,
    Graph,
    SE3Transformer,
    get_basis,
    update_basis_with_fused,
)
from se3_fast.backends.choice import backend
from se3_fast.ops import basis_origin, given_bases
from tests.support import FAST_BACKENDS, make_convolution, random_features, random_graph, relative_error

Bases = dict[str, Tensor]
LEVELS = list(ConvSE3FuseLevel)
NUM_NODES, NUM_EDGES, MAX_DEGREE = 6, 14, 1


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
    return {key: basis + 0.1 * torch.randn(basis.shape, generator=generator, dtype=basis.dtype) for key, basis in bases.items()}


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
    "padded, scaled, fused": lambda rel_pos, factor: with_fused(scaled(get_basis(rel_pos, MAX_DEGREE, use_pad_trick=True), factor)),
    "fused, then scaled": lambda rel_pos, factor: scaled(with_fused(get_basis(rel_pos, MAX_DEGREE)), factor),
    "fused in place": lambda rel_pos, factor: in_place(with_fused(get_basis(rel_pos, MAX_DEGREE)), factor),
    "another normalisation": lambda rel_pos, _: {key: 3.0 * basis for key, basis in get_basis(rel_pos, MAX_DEGREE).items()},
    "one tensor": lambda rel_pos, factor: get_basis(rel_pos, MAX_DEGREE) | {"1,1": 2.0 * get_basis(rel_pos, MAX_DEGREE)["1,1"]},
    "one tensor in place": lambda rel_pos, factor: _one_in_place(get_basis(rel_pos, MAX_DEGREE)),
    "one fused tensor": lambda rel_pos, factor: _one_fused(with_fused(get_basis(rel_pos, MAX_DEGREE))),
    "pairwise after fusing": lambda rel_pos, factor: _pairwise_only(with_fused(get_basis(rel_pos, MAX_DEGREE)), factor),
    "by degree": lambda rel_pos, _: {key: (1.0 + int(key[-1])) * basis for key, basis in get_basis(rel_pos, MAX_DEGREE).items()},
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


def levels(name: str, change: str) -> list[ConvSE3FuseLevel]:
    """All; in Triton's interpreter, which is slow, one that differs from change to change."""
    return [LEVELS[len(change) % 3]] if name == "triton" else LEVELS


def on_all_backends(changes: Iterable[str], of_triton: Collection[str]) -> list[tuple[str, str]]:
    """Changes with backends; those for Triton's interpreter are one of each path through the code."""
    backends = [(change, name) for change in changes for name in ("torch", "cpp")]
    assert set(of_triton) <= {change for change, _ in backends}
    return backends + [(change, "triton") for change in of_triton]


@pytest.mark.parametrize(
    ("change", "name"),
    on_all_backends(CHANGES, ["unchanged, fused", "scaled", "padded, scaled, fused", "fused, then scaled", "one tensor", "noise"]),
)
def test_what_is_given_is_computed_with(change: str, name: str) -> None:
    graph = problem()
    rel_pos = graph.edata["rel_pos"]
    for level in levels(name, change):
        module = model(level)
        make = CHANGES[change]
        expected = truth(module, graph, make(rel_pos, cutoff(rel_pos)))
        with backend(name):
            bases = make(rel_pos, cutoff(rel_pos))
            values = [outputs(module, graph, bases)]
            with torch.no_grad():
                values.append(outputs(module, graph, bases))
            with torch.inference_mode():
                values.append(outputs(module, graph, make(rel_pos, cutoff(rel_pos))))
        for value in values:
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


def _changed_without_gradients(rel_pos: Tensor, gate: Tensor) -> Bases:
    bases = get_basis(rel_pos, MAX_DEGREE, compute_gradients=True)
    with torch.no_grad():
        bases["1,1"].mul_(2.0)
    return scaled(bases, gate)


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
    "one value for all edges": lambda rel_pos, gate: scaled(
        get_basis(rel_pos, MAX_DEGREE, compute_gradients=True), gate[3].expand(NUM_EDGES)
    ),
    "a gate each": lambda rel_pos, gate: _gates(get_basis(rel_pos, MAX_DEGREE), gate),
    "a gate each and directions": lambda rel_pos, gate: _gates(get_basis(rel_pos, MAX_DEGREE, compute_gradients=True), gate),
    "along another axis": lambda rel_pos, gate: {
        key: basis * (gate[: basis.shape[-1]] / gate[: basis.shape[-1]].detach())
        for key, basis in get_basis(rel_pos, MAX_DEGREE).items()
    },
    "gate computed for each": lambda rel_pos, gate: {
        key: basis * over_axes(gate.exp()) for key, basis in get_basis(rel_pos, MAX_DEGREE).items()
    },
    "one tensor": lambda rel_pos, gate: (
        get_basis(rel_pos, MAX_DEGREE) | {"1,1": get_basis(rel_pos, MAX_DEGREE)["1,1"] * over_axes(gate / gate.detach())}
    ),
    "sum": lambda rel_pos, gate: {
        key: basis + over_axes(gate) - over_axes(gate).detach() for key, basis in get_basis(rel_pos, MAX_DEGREE).items()
    },
    "quotient": lambda rel_pos, gate: {
        key: basis / over_axes(gate.exp()) for key, basis in get_basis(rel_pos, MAX_DEGREE, compute_gradients=True).items()
    },
    "masked": lambda rel_pos, gate: scaled(
        scaled(get_basis(rel_pos, MAX_DEGREE), (rel_pos.detach()[:, 0] > 0).to(rel_pos.dtype)), gate
    ),
    "changed without gradients": _changed_without_gradients,
}


EXPLAINED = {
    "unchanged", "unchanged, fused", "cutoff", "cutoff and directions", "cutoff and directions, padded", "cutoff, then fused",
    "fused, then cutoff", "gate", "gate and directions", "two gates", "gate and constants", "gate in place",
    "one value for all edges", "masked",
}  # fmt: skip
"""What needs no bases: directions and a factor say all."""

NOT_EXPLAINED = {
    "one tensor", "one tensor in place", "one fused tensor", "pairwise after fusing", "by degree", "one edge", "keys exchanged",
    "noise",
}  # fmt: skip


def inputs_of(change: str) -> tuple[Graph, Tensor, Tensor]:
    """A graph, its relative positions and a gate per edge, zero on some, both requiring grad."""
    graph = problem()
    gate = torch.randn(NUM_EDGES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    divides_by_gate = change in ("along another axis", "one tensor", "quotient")
    gate[[2, 5]] = 0.5 if divides_by_gate else 0.0
    return graph, graph.edata["rel_pos"].requires_grad_(), gate.requires_grad_()


def test_what_directions_and_a_factor_explain() -> None:
    """The common changes are served without bases; by which path a dict goes does not depend on grad mode."""
    rel_pos = problem().edata["rel_pos"]
    with backend("torch"):
        for change, make in CHANGES.items():
            geometry = EdgeGeometry.from_bases(make(rel_pos, cutoff(rel_pos)), MAX_DEGREE, rel_pos)
            assert geometry.is_given == (change in NOT_EXPLAINED)
            has_factor = not geometry.is_given and not change.startswith(("unchanged", "of a larger", "deep", "rotated"))
            assert (geometry.factor is not None) == has_factor
        for change, make in DIFFERENTIABLE.items():
            _, leaf, gate = inputs_of(change)
            bases = make(leaf, gate)
            geometry = EdgeGeometry.from_bases(bases, MAX_DEGREE, leaf)
            assert geometry.is_given == (change not in EXPLAINED)
            with torch.no_grad():
                assert EdgeGeometry.from_bases(bases, MAX_DEGREE, leaf).is_given == geometry.is_given


def differentiate(name: str, module: SE3Transformer, change: str, twice: bool) -> list[Tensor]:
    graph, rel_pos, gate = inputs_of(change)
    with backend(name):
        output = outputs(module, graph, DIFFERENTIABLE[change](rel_pos, gate))
        inputs = [rel_pos, gate, *module.parameters()]
        gradients = torch.autograd.grad(
            output.square().sum(), inputs, create_graph=twice, allow_unused=True, materialize_grads=True
        )
        if twice:
            loss = gradients[0].square().sum()
            gradients += torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    return [output, *gradients]


@pytest.mark.parametrize(
    ("change", "name"),
    on_all_backends(
        DIFFERENTIABLE, ["unchanged", "cutoff", "cutoff, then fused", "gate and constants", "gate in place", "a gate each"]
    ),
)
def test_gradients_through_what_is_given(change: str, name: str) -> None:
    for level in levels(name, change):
        module = model(level)
        expected = differentiate("dense", module, change, twice=False)
        found = differentiate(name, module, change, twice=False)
        for value, true in zip(found, expected, strict=True):
            assert relative_error(value, true) < 1e-10


@pytest.mark.parametrize("name", ["torch", "cpp"])
@pytest.mark.parametrize("change", ["unchanged", "cutoff and directions", "gate", "a gate each"])
def test_second_derivatives_through_what_is_given(change: str, name: str) -> None:
    module = model()
    expected = differentiate("dense", module, change, twice=True)
    found = differentiate(name, module, change, twice=True)
    for value, true in zip(found, expected, strict=True):
        assert relative_error(value, true) < 1e-9


def test_second_derivatives_on_triton() -> None:
    pytest.importorskip("triton")
    module = model(ConvSE3FuseLevel.FULL)
    expected = differentiate("dense", module, "cutoff and directions", twice=True)
    found = differentiate("triton", module, "cutoff and directions", twice=True)
    for value, true in zip(found, expected, strict=True):
        assert relative_error(value, true) < 1e-9


@pytest.mark.parametrize("name", FAST_BACKENDS)
def test_gradients_with_respect_to_the_bases(name: str) -> None:
    """Bases that require grad themselves, or retain theirs, get it."""
    graph, module = problem(), model()
    gradients = []
    for backend_name in ("dense", name):
        with backend(backend_name):
            leaves = {key: basis.requires_grad_() for key, basis in get_basis(graph.edata["rel_pos"], MAX_DEGREE).items()}
            kept = scaled(get_basis(graph.edata["rel_pos"], MAX_DEGREE), leaves["0,0"][:, 0, 0, 0] - 0.0)
            for basis in kept.values():
                basis.retain_grad()
            for bases in (leaves, kept):
                outputs(module, graph, bases).square().sum().backward()
        gradients.append([basis.grad for basis in (*leaves.values(), *kept.values())])
    for value, true in zip(gradients[1], gradients[0], strict=True):
        assert (value is None) == (true is None)
        assert value is None or relative_error(value, true) < 1e-10


# Other dtypes, degrees and calls


@pytest.mark.parametrize(
    ("change", "name"),
    on_all_backends(["unchanged", "scaled", "padded, scaled, fused", "fused, then scaled", "noise", "one tensor"], ["scaled"]),
)
def test_single_precision(change: str, name: str) -> None:
    module, graph = model(), problem(torch.float32)
    rel_pos = graph.edata["rel_pos"]
    bases = CHANGES[change](rel_pos, cutoff(rel_pos))
    expected = truth(module, problem(), {key: basis.double() for key, basis in bases.items()})
    module.float()
    with backend(name):
        assert relative_error(outputs(module, graph, bases), expected) < 3e-6


@pytest.mark.parametrize("name", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", ["none", "scaled", "scaled in half precision", "noise", "by degree"])
def test_half_precision(change: str, dtype: torch.dtype, name: str) -> None:
    """``amp=True``: bases of the autocast dtype."""
    module, graph = model(), problem(torch.float32)
    rel_pos = graph.edata["rel_pos"]
    with torch.autocast("cpu", dtype):
        bases = get_basis(rel_pos, MAX_DEGREE, amp=True)
        if change == "scaled":
            bases = scaled(bases, cutoff(rel_pos))
        elif change == "scaled in half precision":
            bases = scaled(bases, cutoff(rel_pos).to(dtype))
        elif change == "noise":
            bases = noisy(bases)
        elif change == "by degree":
            bases = {key: (1.0 + int(key[-1])) * basis for key, basis in bases.items()}
    expected = truth(module, problem(), {key: basis.double() for key, basis in bases.items()})
    module.float()
    with torch.autocast("cpu", dtype), backend(name):
        assert EdgeGeometry.from_bases(bases, MAX_DEGREE, rel_pos).is_given == (change in ("noise", "by degree"))
        assert relative_error(outputs(module, graph, bases), expected) < (5e-2 if dtype == torch.bfloat16 else 8e-3)
    with backend(name):  # in a model in single precision what is rounded to half is rounded
        assert relative_error(outputs(module, graph, bases), expected) < (3e-2 if dtype == torch.bfloat16 else 4e-3)


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_degree_zero_alone(name: str) -> None:
    """There is no direction, and every change is a factor."""
    fiber, graph = Fiber({0: 2}), problem()
    nodes, edges = random_features(fiber, NUM_NODES), {"0": torch.ones(NUM_EDGES, 1, 1, dtype=torch.float64)}
    for level in LEVELS:
        module = make_convolution(fiber, fiber, fuse_level=level, max_degree=0, pool=False)
        plain = module(nodes, edges, graph, EdgeGeometry(graph.edata["rel_pos"], 0))["0"]
        gate = torch.randn(NUM_EDGES, dtype=torch.float64).requires_grad_()
        is_scaled = level is not ConvSE3FuseLevel.NONE  # as published, the pair of degree 0 alone has no basis
        with backend(name):
            for fuse in (lambda bases: bases, lambda bases: update_basis_with_fused(bases, 0, False, True)):
                bases = get_basis(graph.edata["rel_pos"], 0)
                value = module(nodes, edges, graph, fuse({"0,0": bases["0,0"] * gate.exp()[:, None, None, None]}))["0"]
                assert relative_error(value, plain * gate.exp()[:, None, None] if is_scaled else plain) < 1e-12
                if is_scaled:
                    (gradient,) = torch.autograd.grad(value.sum(), gate)
                    assert relative_error(gradient, (plain.sum((1, 2)) * gate.exp())) < 1e-11


@pytest.mark.parametrize("name", ["dense", *FAST_BACKENDS])
def test_a_factor_of_the_geometry(name: str) -> None:
    """``EdgeGeometry.from_relative_positions(factor=)`` is the same as a dict of bases times that factor."""
    module, graph = model(low_memory=True), problem()
    rel_pos = graph.edata["rel_pos"].requires_grad_()
    with backend("dense"):
        bases = scaled(get_basis(rel_pos, MAX_DEGREE, compute_gradients=True), cutoff(rel_pos))
        expected = outputs(module, graph, bases)
    truths = torch.autograd.grad(expected.sum(), [rel_pos, *module.parameters()])
    with backend(name):
        geometry = EdgeGeometry.from_relative_positions(rel_pos, MAX_DEGREE, factor=cutoff(rel_pos))
        value = outputs(module, graph, geometry)
        again = outputs(module, graph, geometry.to("cpu").index_select(torch.arange(NUM_EDGES)))
    assert relative_error(value, expected) < 1e-11 and relative_error(again, expected) < 1e-11
    for gradient, true in zip(torch.autograd.grad(value.sum(), [rel_pos, *module.parameters()]), truths, strict=True):
        assert relative_error(gradient, true) < 1e-10
    with pytest.raises(ValueError, match=r"factor: expected shape \[14\], got \[14, 1\]"):
        EdgeGeometry.from_relative_positions(rel_pos, MAX_DEGREE, factor=cutoff(rel_pos)[:, None])


@pytest.mark.parametrize("name", ["torch", "cpp"])
@pytest.mark.parametrize("change", ["scaled", "noise"])
def test_geometries_of_given_bases_move_and_divide(change: str, name: str) -> None:
    graph, module = problem(), model()
    rel_pos = graph.edata["rel_pos"]
    order = torch.randperm(NUM_EDGES, generator=torch.Generator().manual_seed(2))
    other = Graph(graph.src[order], graph.dst[order], NUM_NODES, edata={"rel_pos": rel_pos[order]})
    expected = truth(module, graph, CHANGES[change](rel_pos, cutoff(rel_pos)))
    with backend(name):
        geometry = EdgeGeometry.from_bases(CHANGES[change](rel_pos, cutoff(rel_pos)), MAX_DEGREE)
        assert relative_error(outputs(module, other, geometry.to("cpu").index_select(order)), expected) < 1e-11


@pytest.mark.parametrize("name", ["dense", "torch", "cpp"])
def test_a_geometry_used_without_gradients_first(name: str) -> None:
    """What is made and kept under ``no_grad`` does not take the gradients of later calls away."""
    graph, rel_pos, gate = inputs_of("gate and directions")
    module, gradients = model(), []
    for is_used_before in (False, True):
        with backend(name):
            with torch.no_grad():
                plain = EdgeGeometry.from_relative_positions(rel_pos, MAX_DEGREE, factor=gate)
                if is_used_before:
                    outputs(module, graph, plain)
            gradients.append(torch.autograd.grad(outputs(module, graph, plain).sum(), [rel_pos, gate]))
    for value, true in zip(gradients[1], gradients[0], strict=True):
        assert relative_error(value, true) < 1e-12 and value.abs().max() > 0


@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_values_are_looked_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never those of a dict as it was made; once those of another, however many layers and calls take it."""
    calls: list[int] = []
    original = given_bases._compare
    monkeypatch.setattr(given_bases, "_compare", lambda *arguments: (calls.append(1), original(*arguments))[1])
    graph, module = problem(), make_convolution(Fiber({0: 2}), Fiber({1: 2}))
    rel_pos = graph.edata["rel_pos"]
    nodes, edges = random_features(Fiber({0: 2}), NUM_NODES), {"0": torch.ones(NUM_EDGES, 1, 1, dtype=torch.float64)}
    with backend(name):
        for change in ("unchanged", "unchanged, fused"):
            module(nodes, edges, graph, CHANGES[change](rel_pos, cutoff(rel_pos)))
        for change in ("unchanged", "unchanged, fused"):
            module(nodes, edges, graph, DIFFERENTIABLE[change](rel_pos.clone().requires_grad_(), rel_pos))
        assert calls == []
        for change in ("scaled", "noise"):
            bases = CHANGES[change](rel_pos, cutoff(rel_pos))
            for _ in range(3):
                module(nodes, edges, graph, bases)
            assert len(calls) == 1
            bases["0,1"].mul_(2.0)
            value = module(nodes, edges, graph, bases)["1"]
            assert len(calls) == 2
            with backend("dense"):
                assert relative_error(value, module(nodes, edges, graph, bases)["1"]) < 1e-12
            calls.clear()


def test_what_is_remembered_dies_with_the_bases() -> None:
    gc.collect()
    before = len(basis_origin._constants), len(basis_origin._parents), len(given_bases._verdicts)
    rel_pos = torch.randn(3, 3)
    for change in ("unchanged, fused", "scaled, then fused", "noise"):
        EdgeGeometry.from_bases(CHANGES[change](rel_pos, rel_pos[:, 0]), MAX_DEGREE)
    gc.collect()
    assert (len(basis_origin._constants), len(basis_origin._parents), len(given_bases._verdicts)) == before


@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_compiled_models_take_what_is_given(name: str) -> None:
    graph, module = problem(), model()
    rel_pos = graph.edata["rel_pos"]
    with backend(name):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for change in ("unchanged", "scaled", "noise"):
            bases = CHANGES[change](rel_pos, cutoff(rel_pos))
            nodes = random_features(Fiber({0: 2, 1: 2}), NUM_NODES)
            value = compiled(graph, nodes, None, bases)
            expected = truth(module, graph, bases)
            assert relative_error(torch.cat([value["0"].flatten(), value["1"].flatten()]), expected) < 1e-11


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", FAST_BACKENDS)
def test_bases_that_are_not_finite(name: str, value: float) -> None:
    graph, module = problem(), model()
    bases = get_basis(graph.edata["rel_pos"], MAX_DEGREE)
    bases["1,1"][4] = value
    expected = truth(module, graph, bases)
    with backend(name):
        found = outputs(module, graph, bases)
    assert torch.equal(found.isfinite(), expected.isfinite()) and not found.isfinite().all()


def test_bases_of_other_shapes_are_named() -> None:
    rel_pos = problem().edata["rel_pos"]
    for key in ("0,1", "1,0", "1,1"):
        bases = get_basis(rel_pos, MAX_DEGREE)
        bases[key] = bases[key][1:]
        with pytest.raises(ValueError, match=rf"basis\['{key}'\]: expected shape \[14, .*\], got \[13, "):
            EdgeGeometry.from_bases(bases, MAX_DEGREE)
