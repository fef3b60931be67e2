"""The object that LAMMPS calls, against its protocol: own atoms, images of others, pairs in the cutoff, copied features."""

from __future__ import annotations

import pickle
import pickletools
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from se3_fast.__main__ import main
from se3_fast.ase import SE3FastCalculator
from se3_fast.forces import ForceField
from se3_fast.lammps import LAMMPSForceField
from tests.simulation.conftest import small_force_field, write_force_field

SYMBOLS = ["H", "C", "O"]


class Coupling:
    """The data object of ML-IAP for one process of a periodic structure; `eatoms` can only be written, as in the plain version.

    Every atom of another place that is within the cutoff of an own atom is a ghost: an image, or an atom of another process.
    """

    def __init__(self, atoms: Atoms, own: list[int], cutoff: float) -> None:
        self.atoms, self.own = atoms, own
        reach = [range(-3, 4) if periodic else range(1) for periodic in atoms.pbc]
        images = [(atom, np.array(shift) @ atoms.cell.array) for shift in product(*reach) for atom in range(len(atoms))]
        central = [image for atom in own for image in images if image[0] == atom and not image[1].any()]
        places = np.array([atoms.positions[atom] + offset for atom, offset in central])

        def is_ghost(atom: int, offset: np.ndarray) -> bool:
            lengths = np.linalg.norm(places - atoms.positions[atom] - offset, axis=1)
            return lengths.min() <= cutoff and (offset.any() or atom not in own)

        self.who = central + [image for image in images if is_ghost(*image)]
        self.owner = np.array([atom for atom, _ in self.who])
        self.nlistatoms, self.ntotal = len(own), len(self.who)
        everywhere = np.array([atoms.positions[atom] + offset for atom, offset in self.who])
        self.elems = np.array([SYMBOLS.index(atoms.symbols[atom]) for atom in self.owner], dtype=np.int32)
        rij = everywhere[None] - everywhere[: len(own), None]
        lengths = np.linalg.norm(rij, axis=2)
        pairs = np.argwhere((lengths <= cutoff) & (lengths > 0)).astype(np.int32)
        self.pair_i, self.pair_j = pairs.T.copy()
        self.rij, self.npairs = rij[tuple(pairs.T)], len(pairs)
        self.f = np.zeros((self.ntotal, 3))
        self.virial = np.zeros((3, 3))
        self.energy = 0.0
        self.energies_of_atoms = np.zeros(0)

    eatoms = property(fset=lambda self, values: setattr(self, "energies_of_atoms", values))

    def update_pair_forces(self, pair_forces: np.ndarray) -> None:
        assert pair_forces.shape == (self.npairs, 3) and pair_forces.dtype == np.float64 and pair_forces.flags.c_contiguous
        np.add.at(self.f, self.pair_i, pair_forces)
        np.add.at(self.f, self.pair_j, -pair_forces)
        self.virial += self.rij.T @ pair_forces


class CopyingCoupling(Coupling):
    """As of the KOKKOS version: it lends `eatoms`, and copies features of atoms to their ghosts."""

    def __init__(self, atoms: Atoms, own: list[int], cutoff: float) -> None:
        super().__init__(atoms, own, cutoff)
        self.lent = np.zeros(self.nlistatoms)
        self.exchanges = 0

    @property
    def eatoms(self) -> np.ndarray:
        return self.lent

    def forward_exchange(self, rows: torch.Tensor, exchanged: torch.Tensor, length: int) -> None:
        assert rows.shape == exchanged.shape == (self.ntotal, length)
        self.exchanges += 1
        exchanged.fill_(torch.nan)
        exchanged[: self.nlistatoms] = rows[: self.nlistatoms]
        exchanged[self.nlistatoms :] = rows[torch.as_tensor(self.owner[self.nlistatoms :])]

    def reverse_exchange(self, rows: torch.Tensor, collected: torch.Tensor, length: int) -> None:
        assert rows.shape == collected.shape == (self.ntotal, length)
        collected.fill_(torch.nan)
        collected[: self.nlistatoms] = rows[: self.nlistatoms]
        collected.index_add_(0, torch.as_tensor(self.owner[self.nlistatoms :]), rows[self.nlistatoms :])


def crystal() -> Atoms:
    """Two atoms, each with images of itself within the cutoff."""
    atoms = bulk("C")
    atoms.rattle(0.1, seed=0)
    atoms.symbols[1] = "O"
    return atoms


