"""ForceField, energy_and_forces and energy_forces_and_stress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Graph, complete_graph
from se3_fast.backends.cpp import library
from se3_fast.forces import (
    ForceField,
    energy_and_forces,
    energy_forces_and_dipoles,
    energy_forces_and_stress,
    load_force_field,
    molecule_graph,
)
from se3_fast.training import CheckpointError
from tests.models import pooled_model
from tests.support import TOLERANCE, random_rotation, relative_error

BACKENDS = ["dense", "torch", *(["cpp"] if library.is_available() else [])]
NUMBERS = torch.tensor([8, 1, 1, 6, 1])
CUTOFF = 4.0


def _positions(seed: int = 0) -> Tensor:
    """Five atoms, none nearer to another than 0.9 Angstrom."""
    corners = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0], [1.1, 1.2, 0.9], [2.0, 1.5, 1.6]], dtype=torch.float64)
    return corners + 0.05 * torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _cell(seed: int = 0) -> Tensor:
    """A triclinic cell, smaller than the cutoff in one direction."""
    noise = 0.2 * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.diag(torch.tensor([3.4, 4.5, 5.0], dtype=torch.float64)) + noise


class _Constant(torch.nn.Module):
    def forward(self, graph: se3_fast.Graph) -> Tensor:
        return torch.zeros(1)


class _WithNumbers(torch.nn.Module):
    """A force field of graphs that do not say what their atoms are."""

    def __init__(self, force_field: ForceField) -> None:
        super().__init__()
        self.force_field = force_field

    def forward(self, graph: se3_fast.Graph) -> Tensor:
        graph.ndata["atomic_numbers"] = NUMBERS
        return self.force_field(graph)


def _force_field(**arguments: int | float) -> ForceField:
    torch.manual_seed(0)
    given = {
        "num_layers": 2,
        "num_channels": 8,
        "num_radial": 5,
        "radial_width": 16,
        "num_knots": 20,
        "cutoff": CUTOFF,
        **arguments,
    }
    model = ForceField([8, 6, 1], **given).double()
    model.set_scale({1: -10.0, 6: -50.0, 8: -100.0}, 5.0)
    return model


def test_harmonics_are_those_that_pay() -> None:
    """As high as the features, and to 2, where vectors couple with vectors."""
    assert [_force_field(num_degrees=degrees).edge_embedding.max_harmonic for degrees in (1, 2, 3, 4)] == [1, 2, 2, 3]


def _richardson(function: object, at: Tensor, place: tuple[int, ...], step: float = 2e-3) -> Tensor:
    """A derivative by central differences of three steps, wrong by their sixth power."""
    found = []
    for size in (step, 2 * step, 3 * step):
        shift = torch.zeros_like(at)
        shift[place] = size
        found.append((function(at + shift) - function(at - shift)) / (2 * size))  # type: ignore[operator]
    return 1.5 * found[0] - 0.6 * found[1] + 0.1 * found[2]


@pytest.mark.parametrize("num_degrees", [1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forces_are_minus_the_gradient(backend: str, num_degrees: int) -> None:
    """The energy of each molecule of a batch moves with its own atoms alone."""
    model = _force_field(num_degrees=num_degrees)
    pos, numbers = torch.cat([_positions(), _positions(1)]), NUMBERS.repeat(2)
    graph = molecule_graph(pos, numbers, [5, 5], CUTOFF)
    with se3_fast.backend(backend):
        energies, forces = energy_and_forces(model, graph)
        assert energies.shape == (2,) and forces.shape == (10, 3)
        assert not energies.requires_grad and not forces.requires_grad and not graph.ndata["pos"].requires_grad
        for atom, axis in ((0, 0), (3, 1), (7, 2)):
            with torch.no_grad():
                slope = _richardson(lambda at: model(molecule_graph(at, numbers, [5, 5], CUTOFF)), pos, (atom, axis))
            assert float((slope[atom // 5] + forces[atom, axis]).abs()) < 1e-8 * float(forces.abs().max())
            assert float(slope[1 - atom // 5]) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_stress_is_the_derivative_by_strain(backend: str) -> None:
    """In a small triclinic cell; a molecule of the batch beside it, in a box that nothing reaches across."""
    model = _force_field()
    pos, numbers, far = torch.cat([_positions(), _positions(1)]), NUMBERS.repeat(2), 50 * torch.eye(3, dtype=torch.float64)
    cells = torch.stack([_cell(), far])

    def energies(strain: Tensor) -> Tensor:
        deformation = torch.eye(3, dtype=torch.float64) + (strain + strain.T) / 2
        with torch.no_grad():
            return model(molecule_graph(pos @ deformation, numbers, [5, 5], CUTOFF, cells @ deformation))

    volumes = torch.linalg.det(cells)
    with se3_fast.backend(backend):
        found = energy_forces_and_stress(model, molecule_graph(pos, numbers, [5, 5], CUTOFF, cells), volumes)
        plain = energy_and_forces(model, molecule_graph(pos, numbers, [5, 5], CUTOFF, cells))
        assert relative_error(found.energies, plain[0]) < 1e-14 and relative_error(found.forces, plain[1]) < 1e-12
        assert torch.equal(found.stress, found.stress.mT)
        for place in ((0, 0), (1, 2), (2, 2)):
            slope = _richardson(energies, torch.zeros(3, 3, dtype=torch.float64), place, 1e-3) / volumes
            assert float((slope - found.stress[:, place[0], place[1]]).abs().max()) < 1e-8 * float(found.stress.abs().max())


def test_periodic_images() -> None:
    """Lattice translations of single atoms, twice the cell, another choice of lattice vectors, and rotation."""
    model, pos, cell = _force_field(), _positions(), _cell()
    energy, forces = energy_and_forces(model, molecule_graph(pos, NUMBERS, None, CUTOFF, cell))
    assert float(forces.sum(0).abs().max()) < 1e-12 * float(forces.abs().max())
    moved = pos + torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, -2, 1], [0, 0, 0], [3, 3, 3]], dtype=torch.float64) @ cell
    again, forces_again = energy_and_forces(model, molecule_graph(moved, NUMBERS, None, CUTOFF, cell))
    assert relative_error(again, energy) < 1e-13 and relative_error(forces_again, forces) < 1e-10
    doubled = cell * torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)
    both = molecule_graph(torch.cat([pos, pos + cell[1]]), NUMBERS.repeat(2), None, CUTOFF, doubled)
    assert relative_error(model(both), 2 * energy) < 1e-13
    skewed = cell + torch.stack([torch.zeros(3, dtype=torch.float64), cell[0], -cell[1]])
    assert relative_error(model(molecule_graph(pos, NUMBERS, None, CUTOFF, skewed)), energy) < 1e-13
    rotation = random_rotation()
    turned = molecule_graph(pos @ rotation.T, NUMBERS, None, CUTOFF, cell @ rotation.T)
    assert relative_error(energy_and_forces(model, turned)[1], forces @ rotation.T) < 1e-10
    slab = molecule_graph(pos, NUMBERS, None, CUTOFF, cell * torch.tensor([[1.0], [1.0], [0.0]]).double(), [True, True, False])
    higher = cell * torch.tensor([[1.0], [1.0], [9.0]], dtype=torch.float64)
    assert relative_error(model(slab), model(molecule_graph(pos, NUMBERS, None, CUTOFF, higher))) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
def test_smooth_through_the_cutoff(backend: str) -> None:
    """An atom that leaves by steps of a millionth of an Angstrom: energy and forces move as little, and beyond they stay."""
    model, numbers = _force_field(), torch.tensor([8, 1, 6])
    energies, forces = [], []
    with se3_fast.backend(backend):
        for step in range(-6, 7):
            pos = torch.tensor([[0.0, 0, 0], [-1.0, 0, 0], [CUTOFF + step * 1e-6, 0, 0]], dtype=torch.float64)
            for graph in (molecule_graph(pos, numbers), molecule_graph(pos, numbers, None, CUTOFF)):
                energy, force = energy_and_forces(model, graph)
                energies.append(energy)
                forces.append(force)
    spread = torch.stack(forces).std(0).max()
    assert float(torch.stack(energies).std()) < 1e-10 * float(energies[0].abs())
    # Without an envelope that takes slopes to zero too this is of the order of the forces.
    assert float(spread) < 1e-5 * float(forces[0].abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_smooth_along_lines(backend: str) -> None:
    """Third differences of the forces along a straight line are as small as the third power of the step: there are no kinks."""
    model = _force_field()
    direction = torch.randn(5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    spreads = []
    with se3_fast.backend(backend):
        for step in (4e-3, 2e-3):
            forces = torch.stack(
                [
                    energy_and_forces(model, molecule_graph(_positions() + number * step * direction, NUMBERS))[1]
                    for number in range(16)
                ]
            )
            spreads.append(float(forces.diff(n=3, dim=0).abs().max()))
    assert 6 < spreads[0] / spreads[1] < 11  # 8 for a smooth function, 2 where the slope jumps


def test_atoms_in_one_place() -> None:
    """An edge without direction, in a graph of one's own, has no harmonics but the constant: nothing divides by zero."""
    model, pos = _force_field(), _positions()
    pos[1] = pos[0]
    graph = complete_graph(pos)
    graph.ndata["atomic_numbers"] = NUMBERS
    energy, forces = energy_and_forces(model, graph, create_graph=True)
    assert bool(energy.isfinite().all()) and bool(forces.isfinite().all())
    gradients = torch.autograd.grad(forces.square().sum() + energy.sum(), list(model.layers.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_symmetries() -> None:
    """Motion and reflection of the whole molecule, order of atoms, molecules beside it."""
    model, pos, rotation = _force_field(num_degrees=3), _positions(), random_rotation()
    energy, forces = energy_and_forces(model, molecule_graph(pos, NUMBERS))
    assert relative_error(forces.sum(0) / forces.abs().max(), torch.zeros(3)) < 1e-12
    for turn in (rotation, -rotation):
        moved_energy, moved_forces = energy_and_forces(model, molecule_graph(pos @ turn.T + 3.0, NUMBERS))
        assert relative_error(moved_energy, energy) < 1e-12 and relative_error(moved_forces, forces @ turn.T) < 1e-10
    order = torch.tensor([4, 2, 0, 3, 1])
    energy_again, forces_again = energy_and_forces(model, molecule_graph(pos[order], NUMBERS[order]))
    assert relative_error(energy_again, energy) < 1e-12 and relative_error(forces_again, forces[order]) < 1e-10
    both = molecule_graph(torch.cat([pos, _positions(1)]), NUMBERS.repeat(2), [5, 5])
    energies, both_forces = energy_and_forces(model, both)
    assert relative_error(energies[:1], energy) < 1e-12 and relative_error(both_forces[:5], forces) < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_gradients_are_those_of_the_formula(backend: str) -> None:
    """Of a loss on energies, forces and stress, with respect to all parameters."""
    model = _force_field()
    graph, volumes = molecule_graph(_positions(), NUMBERS, None, CUTOFF, _cell()), torch.linalg.det(_cell())[None]
    results = []
    for name in ("dense", backend):
        with se3_fast.backend(name):
            energies, forces, stress = energy_forces_and_stress(model, graph, volumes, create_graph=True)
            loss = energies.sum() + forces.square().sum() + stress.square().sum()
            results.append(torch.autograd.grad(loss, list(model.parameters())))
    assert max(map(relative_error, results[1], results[0])) < 1e-11


def test_energy_is_that_of_the_atoms_and_what_the_network_adds() -> None:
    model, graph = _force_field(), molecule_graph(_positions(), NUMBERS)
    references = -100.0 - 50.0 - 3 * 10.0
    assert model.reference_energy(graph).tolist() == [references]
    added = model(graph) - references
    model.set_scale({}, 10.0)
    assert relative_error(model(graph) - references, 2 * added) < 1e-6  # the scale is kept in single precision
    assert relative_error(model.atomic_energies(graph).sum(), model(graph)[0]) < 1e-14
    assert ForceField([1, 6, 8])(molecule_graph(_positions().float(), NUMBERS)).dtype == torch.float64
    lone = energy_and_forces(model, molecule_graph(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([6])))
    assert torch.isfinite(lone[0]).all() and lone[1].tolist() == [[0.0, 0.0, 0.0]]


def test_other_models_and_their_inputs() -> None:
    model = pooled_model(2, 16, 0, pooling="avg").double()
    pos, features = _positions(), {"0": torch.randn(5, 2, 1, dtype=torch.float64)}
    energies, forces = energy_and_forces(model, complete_graph(pos), features, create_graph=True)
    (forces.square().sum() + energies.sum()).backward()
    weight = model.transformer.graph_modules[0].to_query.weights["0"]
    assert weight.grad is not None and float(weight.grad.abs().sum()) > 0
    leaf = pos.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(complete_graph(leaf), features).sum(), leaf)
    assert relative_error(forces, -gradient) < 1e-12


def test_faults_are_named(tmp_path: Path) -> None:
    model, graph = _force_field(), molecule_graph(_positions(), NUMBERS)
    with pytest.raises(ValueError, match=r"graph: expected the elements \[1, 6, 8\], got \[9\] in ndata\['atomic_numbers'\]"):
        energy_and_forces(model, molecule_graph(_positions(), NUMBERS.masked_fill(NUMBERS == 6, 9)))
    with pytest.raises(ValueError, match=r"graph: expected ndata\['atomic_numbers'\] of shape \[N\], got ndata with \['pos'\]"):
        energy_and_forces(model, complete_graph(_positions()))
    with pytest.raises(ValueError, match=r"volumes: expected a positive volume for each of the 1 graphs, got \[0\.0\]"):
        energy_forces_and_stress(model, graph, torch.zeros(1))
    with pytest.raises(ValueError, match=r"volumes: expected a positive volume for each of the 1 graphs, got 3\.0"):
        energy_forces_and_stress(model, graph, 3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale: expected a finite number above 0, got nan"):
        model.set_scale({}, float("nan"))
    with pytest.raises(ValueError, match=r"reference_energies: expected finite energies of elements to 118, got -1\.0 for 500"):
        model.set_scale({500: -1.0}, 1.0)
    graph.ndata.pop("pos")
    with pytest.raises(ValueError, match=r"graph: expected ndata\['pos'\] of shape \[N, 3\]"):
        energy_and_forces(model, graph)
    with pytest.raises(ValueError, match="model: expected energies that depend on the positions"):
        energy_and_forces(_Constant(), complete_graph(_positions()))
    with pytest.raises(ValueError, match=r"atomic_numbers: expected shape \[5\], got \[4\]"):
        molecule_graph(_positions(), NUMBERS[:4])
    with pytest.raises(ValueError, match="cutoff: expected a length, since a periodic cell has edges without end, got None"):
        molecule_graph(_positions(), NUMBERS, cell=_cell())
    with pytest.raises(ValueError, match="elements: expected atomic numbers from 1 to 118, got"):
        ForceField([0, 1])
    for name, value in (("num_radial", 0), ("num_degrees", 0), ("average_neighbours", 0.0)):
        with pytest.raises(ValueError, match=f"{name}: expected .*, got 0"):
            ForceField([1], **{name: value})
    with pytest.raises(ValueError, match=r"cutoff: expected a positive length, got -1\.0"):
        ForceField([1], cutoff=-1.0)
    torch.save({"state_dict": {}, "optimizer_state_dict": {}, "epoch": 1}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: expected a checkpoint of se3_fast\.train_forces"):
        load_force_field(tmp_path / "other.pth")
    model = _force_field()
    earlier = {name: value for name, value in model.config.items() if name != "num_knots"}
    torch.save(
        {"state_dict": model.state_dict(), "optimizer_state_dict": {}, "epoch": 1, "model_config": earlier}, tmp_path / "old.pth"
    )
    with pytest.raises(
        CheckpointError, match=r"old\.pth: model_config: expected num_knots, got a force field of an earlier version"
    ):
        load_force_field(tmp_path / "old.pth")


@pytest.mark.parametrize("cutoff", [None, CUTOFF])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_two_atoms_at_one_place_are_refused(cutoff: float | None, dtype: torch.dtype) -> None:
    """In one cell too, but not in two structures of a batch."""
    pos = _positions().to(dtype)
    with pytest.raises(ValueError, match=r"^pos: expected atoms at different places, got atoms 2 and 5 at \[.*\]$"):
        molecule_graph(torch.cat([pos, pos[2:3]]), torch.cat([NUMBERS, NUMBERS[:1]]), None, cutoff)
    cell = 5 * torch.eye(3, dtype=dtype)
    with pytest.raises(ValueError, match=r"^pos: expected atoms at different places, got atoms 0 and 1 at \[0\.0, 0\.0, 0\.0\]$"):
        molecule_graph(torch.stack([0 * cell[1], cell[1]]), NUMBERS[:2], None, CUTOFF, cell)
    assert molecule_graph(torch.cat([pos, pos]), NUMBERS.repeat(2), [5, 5], cutoff).num_nodes() == 10
    assert molecule_graph(0 * cell[:1], NUMBERS[:1], None, 5.5, cell).num_edges() == 6


FORMS = {
    "forces": energy_and_forces,
    "stress": lambda model, graph: energy_forces_and_stress(model, graph, _cell().det()[None]),
    "dipoles": energy_forces_and_dipoles,
}


@pytest.mark.parametrize("form", FORMS)
def test_offsets_that_were_dropped_are_noticed(form: str) -> None:
    """Edges would be made of the positions alone: those of a molecule as long as the cell."""
    model = _force_field(dipole=True)
    graph = molecule_graph(_positions(), NUMBERS, None, CUTOFF, _cell())
    graph.edata.pop("offset")
    fault = (
        r"^graph: expected edata\['rel_pos'\] as ndata\['pos'\] and edata\['offset'\] give it, \[.*\] at edge \d+, got \[.*\]; "
        "keep the offset of a periodic graph, or leave rel_pos out where atoms were moved$"
    )
    with pytest.raises(ValueError, match=fault):
        FORMS[form](model, graph)
    graph.edata.pop("rel_pos")
    FORMS[form](model, graph)


def test_relative_positions_of_another_rounding_are_no_mistake() -> None:
    """Such as those taken in double precision, of positions far from the origin that were rounded afterwards; nor is NaN."""
    model, far = _force_field().float(), _positions() + 1000.0
    graph = molecule_graph(far, NUMBERS, None, CUTOFF, _cell())
    expected = energy_and_forces(_force_field(), graph)[1]
    graph.ndata["pos"] = far.float()
    graph.edata = {name: values.float() for name, values in graph.edata.items()}
    assert relative_error(energy_and_forces(model, graph)[1], expected) < 1e-2
    graph.ndata["pos"][0] = float("nan")
    assert energy_and_forces(model, graph)[1][0].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_and_a_molecule_in_one_batch(backend: str) -> None:
    """In either order, as they are alone."""
    model = _force_field()
    graphs = [molecule_graph(_positions(), NUMBERS, None, CUTOFF, _cell()), molecule_graph(_positions(1), NUMBERS)]
    with se3_fast.backend(backend):
        alone = [energy_and_forces(model, graph) for graph in graphs]
        for order in ((0, 1), (1, 0)):
            energies, forces = energy_and_forces(model, Graph.batch([graphs[number] for number in order]))
            assert relative_error(energies, torch.cat([alone[number][0] for number in order])) < TOLERANCE[torch.float64]
            assert relative_error(forces, torch.cat([alone[number][1] for number in order])) < TOLERANCE[torch.float64]


def test_offsets_of_pyg_data_are_read() -> None:
    """With relative positions, and without."""
    data = pytest.importorskip("torch_geometric.data")
    graph = molecule_graph(_positions(), NUMBERS, None, CUTOFF, _cell())
    expected = energy_and_forces(_force_field(), graph)[1]
    model, pos = _WithNumbers(_force_field()), graph.ndata["pos"]
    for edata in (graph.edata, {"offset": graph.edata["offset"]}):
        found = energy_and_forces(model, data.Data(pos=pos, edge_index=torch.stack(graph.edges()), **edata))[1]
        assert relative_error(found, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_changes_nothing(dtype: torch.dtype) -> None:
    """Neither energies and forces, nor the gradients of a loss on both."""
    model = _force_field().float()
    graph = molecule_graph(_positions().float(), NUMBERS)
    results = []
    for is_enabled in (False, True):
        with torch.autocast("cpu", dtype=dtype, enabled=is_enabled):
            energies, forces = energy_and_forces(model, graph, create_graph=True)
        loss = forces.square().mean() + energies.sum()
        results.append([energies, forces, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_forces_and_stress_in_inference_mode() -> None:
    """Of graphs that were made there, too."""
    model, pos, cell = _force_field(), _positions(), _cell()
    expected = energy_forces_and_stress(model, molecule_graph(pos, NUMBERS, None, CUTOFF, cell), cell.det()[None])
    before = molecule_graph(pos, NUMBERS, None, CUTOFF, cell)
    with torch.inference_mode():
        within = molecule_graph(pos.clone(), NUMBERS.clone(), None, CUTOFF, cell.clone())
        for graph in (before, within):
            found = energy_forces_and_stress(model, graph, cell.det()[None])
            assert all(torch.equal(first, second) for first, second in zip(found, expected, strict=True))
            assert torch.equal(energy_and_forces(model, graph)[1], expected.forces)


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        (NUMBERS.to(torch.uint8), r"atomic_numbers: expected int64 or int32, got torch\.uint8"),
        (NUMBERS.double(), r"atomic_numbers: expected int64 or int32, got torch\.float64"),
        (NUMBERS.tolist(), "atomic_numbers: expected a tensor, got an object of type list"),
        (NUMBERS - 119, r"expected the elements \[1, 6, 8\], got \[-118, -113, -111\]"),
        (NUMBERS + 119, r"expected the elements \[1, 6, 8\], got \[120, 125, 127\]"),
    ],
    ids=["bytes", "floats", "list", "below zero", "beyond the last"],
)
def test_atomic_numbers_that_are_none(numbers: Tensor, fault: str) -> None:
    """Bytes would be a mask, and numbers below zero would count from the last element."""
    with pytest.raises(ValueError, match=fault):
        _force_field()(molecule_graph(_positions(), numbers))


def test_positions_of_another_precision_are_named() -> None:
    with pytest.raises(ValueError, match=r"edata\['rel_pos'\] of torch\.float64, as the parameters are, got torch\.float32"):
        _force_field()(molecule_graph(_positions().float(), NUMBERS))


def test_elements() -> None:
    """Whatever counts as integers; the configuration, which checkpoints keep, has plain ones."""
    assert ForceField(torch.tensor([6, 1, 6])).config["elements"] == [1, 6]
    for elements in (["H"], [1.5], "HC", None):
        with pytest.raises(ValueError, match="elements: expected atomic numbers, got"):
            ForceField(elements)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="average_neighbours: expected a finite number above 0, got inf"):
        ForceField([1], average_neighbours=float("inf"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("cutoff", "a", "a positive length, got 'a'"),
        ("cutoff", None, "a positive length, got None"),
        ("cutoff", torch.ones(2), r"a positive length, got tensor\(\[1\., 1\.\]\)"),
        ("average_neighbours", "10", "a finite number above 0, got '10'"),
        ("num_layers", 1.5, r"a whole number, 1 or more, got 1\.5"),
        ("num_channels", "8", "a whole number, 1 or more, got '8'"),
        ("radial_width", float("nan"), "a whole number, 1 or more, got nan"),
    ],
)
def test_arguments_that_are_no_numbers_are_named(name: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected {expected}$"):
        ForceField([1], **{name: value})  # type: ignore[arg-type]


def test_numbers_of_other_libraries_are_plain_in_the_configuration() -> None:
    """Which goes into checkpoints."""
    given = {"num_layers": np.int64(2), "num_channels": True, "cutoff": torch.tensor(4), "average_neighbours": np.float32(8)}
    config = ForceField([1], **given).config
    assert [type(config[name]) for name in given] == [int, int, float, float]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_force_field_of_half_precision_is_at_fault_itself(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"^force field: expected parameters of torch.float32 as .*, got {dtype}; load it anew"):
        energy_and_forces(_force_field().to(dtype), molecule_graph(_positions().float(), NUMBERS))


def test_scales_and_distances_that_are_none() -> None:
    model = _force_field()
    for scale in ("a", None, [1.0]):
        with pytest.raises(ValueError, match=r"^scale: expected a finite number above 0, got "):
            model.set_scale({}, scale)  # type: ignore[arg-type]
    for energies in ({"H": 1.0}, {1: "a"}, {1: None}):
        with pytest.raises(ValueError, match=r"^reference_energies: expected finite energies of elements to 118, got "):
            model.set_scale(energies, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^reference_energies: expected energies by atomic number, got an object of type float"):
        model.set_scale(1.0, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^closest_pairs: expected distances by pairs of .*, got an object of type list"):
        model.set_repulsion([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"distances: expected positive lengths by pairs .*, got 1-6: 'a'"):
        model.set_repulsion({"1-6": "a"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"^path: expected a path, got an object of type int"):
        load_force_field(5)  # type: ignore[arg-type]


def test_stress_of_a_batch_whose_edges_are_mixed() -> None:
    """Each edge is strained as the graph that it belongs to, wherever it stands."""
    model, cells = _force_field(), torch.stack([_cell(), 1.1 * _cell(1)])
    graph = molecule_graph(torch.cat([_positions(), _positions(1)]), NUMBERS.repeat(2), [5, 5], CUTOFF, cells)
    order = torch.randperm(graph.num_edges(), generator=torch.Generator().manual_seed(0))
    edata = {name: values[order] for name, values in graph.edata.items()}
    mixed = se3_fast.Graph(graph.src[order], graph.dst[order], 10, [5, 5], ndata=graph.ndata, edata=edata)
    expected, found = (energy_forces_and_stress(model, one, cells.det()) for one in (graph, mixed))
    assert all(relative_error(first, second) < 1e-12 for first, second in zip(found, expected, strict=True))


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float16, 300.0), (torch.float32, 1e8), (torch.float32, 1e25)], ids=str)
def test_atoms_far_away_do_nothing(dtype: torch.dtype, distance: float) -> None:
    """Though powers of their distances are beyond what the precision holds."""
    model = _force_field().to(dtype)
    pos = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0, distance, 0]], dtype=dtype)
    forces = energy_and_forces(model, molecule_graph(pos, NUMBERS[:3]))[1]
    expected = energy_and_forces(model, molecule_graph(pos[:2], NUMBERS[:2]))[1]
    assert relative_error(forces[:2], expected) < TOLERANCE[dtype] and not forces[2].any()


def test_reference_energies_keep_their_digits() -> None:
    """Whatever dtype the parameters are given."""
    force_field = _force_field()
    force_field.set_scale({1: -13.123456789, 6: -1031.123456789}, 5.0)
    for changed in (force_field.float(), force_field.to(torch.float32), force_field.bfloat16(), force_field.double()):
        assert changed is force_field and force_field.reference_energies.dtype == torch.float64
        assert force_field.reference_energies[6].item() == -1031.123456789
