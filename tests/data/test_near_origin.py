"""Frames far from the origin, and unwrapped ones, are those near it: nothing is lost when positions become float32."""

from __future__ import annotations

from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from se3_fast.data.force_frames import frame_batches, read_frame_file
from se3_fast.data.near_origin import cell_near_origin, near_origin
from se3_fast.data.npz_file import write_npz

CELL = np.array([[5.0, 0.0, 0.0], [1.0, 5.5, 0.0], [0.3, 1.0, 6.0]])
FAR = np.array([1.3e6, -2.1e5, 4.4e4])


def lengths_of(path: Path) -> np.ndarray:
    """Of all edges, ascending."""
    (batch,) = frame_batches([read_frame_file(path)], 4.0, 10)
    return np.sort(batch[0].edata["rel_pos"].norm(dim=1).numpy())


def written(path: Path, moved: bool, pbc: tuple[bool, bool, bool]) -> Path:
    atoms = molecule("CH3CH2OH", cell=CELL, pbc=pbc)
    atoms.rattle(0.05, seed=0)
    if moved:
        shifts = np.random.default_rng(0).integers(-9999, 9999, (len(atoms), 3)) * np.array(pbc)
        atoms.positions += FAR + shifts @ CELL
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    ase.io.write(path, atoms)
    return path


@pytest.mark.parametrize("pbc", [(False, False, False), (True, True, True), (True, False, True), (False, False, True)])
def test_frames_of_ase(tmp_path: Path, pbc: tuple[bool, bool, bool]) -> None:
    near, far = (written(tmp_path / f"{moved}.traj", moved, pbc) for moved in (False, True))
    np.testing.assert_allclose(lengths_of(far), lengths_of(near), rtol=0, atol=2e-6)


def test_arrays_and_collections(tmp_path: Path) -> None:
    atoms = molecule("CH3CH2OH")
    count, positions = len(atoms), np.stack([atoms.positions, atoms.positions + FAR])
    for number, kept in enumerate(positions):
        arrays = {"n_atoms": np.array([count]), "z": atoms.numbers, "pos": kept, "energy_eV": np.zeros(1)}
        write_npz(tmp_path / f"{number}.npz", {**arrays, "forces_eV_A": np.zeros((count, 3))})
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            group = file.create_group("ethanol")
            group["atomic_numbers"], group["positions"], group["energy"] = atoms.numbers, kept[None], np.zeros(1)
    for ending in ("npz", "h5"):
        near, far = (lengths_of(tmp_path / f"{number}.{ending}") for number in (0, 1))
        np.testing.assert_allclose(far, near, rtol=0, atol=2e-6)


def test_what_is_near_stays_as_it_is() -> None:
    positions = np.random.default_rng(0).normal(size=(7, 3))
    assert near_origin(positions, np.array([3, 4])) is positions and cell_near_origin(positions, CELL) is positions
    moved = near_origin(positions + np.repeat([0.0, 1e6], [3, 4])[:, None], np.array([3, 4]))
    np.testing.assert_array_equal(moved[:3], positions[:3])
    np.testing.assert_allclose(moved[3:], positions[3:] - positions[3], atol=1e-9)


def test_descriptions_of_molecules() -> None:
    chem = pytest.importorskip("rdkit.Chem")
    from se3_fast.data.molecule_arrays import molecule_arrays

    atoms = Atoms("H2", positions=[[0, 0, 0], [0.7413572, 0, 0]])
    pair = chem.AddHs(chem.MolFromSmiles("[H][H]"))
    far = molecule_arrays(pair, atoms.positions + FAR).node_pos
    np.testing.assert_allclose(np.linalg.norm(far[1] - far[0]), 0.7413572, rtol=1e-6)