def methanol() -> Atoms:
    atoms = molecule("CH3OH", cell=[4, 4.5, 5], pbc=[True, False, True])
    atoms.rattle(0.05, seed=1)
    return atoms


def by_ase(force_field: ForceField, atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = SE3FastCalculator(force_field, dtype=torch.float64)
    return atoms


@pytest.mark.parametrize("make", [crystal, methanol])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_energies_forces_and_virial_are_those_of_ase(make: object, num_layers: int) -> None:
    force_field, atoms = small_force_field(num_layers=num_layers, num_channels=4, cutoff=3.0), make()
    expected = by_ase(force_field, atoms)
    data = CopyingCoupling(atoms, list(range(len(atoms))), 3.0)
    LAMMPSForceField(force_field, torch.float64).compute_forces(data)
    assert data.energy == pytest.approx(expected.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(data.lent, expected.get_potential_energies(), atol=1e-9)
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, data.owner, data.f)
    np.testing.assert_allclose(forces, expected.get_forces(), atol=1e-9)
    assert data.exchanges == num_layers - 1 and np.abs(forces).max() > 0.01
    if atoms.pbc.all():
        np.testing.assert_allclose(data.virial / atoms.get_volume(), expected.get_stress(voigt=False), atol=1e-9)


def test_one_layer_needs_no_exchange() -> None:
    """The plain version of ML-IAP serves it, and each process adds its part; of several layers it is told what is missing."""
    atoms, force_field = crystal().repeat((2, 1, 1)), small_force_field(num_layers=1, num_channels=4, cutoff=3.0)
    expected = by_ase(force_field, atoms)
    forces, energy = np.zeros((4, 3)), 0.0
    for own in ([0, 3], [1, 2], []):
        data = Coupling(atoms, own, 3.0) if own else CopyingCoupling(atoms, [0], 3.0)
        if not own:
            data.nlistatoms = 0
        LAMMPSForceField(force_field, torch.float64).compute_forces(data)
        np.add.at(forces, data.owner, data.f)
        energy += data.energy
        if own:
            np.testing.assert_allclose(data.energies_of_atoms, expected.get_potential_energies()[own], atol=1e-9)
    assert energy == pytest.approx(expected.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(forces, expected.get_forces(), atol=1e-9)
    with pytest.raises(RuntimeError, match=r"LAMMPS: expected its KOKKOS version .* for a force field of 2 layers"):
        LAMMPSForceField(small_force_field(num_layers=2, cutoff=3.0)).compute_forces(Coupling(atoms, [0], 3.0))


def test_an_atom_without_neighbours() -> None:
    atoms = Atoms("O", cell=[9, 9, 9], pbc=True)
    data = CopyingCoupling(atoms, [0], 3.0)
    force_field = small_force_field(cutoff=3.0)
    LAMMPSForceField(force_field).compute_forces(data)
    assert data.energy == pytest.approx(by_ase(force_field, atoms).get_potential_energy(), abs=1e-4) and not data.f.any()


def test_an_exported_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds numbers and names and calls one function of this package; it gives what the checkpoint gives."""
    force_field = small_force_field(num_layers=2, cutoff=3.0)
    path = write_force_field(tmp_path / "model.pth", force_field)
    words = ["export-lammps", "--load_ckpt_path", path, "--output", tmp_path / "model.pkl", "--dtype", "float64"]
    assert main(list(map(str, words))) == 0
    assert f"model.pkl: elements H C O, cutoff 3 Angstrom; pair_style mliap unified {tmp_path}" in capsys.readouterr().out
    content = (tmp_path / "model.pkl").read_bytes()
    strings = [argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)]
    calls = [opcode.name for opcode, _, _ in pickletools.genops(content) if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST")]
    assert len(calls) == 1 and strings[:2] == ["se3_fast.lammps", "_restored"]
    restored = pickle.loads(content)
    assert (restored.element_types, restored.rcutfac) == (SYMBOLS, 1.5) and restored.ndescriptors == restored.nparams == 1
    atoms = methanol()
    data = CopyingCoupling(atoms, list(range(len(atoms))), 3.0)
    restored.compute_descriptors(data)
    restored.compute_gradients(data)
    restored.compute_forces(data)
    assert data.energy == pytest.approx(by_ase(force_field, atoms).get_potential_energy(), abs=1e-9)
    assert main([*map(str, words[:3]), "--output", str(tmp_path / "model.pt")]) == 2
    assert "model.pt: expected another ending, .pkl" in capsys.readouterr().err
