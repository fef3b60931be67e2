"""A force field's network with its gradient as one operation: on backends that have it, what its parts and autograd find."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import se3_fast
from se3_fast import Graph, energy_derivatives
from se3_fast.backends import registry
from se3_fast.forces import ForceField, energy_and_forces, energy_forces_and_stress, molecule_graph
from se3_fast.simulation.single_point import SinglePoint
from tests.support import BACKENDS, TOLERANCE, device_of, relative_error

WHOLE = [name for name in BACKENDS if registry.implementation("force_network", name) is not None]
"""The backends that have the operation."""

ELEMENTS = [1, 6, 8]
SIZES: dict[str, dict[str, Any]] = {
    "default": {},
    "scalars": {"num_degrees": 1, "num_channels": 32},
    "degree 2": {"num_degrees": 3, "num_channels": 16, "num_layers": 2},
    "degree 3": {"num_degrees": 4, "num_channels": 16, "num_layers": 2, "num_radial": 3},
    "one layer": {"num_layers": 1, "num_channels": 16, "radial_width": 5},
    "one knot": {"num_channels": 16, "num_layers": 2, "num_knots": 1},
    "dipole": {"num_channels": 16, "dipole": True},
    "one element": {"elements": [6], "num_channels": 16, "num_radial": 1},
}

if not WHOLE:
    pytest.skip("no backend has the operation", allow_module_level=True)


def make_model(dtype: torch.dtype = torch.float64, **given: Any) -> ForceField:
    """With reproducible weights."""
    torch.manual_seed(0)
    model = ForceField(**({"elements": ELEMENTS, "average_neighbours": 7.0} | given)).to(dtype)
    model.set_scale({element: -10.0 * element for element in model.elements}, 3.0)
    return model


def make_graph(count: int, dtype: torch.dtype = torch.float64, elements: list[int] | None = None, spread: float = 2.0) -> Graph:
    """Random atoms, all of them neighbours; the largest distances are beyond the cutoff."""
    generator = torch.Generator().manual_seed(count)
    pos = spread * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    numbers = torch.tensor(elements or ELEMENTS)[torch.randint(len(elements or ELEMENTS), (count,), generator=generator)]
    return molecule_graph(pos.to(dtype), numbers)


def by_parts(find: Callable[[], Any]) -> Any:
    """What autograd finds by the formula."""
    with patch.object(energy_derivatives, "_as_a_whole", lambda *given: None), se3_fast.backend("dense"):
        return find()


def assert_same(
    model: nn.Module, graph: Graph, tolerance: float = TOLERANCE[torch.float64], truth: nn.Module | None = None
) -> None:
    """That energies and forces are those of the parts, and were found at once."""
    found = energy_and_forces(model, graph)
    double = graph if truth is None else in_double(graph)
    expected = by_parts(lambda: energy_and_forces(truth or model, double))
    assert model.energies_and_gradient(graph) is not None
    assert not found[0].requires_grad and not found[1].requires_grad and found[1].dtype == graph.ndata["pos"].dtype
    for value, wanted in zip(found, expected, strict=True):
        assert relative_error(value, wanted) < tolerance


def in_double(graph: Graph) -> Graph:
    """The same atoms and edges."""
    numbers, pos = graph.ndata["atomic_numbers"], graph.ndata["pos"].double()
    edata = {name: values.double() for name, values in graph.edata.items()}
    return Graph(graph.src, graph.dst, graph.num_nodes(), ndata={"pos": pos, "atomic_numbers": numbers}, edata=edata)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("backend", WHOLE)
def test_it_is_what_the_parts_and_autograd_find(backend: str, sizes: str, dtype: torch.dtype) -> None:
    """As many atoms as fill blocks of nodes, one more, and few. Forces are sums that nearly cancel: float32 loses a digit there."""
    given = SIZES[sizes]
    model, truth = make_model(dtype, **given), make_model(**given)
    for count in (5, 24, 25):
        graph = make_graph(count, dtype, given.get("elements")).to(device_of(backend))
        with se3_fast.backend(backend):
            assert_same(model, graph, TOLERANCE[torch.float64] if dtype == torch.float64 else 2e-5, truth)


def doubled_graph() -> Graph:
    """Edges twice, one without length, and an atom without any."""
    graph = make_graph(6)
    src = torch.cat([graph.src, graph.src[:9], torch.tensor([2])])
    dst = torch.cat([graph.dst, graph.dst[:9], torch.tensor([2])])
    keep = (src != 4) & (dst != 4)
    doubled = Graph(src[keep], dst[keep], 6, ndata=dict(graph.ndata))
    doubled.edata["rel_pos"] = doubled.ndata["pos"][doubled.dst] - doubled.ndata["pos"][doubled.src]
    return doubled


@pytest.mark.parametrize("backend", WHOLE)
def test_odd_graphs(backend: str) -> None:
    """No atoms, one, edges of no length, edges twice, an atom without any, atoms of one element that are not all of a block."""
    model = make_model(num_channels=16)
    with se3_fast.backend(backend):
        assert_same(model, make_graph(0))
        assert_same(model, make_graph(1))
        assert_same(model, make_graph(2, spread=50.0))
        doubled = doubled_graph()
        assert int((doubled.edata["rel_pos"] == 0).all(1).sum()) == 1
        assert_same(model, doubled)
        graph = make_graph(60)
        graph.ndata["atomic_numbers"] = graph.ndata["atomic_numbers"].sort()[0].to(torch.int32)
        assert_same(model, graph)


@pytest.mark.parametrize("backend", WHOLE)
def test_batches_cells_and_stress(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    pos = 3 * torch.rand(9, 3, generator=generator, dtype=torch.float64)
    cells = (
        torch.diag(torch.tensor([3.4, 4.5, 5.0], dtype=torch.float64)) + 0.2 * torch.randn(2, 3, 3, generator=generator).double()
    )
    numbers = torch.tensor([1, 6, 8, 1, 1, 6, 6, 8, 1])
    graph = molecule_graph(pos, numbers, [4, 5], cutoff=4.0, cell=cells)
    model, volumes = make_model(cutoff=4.0), torch.linalg.det(cells)
    with se3_fast.backend(backend):
        assert_same(model, graph)
        found = energy_forces_and_stress(model, graph, volumes)
    expected = by_parts(lambda: energy_forces_and_stress(model, graph, volumes))
    for value, wanted in zip(found, expected, strict=True):
        assert not value.requires_grad and relative_error(value, wanted) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", WHOLE)
def test_repulsion_and_evaluation_in_double_precision(backend: str, dtype: torch.dtype) -> None:
    models = [make_model(given, num_channels=16) for given in (dtype, torch.float64)]
    for model in models:
        model.set_repulsion({"1-1": 1.5, "6-6": 2.0})
    graph = make_graph(12, spread=0.7)
    single, truth = map(SinglePoint, models)
    with se3_fast.backend(backend):
        assert single.energies_and_gradient(graph) is not None
        found = single.evaluate(graph)
    expected = by_parts(lambda: truth.evaluate(graph))
    for name in ("energies", "atomic_energies", "forces"):
        value, wanted = getattr(found, name), getattr(expected, name)
        assert value.dtype == torch.float64 and not value.requires_grad
        # The forces of atoms so close are large sums that nearly cancel: float32 loses two digits there.
        assert relative_error(value, wanted) < (TOLERANCE[torch.float64] if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("backend", WHOLE)
def test_twice_the_same_bits_and_its_inputs_as_they_were(backend: str) -> None:
    model, graph = make_model(torch.float32), make_graph(40, torch.float32)
    before = {name: value.clone() for name, value in (*graph.ndata.items(), *graph.edata.items())}
    with se3_fast.backend(backend):
        first, second = (energy_and_forces(model, graph) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert all(torch.equal(before[name], value) for name, value in (*graph.ndata.items(), *graph.edata.items()))


@pytest.mark.parametrize("backend", WHOLE)
def test_changed_weights_are_seen(backend: str) -> None:
    model, graph = make_model(num_channels=16), make_graph(6)
    with se3_fast.backend(backend):
        before = energy_and_forces(model, graph)[1]
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.mul_(1.01)
            assert_same(model, graph)
        assert not torch.equal(before, energy_and_forces(model, graph)[1])


@pytest.mark.parametrize("backend", WHOLE)
def test_within_other_modes(backend: str) -> None:
    """Inference mode, no grad, autocast: the same values; and gradients are kept where they are asked for."""
    model, graph = make_model(torch.float32), make_graph(9, torch.float32)
    with se3_fast.backend(backend):
        expected = energy_and_forces(model, graph)
        for mode in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
            with mode:
                found = energy_and_forces(model, graph)
            assert all(torch.equal(value, wanted) for value, wanted in zip(found, expected, strict=True))
        energies, forces = energy_and_forces(model, graph, create_graph=True)
    assert energies.requires_grad and forces.requires_grad
    assert relative_error(forces, expected[1]) < 2e-5


class _Doubled(ForceField):
    """Another force field that is made of the same parts."""

    def forward(self, graph: Any, with_dipoles: bool = False) -> Any:
        return 2 * super().forward(graph, with_dipoles)


@pytest.mark.parametrize("backend", WHOLE)
def test_who_looks_on_or_changes_a_module_gets_the_parts(backend: str) -> None:
    graph = make_graph(6)
    with se3_fast.backend(backend):
        model = make_model(num_channels=16)
        seen: list[Any] = []
        handle = model.layers[1].register_forward_hook(lambda module, given, result: seen.append(result))
        energy_and_forces(model, graph)
        assert len(seen) == 1
        handle.remove()
        energies = energy_and_forces(model, graph)[0]
        assert len(seen) == 1 and model.energies_and_gradient(graph) is not None

        handle = nn.modules.module.register_module_forward_hook(lambda module, given, result: seen.append(result))
        try:
            energy_and_forces(model, graph)
        finally:
            handle.remove()
        assert len(seen) > 4

        torch.manual_seed(0)
        doubled = _Doubled(ELEMENTS, average_neighbours=7.0, num_channels=16).double()
        doubled.load_state_dict(model.state_dict())
        assert relative_error(energy_and_forces(doubled, graph)[0], 2 * energies) < TOLERANCE[torch.float64]

        without_bias = make_model(num_channels=16)
        without_bias.energy_of_atom[2] = nn.Linear(32, 1, bias=False).double()
        wanted = by_parts(partial(energy_and_forces, without_bias, graph))
        assert relative_error(energy_and_forces(without_bias, graph)[1], wanted[1]) < TOLERANCE[torch.float64]

        model.energy_of_atom[1] = nn.Tanh()
        assert model.energies_and_gradient(graph) is None
        model = make_model(num_channels=16)
        nn.utils.parametrize.register_parametrization(model.layers[0].before, "0", _Halved())
        expected = by_parts(lambda: energy_and_forces(model, graph))
        assert relative_error(energy_and_forces(model, graph)[1], expected[1]) < TOLERANCE[torch.float64]


class _Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@pytest.mark.parametrize("backend", WHOLE)
def test_sizes_and_modes_that_it_does_not_serve(backend: str) -> None:
    """The parts do."""
    graph = make_graph(6)
    with se3_fast.backend(backend):
        for given in ({"num_channels": 3}, {"num_channels": 16, "num_knots": 20000}):
            model = make_model(**given)
            assert model.energies_and_gradient(graph) is None
            wanted = by_parts(partial(energy_and_forces, model, graph))
            assert relative_error(energy_and_forces(model, graph)[1], wanted[1]) < TOLERANCE[torch.float64]
        model = make_model(num_channels=16)
        for mode in (se3_fast.backend("dense"), forward_ad.dual_level()):
            with mode:
                assert model.energies_and_gradient(graph) is None


@pytest.mark.parametrize("backend", WHOLE)
def test_errors_are_those_of_the_parts(backend: str) -> None:
    model, graph = make_model(num_channels=16), make_graph(5)
    with se3_fast.backend(backend):
        graph.ndata["atomic_numbers"][2] = 9
        with pytest.raises(ValueError, match=r"graph: expected the elements \[1, 6, 8\], got \[9\] in ndata\['atomic_numbers'\]"):
            energy_and_forces(model, graph)
        with pytest.raises(ValueError, match=r"graph: expected edata\['rel_pos'\] of torch.float64"):
            energy_and_forces(model, make_graph(5, torch.float32))


COMPARE = """
import torch
from tests.ops.test_force_network import assert_same, make_graph, make_model
make_model(num_channels=16).energies_and_gradient(make_graph(2))
assert torch.ops.se3_fast_cpp.instruction_set() == {instructions!r}
for sizes in ({{"num_channels": 16}}, {{"num_degrees": 3, "num_channels": 32, "num_layers": 2}}):
    assert_same(make_model(**sizes), make_graph(70))
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
