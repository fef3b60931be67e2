"""The calculator for ASE."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.test import gradient_test
from ase.md.verlet import VelocityVerlet

from se3_fast.ase import OutsideDomainError, OutsideDomainWarning, SE3FastCalculator
from se3_fast.forces import molecule_graph
from se3_fast.simulation import skin
from se3_fast.training import CheckpointError
from tests.simulation.conftest import small_force_field, write_force_field


def ethanol(rattle: float = 0.05, seed: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(rattle, seed=seed)
    return atoms


def diamond(rattle: float = 0.05) -> Atoms:
    """Two atoms in a cell far smaller than the cutoff, skewed."""
    atoms = bulk("C")
    atoms.rattle(rattle, seed=0)
    strain = np.eye(3) + 0.03 * np.random.default_rng(0).normal(size=(3, 3))
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return atoms


def ice() -> Atoms:
    """Molecules of water in a box that is periodic in two directions."""
    atoms = molecule("H2O", cell=[3.0, 4.0, 1.0], pbc=[True, True, False]).repeat((2, 1, 1))
    atoms.rattle(0.05, seed=0)
    return atoms


def calculator(**arguments: object) -> SE3FastCalculator:
    return SE3FastCalculator(small_force_field(), **{"dtype": torch.float64, "outside": "ignore", **arguments})


@pytest.mark.parametrize("make", [ethanol, diamond, ice])
def test_forces_are_those_of_ase_by_differences(make: object) -> None:
    atoms = make()
    atoms.calc = calculator()
    known = calculate_numerical_forces(atoms, 1e-4, [0, 1])
    np.testing.assert_allclose(atoms.get_forces()[:2], known, atol=2e-6)
    assert np.abs(known).max() > 0.05


def test_the_gradient_test_of_ase(capsys: pytest.CaptureFixture[str]) -> None:
    atoms = ethanol()
    atoms.calc = calculator()
    gradient_test(atoms, [0])
    errors = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert min(errors) < 1e-6


def test_stress_is_that_of_ase_by_differences() -> None:
    atoms = diamond()
    atoms.calc = calculator()
    known = calculate_numerical_stress(atoms, 1e-4)
    np.testing.assert_allclose(atoms.get_stress(), known, atol=1e-7)
    assert np.abs(known).max() > 1e-3


@pytest.mark.parametrize("make", [ethanol, ice])
def test_no_stress_without_a_volume(make: object) -> None:
    atoms = make()
    atoms.calc = calculator()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_energies_of_atoms_and_forces_sum_up(dtype: torch.dtype | None) -> None:
    for atoms in (ethanol(), diamond(), ice()):
        atoms.calc = calculator(dtype=dtype)
        assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert np.abs(atoms.get_forces().sum(0)).max() < (1e-5 if dtype is None else 1e-12)


def test_as_the_force_field_itself() -> None:
    atoms = ethanol()
    force_field = small_force_field().double()
    energies = force_field(molecule_graph(torch.tensor(atoms.positions), torch.tensor(atoms.numbers))).detach()
    atoms.calc = SE3FastCalculator(force_field)
    assert atoms.get_potential_energy() == pytest.approx(float(energies), abs=1e-10)
    atoms.calc = SE3FastCalculator(force_field, dtype=torch.float32)
    assert atoms.get_potential_energy() == pytest.approx(float(energies), abs=2e-5)
    assert next(force_field.parameters()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_moves_by_lattice_vectors_change_nothing(dtype: torch.dtype | None) -> None:
    atoms = diamond().repeat((2, 1, 1))
    atoms.calc = calculator(dtype=dtype)
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.positions[1] += 7 * atoms.cell[0] - 2 * atoms.cell[2]
    atoms.positions += 1000.25
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-6)


def test_energy_is_conserved_but_for_the_time_step() -> None:
    """Velocity Verlet's errors fall with the square of the step: forces are the smooth gradient, also as neighbours change."""
    deviations = []
    for steps in (50, 100):
        atoms = ethanol()
        atoms.calc = calculator(skin=0.02)
        atoms.set_momenta(np.sqrt(atoms.get_masses() * 0.03)[:, None] * np.random.default_rng(0).normal(size=(9, 3)))
        dynamics, energies = VelocityVerlet(atoms, 10 * units.fs / steps), []
        dynamics.attach(lambda atoms=atoms, energies=energies: energies.append(atoms.get_total_energy()))
        dynamics.run(steps)
        deviations.append(np.ptp(energies))
    assert deviations[1] < 0.3 * deviations[0] < 0.1


