"""Gradients of a loss on energies and forces: where they are one operation, what the parts and autograd find."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import Graph
from se3_fast.backends import registry
from se3_fast.forces import ForceField, energy_and_forces, energy_forces_and_stress, molecule_graph
from tests.ops.test_force_network import SIZES, WHOLE, _Halved, by_parts, doubled_graph, in_double, make_graph, make_model
from tests.support import TOLERANCE, device_of, relative_error

if not WHOLE:
    pytest.skip("no backend has the operation", allow_module_level=True)

EXACT = TOLERANCE[torch.float64]


def loss_of(model: nn.Module, graph: Graph) -> Tensor:
    """A number that depends on every energy and every force, and on forces not linearly."""
    energies, forces = energy_and_forces(model, graph, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    of_energies = torch.randn(energies.shape, generator=generator, dtype=torch.float64).to(energies)
    of_forces = torch.randn(forces.shape, generator=generator, dtype=torch.float64).to(forces)
    return (of_energies * energies).sum() + (of_forces * forces + forces**2 / 10).sum()


def gradients_of(model: nn.Module, loss: Callable[[], Tensor], create_graph: bool = False) -> list[Tensor]:
    """Of all parameters."""
    return list(torch.autograd.grad(loss(), list(model.parameters()), create_graph=create_graph, materialize_grads=True))


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = EXACT) -> None:
    """Every one to the size of the largest of them: some cancel."""
    largest = max((float(wanted.norm()) for wanted in expected), default=0.0)
    for value, wanted in zip(found, expected, strict=True):
        assert value.shape == wanted.shape and value.dtype != torch.float16
        difference = float((value.double() - wanted.double()).norm())
        assert difference <= tolerance * max(float(wanted.norm()), 1e-3 * largest)


def assert_whole(model: ForceField, graph: Graph) -> None:
    """That the operation serves."""
    found = model.energies_and_gradient(graph, create_graph=True)
    assert found is not None and found[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("backend", WHOLE)
def test_gradients_of_all_weights(backend: str, sizes: str, dtype: torch.dtype) -> None:
    """As many atoms as fill blocks of nodes, one more, and few. Large gradients nearly cancel: float32 loses three digits there."""
    given = SIZES[sizes]
    model, truth = make_model(dtype, **given), make_model(**given)
    for count in (5, 24, 25):
        graph = make_graph(count, dtype, given.get("elements")).to(device_of(backend))
        expected = by_parts(lambda graph=graph: gradients_of(truth, lambda: loss_of(truth, in_double(graph))))
        with se3_fast.backend(backend):
            assert_whole(model, graph)
            found = gradients_of(model, lambda graph=graph: loss_of(model, graph))
        assert all(gradient.dtype == dtype for gradient in found)
        assert_same(found, expected, EXACT if dtype == torch.float64 else 1e-3)


@pytest.mark.parametrize("backend", WHOLE)
def test_odd_graphs(backend: str) -> None:
    """No atoms, one, no edges, edges of no length and edges twice, atoms of one element that are not all of a block."""
    model = make_model(num_channels=16, num_layers=2)  # a third makes numbers of 1e19 of 60 atoms so close
    sorted_kinds = make_graph(60)
    sorted_kinds.ndata["atomic_numbers"] = sorted_kinds.ndata["atomic_numbers"].sort()[0].to(torch.int32)
    for odd in (make_graph(0), make_graph(1), make_graph(2, spread=50.0), doubled_graph(), sorted_kinds):
        expected = by_parts(lambda odd=odd: gradients_of(model, lambda: loss_of(model, odd)))
        with se3_fast.backend(backend):
            assert_whole(model, odd)
            assert_same(gradients_of(model, lambda odd=odd: loss_of(model, odd)), expected)


@pytest.mark.parametrize("backend", WHOLE)
def test_a_loss_on_energies_or_on_forces_alone(backend: str) -> None:
    model, graph = make_model(num_channels=16), make_graph(7)
    for place in (0, 1):

        def loss(place: int = place) -> Tensor:
            return (energy_and_forces(model, graph, create_graph=True)[place] ** 2).sum()

        expected = by_parts(lambda loss=loss: gradients_of(model, loss))
        with se3_fast.backend(backend):
            assert_same(gradients_of(model, loss), expected)


@pytest.mark.parametrize("backend", WHOLE)
def test_stress_of_cells(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pos = 3 * torch.rand(9, 3, generator=generator, dtype=torch.float64)
    cells = torch.diag(torch.tensor([3.4, 4.5, 5.0], dtype=torch.float64))
    cells = cells + 0.2 * torch.randn(2, 3, 3, generator=generator).double()
    graph = molecule_graph(pos, torch.tensor([1, 6, 8, 1, 1, 6, 6, 8, 1]), [4, 5], cutoff=4.0, cell=cells)
    model, volumes = make_model(cutoff=4.0, num_channels=16), torch.linalg.det(cells)
    weights = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        energies, forces, stress = energy_forces_and_stress(model, graph, volumes, create_graph=True)
        return energies.sum() + (forces**2).sum() + 10 * (weights * stress).sum()

    expected = by_parts(lambda: gradients_of(model, loss))
    with se3_fast.backend(backend):
        assert_whole(model, graph)
        assert_same(gradients_of(model, loss), expected)


@pytest.mark.parametrize("backend", WHOLE)
def test_gradients_are_differentiable_again(backend: str) -> None:
    """By all weights at once, of energies and of forces: the third derivatives of a loss on forces."""
    model, graph = make_model(num_channels=16, num_layers=2), make_graph(4)

    def twice() -> list[Tensor]:
        first = gradients_of(model, lambda: loss_of(model, graph), create_graph=True)
        return gradients_of(model, lambda: sum((gradient**2).sum() for gradient in first))  # type: ignore[arg-type,return-value]

    expected = by_parts(twice)
    with se3_fast.backend(backend):
        assert_whole(model, graph)
        assert_same(twice(), expected)


@pytest.mark.parametrize("backend", WHOLE)
def test_frozen_and_computed_weights(backend: str) -> None:
    """Weights that are not trained get no gradient; what weights are computed from gets theirs."""
    graph = make_graph(6)
    model = make_model(num_channels=16)
    model.layers[0].requires_grad_(False)
    model.atom_embedding.requires_grad_(False)
    with se3_fast.backend(backend):
        assert_whole(model, graph)
        loss_of(model, graph).backward()  # type: ignore[no-untyped-call]
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    whole = make_model(num_channels=16)
    by_parts(lambda: loss_of(whole, graph).backward())  # type: ignore[no-untyped-call]
    for name, parameter in whole.named_parameters():
        if name.startswith("layers.0.") or name == "atom_embedding":
            assert found[name] is None
        else:
            assert_same([found[name]], [parameter.grad])  # type: ignore[list-item]

    nn.utils.parametrize.register_parametrization(whole.layers[1].before, "0", _Halved())
    expected = by_parts(lambda: gradients_of(whole, lambda: loss_of(whole, graph)))
    with se3_fast.backend(backend):
        assert_same(gradients_of(whole, lambda: loss_of(whole, graph)), expected)


@pytest.mark.parametrize("backend", WHOLE)
def test_repulsion_adds_to_what_the_loss_sees(backend: str) -> None:
    model, graph = make_model(num_channels=16), make_graph(9, spread=0.7)
    model.set_repulsion({"1-1": 1.5, "6-6": 2.0})

    def loss() -> Tensor:
        energies, forces = energy_and_forces(model, graph, create_graph=True)
        return (energies / 1e3).sin().sum() + (forces / 1e3).sin().sum()

    expected = by_parts(lambda: gradients_of(model, loss))
    with se3_fast.backend(backend):
        assert_same(gradients_of(model, loss), expected)


@pytest.mark.parametrize("backend", WHOLE)
def test_gradients_add_up_and_are_the_same_bits_twice(backend: str) -> None:
    model, graphs = make_model(torch.float32), [make_graph(count, torch.float32) for count in (30, 50)]
    with se3_fast.backend(backend):
        apart = [gradients_of(model, lambda graph=graph: loss_of(model, graph)) for graph in (*graphs, *graphs)]
        for first, second in zip(apart[:2], apart[2:], strict=True):
            assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        losses = [loss_of(model, graph) for graph in graphs]  # what each of them keeps is its own
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
    for parameter, first, second in zip(model.parameters(), *apart[:2], strict=True):
        assert parameter.grad is not None and relative_error(parameter.grad, first + second) < 1e-6


@pytest.mark.parametrize("backend", WHOLE)
def test_weights_changed_before_the_backward_pass_are_an_error(backend: str) -> None:
    model, graph = make_model(num_channels=16), make_graph(5)
    with se3_fast.backend(backend):
        loss = loss_of(model, graph)
        with torch.no_grad():
            model.layers[1].out[0].mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("backend", WHOLE)
def test_a_training_step_goes_through_the_operation(backend: str) -> None:
    """And hooks, which are to see the layers, through the layers."""
    module = registry.implementation("force_network", backend)
    model, graph = make_model(num_channels=16), make_graph(5)
    with se3_fast.backend(backend), patch.object(module, "trained_force_network", wraps=module.trained_force_network) as operation:
        loss_of(model, graph)
        assert operation.call_count == 1
        seen: list[Any] = []
        model.layers[0].register_forward_hook(lambda layer, given, result: seen.append(result))
        loss_of(model, graph)
        assert operation.call_count == 1 and len(seen) == 1


COMPARE = """
import torch
from tests.ops.test_force_network import by_parts, make_graph, make_model
from tests.ops.test_trained_force_network import assert_same, assert_whole, gradients_of, loss_of
for sizes in ({{"num_degrees": 2, "num_channels": 16}}, {{"num_degrees": 3, "num_channels": 32, "num_layers": 2}}):
    model, graph = make_model(**sizes), make_graph(70)
    assert_whole(model, graph)
    assert torch.ops.se3_fast_cpp.instruction_set() == {instructions!r}
    assert torch.get_num_threads() == 2
    expected = by_parts(lambda: gradients_of(model, lambda: loss_of(model, graph)))
    assert_same(gradients_of(model, lambda: loss_of(model, graph)), expected)
"""


@pytest.mark.skipif("cpp" not in WHOLE, reason="needs the compiled operations")
@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_on_lesser_processors_and_two_threads(instructions: str) -> None:
    """The best of this one is what the other tests run on."""
    environment = os.environ | {"SE3_FAST_INSTRUCTIONS": instructions, "OMP_NUM_THREADS": "2"}
    root = Path(__file__).parents[2]
    script = COMPARE.format(instructions=instructions)
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert child.returncode == 0, child.stderr
