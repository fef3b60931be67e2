"""The model for torch-sim; run where its package is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from se3_fast.ase import SE3FastCalculator
from se3_fast.forces import ForceField
from tests.simulation.conftest import small_force_field

ts = pytest.importorskip("torch_sim", exc_type=ImportError)


def crystals() -> list[Atoms]:
    """Skewed cells of different sizes, smaller than the cutoff."""
    found = [bulk("C"), bulk("C", cubic=True), bulk("C").repeat((1, 2, 1))]
    for number, atoms in enumerate(found):
        atoms.rattle(0.1, seed=number)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05 * np.random.default_rng(number).normal(size=(3, 3))), scale_atoms=True)
    return found


def test_results_are_those_of_ase() -> None:
    from se3_fast.torch_sim import SE3FastModel

    force_field = small_force_field().double()
    model = SE3FastModel(force_field)
    structures = crystals()
    found = model(ts.io.atoms_to_state(structures, model.device, model.dtype))
    start = 0
    for number, atoms in enumerate(structures):
        atoms.calc = SE3FastCalculator(force_field)
        part, start = slice(start, start + len(atoms)), start + len(atoms)
        assert float(found["energy"][number]) == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(found["forces"][part], atoms.get_forces(), atol=1e-8)
        np.testing.assert_allclose(found["energies"][part], atoms.get_potential_energies(), atol=1e-8)
        np.testing.assert_allclose(found["stress"][number], atoms.get_stress(voigt=False), atol=1e-10)


def test_molecules_have_no_stress() -> None:
    from se3_fast.torch_sim import SE3FastModel

    atoms = molecule("CH3CH2OH")
    model = SE3FastModel(small_force_field())
    found = model(ts.io.atoms_to_state([atoms, atoms], model.device, model.dtype))
    atoms.calc = SE3FastCalculator(small_force_field())
    assert "stress" not in found and found["energy"].dtype == torch.float64
    np.testing.assert_allclose(found["forces"][9:], atoms.get_forces(), atol=1e-5)


def test_the_validation_of_torch_sim() -> None:
    from torch_sim.models.interface import validate_model_outputs

    from se3_fast.torch_sim import SE3FastModel

    torch.manual_seed(0)
    model = SE3FastModel(ForceField([14, 26], num_layers=1, num_channels=4))
    validate_model_outputs(model, model.device, model.dtype)