def test_a_repeated_cell_has_a_multiple_of_the_energy() -> None:
    atoms = diamond()
    atoms.calc = calculator()
    larger = atoms.repeat((2, 3, 1))
    larger.calc = calculator()
    assert larger.get_potential_energy() == pytest.approx(6 * atoms.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(larger.get_forces()[:2], atoms.get_forces(), atol=1e-9)
    np.testing.assert_allclose(larger.get_stress(), atoms.get_stress(), atol=1e-10)


def test_what_changes_is_evaluated_anew_and_nothing_else() -> None:
    """The least change of a position, another element, cell or direction; charges and velocities are not read."""
    atoms = ice()
    atoms.calc = calculator()
    with patch.object(atoms.calc, "calculate", wraps=atoms.calc.calculate) as calls:
        for _ in range(2):
            atoms.get_forces(), atoms.get_potential_energy()
        atoms.set_initial_charges([0.5] * len(atoms))
        atoms.set_velocities(np.ones((len(atoms), 3)))
        atoms.get_forces()
        assert calls.call_count == 1
        changes = {
            "positions": lambda: atoms.positions.__setitem__((0, 0), np.nextafter(atoms.positions[0, 0], 9)),
            "numbers": lambda: atoms.numbers.__setitem__(0, 1),
            "cell": lambda: atoms.cell.__setitem__((0, 0), 6.5),
            "pbc": lambda: atoms.pbc.__setitem__(0, False),
        }
        for count, (name, change) in enumerate(changes.items(), 2):
            change()
            assert atoms.calc.check_state(atoms) == [name]
            atoms.get_forces()
            assert calls.call_count == count and atoms.calc.check_state(atoms) == []
        atoms.positions[0, 0] = np.nan
        for _ in range(2):
            with pytest.raises(ValueError, match="expected finite positions"):
                atoms.get_forces()
        atoms.calc.reset()
        assert atoms.calc.check_state(atoms) == all_changes


def test_an_atom_alone_and_none() -> None:
    for pbc in (False, True):
        atoms = Atoms("O", cell=[20, 20, 20], pbc=pbc, calculator=calculator(dtype=None))
        assert np.isfinite(atoms.get_potential_energy())
        assert np.array_equal(atoms.get_forces(), np.zeros((1, 3)))
    assert np.array_equal(atoms.get_stress(), np.zeros(6))
    nothing = Atoms(calculator=calculator())
    assert nothing.get_potential_energy() == 0 and nothing.get_forces().shape == (0, 3)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The cutoff of each search for neighbours that is made."""
    made: list[float] = []
    search = skin.neighbour_list

    def counted(pos: torch.Tensor, cutoff: float, *more: object) -> object:
        made.append(cutoff)
        return search(pos, cutoff, *more)

    monkeypatch.setattr(skin, "neighbour_list", counted)
    return made


def test_neighbours_are_searched_for_when_they_may_have_changed(searches: list[float]) -> None:
    atoms, fresh = diamond().repeat(2), diamond().repeat(2)
    atoms.calc = calculator(skin=0.6)
    generator = np.random.default_rng(0)

    def is_as_without_skin() -> bool:
        fresh.cell, fresh.positions, fresh.numbers, fresh.calc = atoms.cell, atoms.positions, atoms.numbers, calculator(skin=0.0)
        found = len(searches)
        np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-9)
        return len(searches) == found + 1

    assert not is_as_without_skin()
    for _ in range(8):  # up to 0.29 Angstrom from where they were
        atoms.positions += generator.uniform(-0.02, 0.02, (16, 3))
        assert is_as_without_skin()
    atoms.numbers[3] = 8
    assert is_as_without_skin()
    atoms.positions[5, 0] += 0.6
    assert not is_as_without_skin()
    atoms.set_cell(atoms.cell * 1.001)
    assert not is_as_without_skin()
    atoms.calc.calculate(atoms[:7])
    assert searches[-1] == pytest.approx(5.6) and len(atoms.calc.results["forces"]) == 7


def test_a_committee_is_the_mean_and_tells_how_far_its_members_are_apart(checkpoint: Path) -> None:
    members = [small_force_field(seed, cutoff=4.0 + seed) for seed in range(3)]
    atoms = diamond()
    atoms.calc = SE3FastCalculator(members, dtype=torch.float64)
    results = []
    for member in members:
        alone = diamond()
        alone.calc = SE3FastCalculator(member, dtype=torch.float64)
        results.append((alone.get_potential_energy(), alone.get_forces(), alone.get_stress()))
        assert "energy_spread" not in alone.calc.results
    energies, forces, stresses = (np.array(part) for part in zip(*results, strict=True))
    assert atoms.get_potential_energy() == pytest.approx(energies.mean(), abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), forces.mean(0), atol=1e-10)
    np.testing.assert_allclose(atoms.get_stress(), stresses.mean(0), atol=1e-12)
    assert atoms.calc.results["energy_spread"] == pytest.approx(energies.std())
    np.testing.assert_allclose(atoms.calc.results["forces_spread"], np.sqrt(((forces - forces.mean(0)) ** 2).sum(2).mean(0)))
    limit = float(atoms.calc.results["forces_spread"].max())
    atoms.calc = SE3FastCalculator(members, largest_spread=0.9 * limit, outside="stop")
    with pytest.raises(OutsideDomainError, match=r"the forces on atom \d differ by .* in the committee"):
        atoms.get_forces()
    atoms.calc = SE3FastCalculator(members, largest_spread=1.1 * limit, outside="stop")
    atoms.get_forces()
    twice = SE3FastCalculator([checkpoint, checkpoint], largest_spread=1e-9, outside="stop")
    twice.calculate(ethanol(0))


def test_atoms_closer_than_any_that_were_trained_on(checkpoint: Path) -> None:
    atoms = ethanol(0.0)
    atoms.calc = SE3FastCalculator(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.get_forces()
    there = atoms.positions.copy()
    for _ in range(2):
        atoms.positions[0] = atoms.positions[1] + [0, 0, 1.2]
        with pytest.warns(OutsideDomainWarning, match=r"atoms \d \(.\) and \d \(.\) are .* Angstrom apart, .* never less than 1"):
            atoms.get_forces()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            atoms.positions[0, 2] += 0.01  # still too close: said once
            atoms.get_forces()
            atoms.positions = there
            atoms.get_forces()
    atoms.positions[0] = atoms.positions[1] + [0, 0, 1.2]
    atoms.calc = SE3FastCalculator(checkpoint, outside="stop")
    with pytest.raises(OutsideDomainError, match="in the training frames never less than"):
        atoms.get_forces()
    atoms.calc = SE3FastCalculator(checkpoint, outside="ignore")
    atoms.get_forces()


def test_what_cannot_be_calculated_gets_one_line() -> None:
    def fault(atoms: Atoms) -> str:
        atoms.calc = calculator()
        with pytest.raises(ValueError, match="expected") as caught:
            atoms.get_potential_energy()
        return str(caught.value)

    unknown = ethanol()
    unknown.numbers[0] = 9
    assert "expected the elements [1, 6, 8], got [9]" in fault(unknown)
    together = ethanol()
    together.positions[3] = together.positions[4]
    assert "expected atoms at different places, got atoms 3 and 4 at [" in fault(together)
    image = diamond()
    image.positions[1] = image.positions[0] + image.cell[1]
    assert "got atoms 0 and 1 at [" in fault(image)
    flat = diamond()
    flat.set_cell([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    assert "cell: expected lattice vectors that span a volume" in fault(flat)
    for value in (np.nan, np.inf):
        nowhere = ethanol()
        nowhere.positions[2, 1] = value
        assert "pos: expected finite positions, got [" in fault(nowhere) and "\n" not in fault(nowhere)


def test_not_a_number_after_good_steps() -> None:
    atoms = ethanol()
    atoms.calc = calculator()
    atoms.get_forces()
    atoms.positions[0, 0] = np.nan
    with pytest.raises(ValueError, match="at node 0"):
        atoms.get_forces()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"force_fields": []}, "force_fields: expected one at least, got none"),
        ({"skin": -0.1}, "skin: expected a length of at least 0, got -0.1"),
        ({"dtype": torch.float16}, "dtype: expected torch.float32 or torch.float64, got torch.float16"),
        ({"outside": "no"}, "outside: expected 'warn', 'stop' or 'ignore', got 'no'"),
        ({"skin": "a"}, "skin: expected a length of at least 0, got 'a'"),
        ({"device": "foo"}, "device: expected 'cpu', 'cuda', 'cuda:<number>' or a torch.device, got 'foo'"),
        ({"device": None}, "device: expected 'cpu', 'cuda', 'cuda:<number>' or a torch.device, got None"),
        ({"device": "cuda:99"}, r"device: expected one that PyTorch sees, which are the CPU and \d+ GPUs, got 'cuda:99'"),
        ({"force_fields": 5}, "force_fields: expected checkpoints or ForceFields, got an object of type int"),
        (
            {"force_fields": [small_force_field(), None]},
            "force_fields: expected checkpoints or ForceFields, got an object of",
        ),
        ({"compiled": 5}, "compiled: expected a path, got an object of type int"),
        ({"skin": float("inf")}, "skin: expected a length of at least 0, got inf"),
        (
            {"force_fields": [small_force_field()] * 2, "largest_spread": np.nan},
            "largest_spread: expected a number above 0, got nan",
        ),
        ({"largest_spread": 0.1}, "largest_spread: expected several force fields to compare, got 1"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        SE3FastCalculator(**{"force_fields": small_force_field(), **arguments})


def test_files_that_are_no_force_field(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such checkpoint file"):
        SE3FastCalculator(tmp_path / "nowhere.pth")
    faulty = write_force_field(tmp_path / "faulty.pth", small_force_field(), closest_pairs={"1-x": 1.0})
    with pytest.raises(CheckpointError, match="closest_pairs: expected lengths by pairs of atomic numbers"):
        SE3FastCalculator(faulty)


def test_a_copy_of_a_calculator_that_has_calculated() -> None:
    """As scripts make them for the images of a band."""
    atoms = ethanol()
    atoms.calc = calculator()
    expected = atoms.get_forces()
    again = ethanol()
    again.calc = copy.deepcopy(atoms.calc)
    again.calc.reset()
    assert np.array_equal(again.get_forces(), expected)
