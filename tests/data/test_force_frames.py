"""The force-field sample that is shipped, the script that made it, and reading such files."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from se3_fast.data import DataError
from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, ForceDataModule, read_force_frames, reference_energies
from se3_fast.data.npz_file import write_npz
from se3_fast.data.pack_frames import pack_frames


@pytest.fixture(scope="module")
def sample() -> dict[str, np.ndarray]:
    with np.load(FORCE_SAMPLE_PATH, allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture
def water() -> dict[str, np.ndarray]:
    """Ten frames of a molecule of three atoms, with random numbers for labels."""
    generator = np.random.default_rng(0)
    return {
        "n_atoms": np.full(10, 3, dtype=np.int32),
        "z": np.tile([8, 1, 1], 10).astype(np.uint8),
        "pos": generator.normal(size=(30, 3)),
        "energy_eV": generator.normal(size=10),
        "forces_eV_A": generator.normal(size=(30, 3)),
    }


def test_sample(sample: dict[str, np.ndarray]) -> None:
    assert FORCE_SAMPLE_PATH.stat().st_size < 400_000
    frames, split = read_force_frames(FORCE_SAMPLE_PATH)
    assert len(frames) == len(sample["smiles"]) == 600
    assert split is not None and split.bincount().tolist() == [480, 120]
    assert set(sample["smiles"][sample["split"] == 1]) == set(sample["smiles"])
    first_atom = np.cumsum(sample["n_atoms"]) - sample["n_atoms"]
    total = np.add.reduceat(sample["forces_eV_A"], first_atom)
    assert np.abs(total).max() < 1e-3  # no net force on a molecule
    largest = np.maximum.reduceat(np.abs(sample["forces_eV_A"]).max(axis=1), first_atom)
    at_minimum = sample["temperature_K"] == 0
    assert at_minimum.sum() == len(set(sample["smiles"])) and largest[at_minimum].max() < 0.05
    assert largest[~at_minimum].min() > 0.2 and largest.max() < 15


def test_labels_are_those_of_tblite_in_ev_and_angstrom(sample: dict[str, np.ndarray]) -> None:
    """By tblite's own atomic units (hartree, bohr), and forces by differences of energies."""
    interface = pytest.importorskip("tblite.interface")
    number = int(np.flatnonzero(sample["smiles"] == b"CCO")[7])
    start = int(sample["n_atoms"][:number].sum())
    atoms = slice(start, start + int(sample["n_atoms"][number]))

    def energy(positions: np.ndarray) -> float:
        calculator = interface.Calculator("GFN2-xTB", sample["z"][atoms].astype(int), positions / 0.529177210903)
        calculator.set("verbosity", 0)
        return float(calculator.singlepoint().get("energy")) * 27.211386245988

    positions = sample["pos"][atoms].astype(np.float64)
    assert energy(positions) == pytest.approx(sample["energy_eV"][number], abs=1e-4)
    for atom, axis in ((0, 0), (4, 2)):
        shift = np.zeros_like(positions)
        shift[atom, axis] = 1e-3
        slope = (energy(positions + shift) - energy(positions - shift)) / 2e-3
        assert -slope == pytest.approx(sample["forces_eV_A"][atoms][atom, axis], abs=1e-3)


def test_the_script_makes_the_first_frames_again(sample: dict[str, np.ndarray]) -> None:
    pytest.importorskip("rdkit")
    pytest.importorskip("tblite")
    from se3_fast.data.make_force_sample import molecule_frames

    again = molecule_frames("CO", 4, seed=0)
    assert again["pos"].shape == (4, 6, 3)
    number = int(np.flatnonzero(sample["smiles"] == b"CO")[0])
    start = int(sample["n_atoms"][:number].sum())
    # Another processor may round the optimisation of the geometry differently.
    np.testing.assert_allclose(again["pos"].reshape(-1, 3), sample["pos"][start : start + 24], atol=5e-3)
    np.testing.assert_allclose(again["energy"], sample["energy_eV"][number : number + 4], atol=2e-2)


def test_frames_are_divided(tmp_path: Path, water: dict[str, np.ndarray]) -> None:
    path = tmp_path / "water.npz"
    write_npz(path, water)
    data = ForceDataModule(path, batch_size=4)
    assert [len(part) for part in (data.ds_train, data.ds_val, data.ds_test)] == [8, 1, 1]
    assert sorted([*data.ds_train.indices, *data.ds_val.indices, *data.ds_test.indices]) == list(range(10))
    write_npz(path, {**water, "split": np.array([0, 1] * 5)})
    data = ForceDataModule(path, batch_size=3, num_train=4, num_validation=3)
    assert [len(part) for part in (data.ds_train, data.ds_val, data.ds_test)] == [4, 3, 2]
    assert all(number % 2 == 0 for number in data.ds_train.indices)
    assert all(number % 2 == 1 for number in [*data.ds_val.indices, *data.ds_test.indices])
    graph, forces, energies = next(iter(data.val_dataloader()))
    assert graph.batch_num_nodes().tolist() == [3, 3, 3] and graph.num_edges() == 18
    frames, _ = read_force_frames(path)
    for row, number in enumerate(data.ds_val.indices):
        atoms, known = slice(3 * row, 3 * row + 3), slice(3 * number, 3 * number + 3)
        assert energies[row] == frames.energies[number]
        assert torch.equal(forces[atoms], frames.forces[known]) and torch.equal(graph.ndata["pos"][atoms], frames.pos[known])


