"""Nuclear repulsion, alone and in a force field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.optimize import BFGS
from torch import Tensor

from se3_fast.ase import SE3FastCalculator
from se3_fast.forces import ForceField, energy_and_forces, energy_forces_and_stress, load_force_field, molecule_graph
from se3_fast.lammps import LAMMPSForceField
from se3_fast.layers.repulsion import NuclearRepulsion
from se3_fast.training import CheckpointError
from tests.simulation.conftest import small_force_field, write_force_field
from tests.support import relative_error

REACH = {"1-6": 1.1, "6-6": 1.3, "1-1": 0.7, "9-9": 1.0}


def energies_of(lengths: Tensor, elements: tuple[int, int], distances: dict[str, float] | None = None) -> Tensor:
    """Of pairs at some distances, [len(lengths)] float64."""
    known = [1, 6, 8]
    module = NuclearRepulsion(known)
    module.set_reach(REACH if distances is None else distances)
    count = len(lengths)
    first, second = torch.arange(count), torch.arange(count, 2 * count)
    rel_pos = lengths[:, None] * torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    columns = torch.tensor([known.index(element) for element in elements]).repeat_interleave(count)
    atoms = module(torch.cat([rel_pos, -rel_pos]), torch.cat([first, second]), torch.cat([second, first]), columns)
    assert torch.equal(atoms[:count], atoms[count:])
    return atoms[:count] + atoms[count:]


def published(length: float, first: int, second: int) -> float:
    """The universal potential, written anew: eV."""
    scaled = length * (first**0.23 + second**0.23) / (0.8854 * 0.529177)
    terms = np.array([0.18175, 0.50986, 0.28022, 0.02817]) * np.exp(-scaled * np.array([3.1998, 0.94229, 0.4029, 0.20162]))
    return 14.399645 * first * second / length * float(terms.sum())


def test_far_inside_it_is_the_universal_potential() -> None:
    for elements in ((6, 6), (1, 6), (8, 1)):
        lengths = torch.tensor([0.02, 0.05], dtype=torch.float64)
        found = energies_of(lengths, elements, {"6-6": 100.0, "1-6": 100.0, "1-8": 100.0})
        for length, energy in zip(lengths.tolist(), found.tolist(), strict=True):
            assert abs(energy / published(length, *elements) - 1) < 1e-12
    assert 195 < published(0.3, 6, 6) < 1732  # less than the bare nuclei have


@pytest.mark.parametrize(("elements", "reach"), [((6, 6), 1.3), ((1, 6), 1.1), ((8, 8), 1.5)])
def test_it_fades_out_at_its_reach(elements: tuple[int, int], reach: float) -> None:
    """Nothing beyond; and energy, force and curvature go to zero before."""
    assert not energies_of(torch.tensor([reach, reach + 1e-9, 3.0, 1e30], dtype=torch.float64), elements).any()
    length = torch.tensor([reach - 1e-4], dtype=torch.float64, requires_grad=True)
    energy = energies_of(length, elements)
    (slope,) = torch.autograd.grad(energy, length, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, length)
    found = [float(value.detach()) for value in (energy, slope, curvature)]
    assert 0 < found[0] < 1e-9 and -1e-5 < found[1] < 0 < found[2] < 0.1


def test_closer_is_higher_and_one_place_is_finite() -> None:
    lengths = torch.linspace(0.011, 1.29, 200, dtype=torch.float64)
    assert bool((energies_of(lengths, (6, 6)).diff() < 0).all())
    length = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    energy = energies_of(length, (6, 6))
    assert bool(energy.isfinite()) and not torch.autograd.grad(energy, length)[0].any()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("repulsion") / "force_field.pth"
    return write_force_field(path, small_force_field(), closest_pairs=REACH)


def frame(scale: float) -> tuple[Tensor, Tensor]:
    """Methane, its bonds so many times 1.09 Angstrom long."""
    corners = torch.tensor([[1.0, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]], dtype=torch.float64) / 3**0.5
    return torch.cat([corners.new_zeros(1, 3), 1.09 * scale * corners]), torch.tensor([6, 1, 1, 1, 1])


def test_a_frame_like_those_of_training_keeps_its_energy_and_another_gets_more(saved: Path) -> None:
    plain, repelled = load_force_field(saved).double(), load_force_field(saved, repulsion=True).double()
    for scale, is_same in ((1.2, True), (0.5, False)):
        pos, numbers = frame(scale)
        graph = molecule_graph(pos, numbers, cutoff=5.0, cell=8 * torch.eye(3, dtype=torch.float64))
        volume = torch.tensor([512.0], dtype=torch.float64)
        (energy, forces, stress), (higher, repelling, pressing) = (
            energy_forces_and_stress(model, graph, volume) for model in (plain, repelled)
        )
        assert torch.equal(energy, higher) == is_same and torch.equal(forces, repelling) == is_same
        assert torch.equal(stress, pressing) == is_same
        if not is_same:
            assert (
                abs(float(higher - energy) / 4 - float(energies_of(torch.tensor([0.545]).double(), (1, 6)))) < 3.0
            )  # four bonds, H-H
            outwards = ((repelling - forces)[1:] * pos[1:]).sum(1)
            assert bool((outwards > 1).all())


def test_forces_are_minus_the_gradient(saved: Path) -> None:
    model = load_force_field(saved, repulsion=True).double()
    pos, numbers = frame(0.7)
    _, forces = energy_and_forces(model, molecule_graph(pos, numbers))
    for atom, axis in ((0, 1), (2, 0)):
        shift = torch.zeros_like(pos)
        shift[atom, axis] = 1e-4
        with torch.no_grad():
            ends = [model(molecule_graph(pos + step * shift, numbers)) for step in (-2, -1, 1, 2)]
        slope = (8 * (ends[2] - ends[1]) - (ends[3] - ends[0])) / 12e-4
        assert abs(float(slope + forces[atom, axis])) < 1e-7 * float(forces.abs().max())


def test_it_stays_in_checkpoints_copies_and_files_for_lammps(saved: Path, tmp_path: Path) -> None:
    model = load_force_field(saved, repulsion=True)
    again = load_force_field(write_force_field(tmp_path / "again.pth", model))
    rebuild, arguments = LAMMPSForceField(model).__reduce__()
    in_lammps = rebuild(*arguments)._evaluated.force_field
    pos, numbers = frame(0.5)
    graph = molecule_graph(pos.float(), numbers)
    assert torch.equal(model(graph), again(graph))
    assert relative_error(in_lammps(graph), model(graph)) < 1e-8  # float32; without gradients PyTorch may multiply in another order


def test_atoms_on_top_of_each_other_come_apart(saved: Path) -> None:
    """A carbon pair 0.4 Angstrom apart, by a force field that knows nothing of it."""
    atoms = Atoms("C2", positions=[[0, 0, 0], [0.4, 0, 0]])
    atoms.calc = SE3FastCalculator(saved, outside="ignore", repulsion=True)
    assert atoms.get_forces()[1, 0] > 50
    BFGS(atoms, logfile=None).run(fmax=1.0, steps=50)
    assert atoms.get_distance(0, 1) > 0.8


def test_a_force_field_that_does_not_say_where_it_begins(tmp_path: Path) -> None:
    path = write_force_field(tmp_path / "without.pth", small_force_field())
    with pytest.raises(
        CheckpointError, match="expected closest_pairs, the distances below which nuclei repel each other, got none"
    ):
        load_force_field(path, repulsion=True)
    with pytest.raises(ValueError, match="repulsion: expected a checkpoint"):
        SE3FastCalculator(small_force_field(), repulsion=True)


@pytest.mark.parametrize("distances", [{"1-6": 0.0}, {"1-6": float("nan")}, {"1-6": -1.0}, {"H-C": 1.0}, {"6": 1.0}], ids=str)
def test_distances_that_are_none(distances: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="distances: expected positive lengths by pairs of atomic numbers such as '1-6', got "):
        small_force_field().set_repulsion(distances)


def test_it_does_not_reach_beyond_the_cutoff(saved: Path) -> None:
    """Where a graph need not have an edge."""
    model = load_force_field(saved).double()
    model.set_repulsion({"1-6": 99.0, "1-1": 99.0})
    pos, numbers = frame(3.5)
    assert torch.equal(model(molecule_graph(pos, numbers)), model(molecule_graph(pos, numbers, cutoff=5.0)))


def test_nothing_repels_beyond_the_longest_edge() -> None:
    """Where there are no edges: the energy would jump there."""
    force_field = ForceField([1, 6], num_layers=1, num_channels=4, cutoff=1.2)
    force_field.set_repulsion({"1-6": 0.9})
    assert force_field.repulsion is not None and float(force_field.repulsion.reach.max()) == pytest.approx(1.2)