@pytest.mark.parametrize("suffix", [".npz", ".xyz", ".traj", "packed"])
def test_labels_that_are_not_numbers_are_not_known(tmp_path: Path, water: dict[str, np.ndarray], suffix: str) -> None:
    """In any format: the frames train with what else they have."""
    path = tmp_path / f"frames{suffix}"
    given = {**water, "dipole_e_A": np.ones((10, 3))}
    for name, rows in (("energy_eV", slice(2, 5)), ("forces_eV_A", slice(12, 18)), ("dipole_e_A", slice(0, 3))):
        given[name] = given[name].copy()
        given[name][rows] = np.nan
    if suffix in (".npz", "packed"):
        write_npz(tmp_path / "frames.npz", given)
    else:
        ase.io.write(path, [_atoms_of(given, number) for number in range(10)])
    if suffix == "packed":
        pack_frames([tmp_path / "frames.npz"], path)
    data = ForceDataModule(path, dipoles=True)
    frames = data._dataset.frames.select(range(10))
    np.testing.assert_allclose(frames.energies, given["energy_eV"], atol=1e-6)
    np.testing.assert_allclose(frames.forces, given["forces_eV_A"], atol=1e-6)
    assert frames.dipoles is not None
    np.testing.assert_allclose(frames.dipoles, given["dipole_e_A"], atol=1e-6)
    assert np.isfinite(data.statistics.mean_absolute_force)


def _atoms_of(arrays: dict[str, np.ndarray], number: int) -> Atoms:
    part = slice(3 * number, 3 * number + 3)
    atoms = Atoms(arrays["z"][part].astype(int), arrays["pos"][part])
    atoms.calc = SinglePointCalculator(
        atoms, energy=arrays["energy_eV"][number], forces=arrays["forces_eV_A"][part], dipole=arrays["dipole_e_A"][number]
    )
    return atoms


def test_reference_energies_are_those_of_the_elements() -> None:
    frames, _ = read_force_frames(FORCE_SAMPLE_PATH)
    known = {1: -10.0, 6: -50.0, 7: -70.0, 8: -110.0, 9: -120.0}
    of_atom = torch.tensor([known[number] for number in frames.atomic_numbers.tolist()], dtype=torch.float64)
    molecule = torch.arange(len(frames)).repeat_interleave(frames.n_atoms)
    frames.energies[:] = torch.zeros(len(frames), dtype=torch.float64).index_add(0, molecule, of_atom)
    assert reference_energies(frames) == pytest.approx(known)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"z": None}, "expected the arrays n_atoms, z, pos, energy_eV, forces_eV_A; missing z"),
        ({"z": np.zeros(30, dtype=np.uint8)}, r"z must hold atomic numbers from 1 to 118 \(molecule 0, row 0\)"),
        ({"z": np.ones(30)}, "array 'z' must hold integers, got float64"),
        ({"n_atoms": np.full(10, 2)}, r"array 'z' must have shape \[20\], got \[30\]"),
        ({"pos": np.full((30, 3), np.nan)}, "array 'pos' has values that are not finite"),
        ({"forces_eV_A": np.zeros((30, 2))}, r"array 'forces_eV_A' must have shape \[30, 3\], got \[30, 2\]"),
        ({"cell": np.zeros((10, 3, 3))}, r"expected molecules, since .npz files have no cells .*, got the array \['cell'\]"),
        ({"energy_eV": np.full(10, np.inf)}, "array 'energy_eV' has values that are not finite"),
        ({"forces_eV_A": np.full((30, 3), -np.inf)}, "array 'forces_eV_A' has values that are not finite"),
        ({"forces_eV_A": np.full((30, 3), np.nan)}, "expected forces in some of the 8 training frames, got none"),
        (
            {"split": np.zeros(10, dtype=int)},
            "expected two frames that do not train, to validate and to test, got 0 beside 10: more",
        ),
        (
            {"split": np.ones(10, dtype=int)},
            "expected frames that train, got none of 10: more frames, files for each purpose, or another split",
        ),
        ({"z": np.array([8, 1, 1] * 9 + [9, 1, 1]), "split": np.array([0] * 7 + [1] * 3)}, r"no atom of the atomic numbers \[9\]"),
    ],
)
def test_faults_are_named(tmp_path: Path, water: dict[str, np.ndarray], changes: dict[str, np.ndarray | None], fault: str) -> None:
    arrays = {name: array for name, array in {**water, **changes}.items() if array is not None}
    write_npz(tmp_path / "frames.npz", arrays)
    with pytest.raises(DataError, match=fault):
        ForceDataModule(tmp_path / "frames.npz")
