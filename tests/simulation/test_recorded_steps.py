"""Recorded steps of the calculator, with a recorder that runs again in place of CUDA graphs.

Their capture, on a device that is not there, is in tests/training/test_on_a_device.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from se3_fast.__main__ import main
from se3_fast.ase import SE3FastCalculator
from se3_fast.forces import ForceField
from se3_fast.simulation.recorded import RecordedSinglePoint
from se3_fast.simulation.relax import NOT_RELAXED
from tests.simulation.conftest import write_force_field
from tests.training.run_again import RunAgain


def force_field(seed: int = 0, **options: Any) -> ForceField:
    torch.manual_seed(seed)
    return ForceField([1, 6, 8], num_layers=2, num_channels=4, num_radial=4, radial_width=8, cutoff=3.0, **options)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> RunAgain:
    """In place of CUDA graphs, on the CPU."""
    recorder = RunAgain()

    def recordings(calculator: SE3FastCalculator) -> list[RecordedSinglePoint]:
        return [RecordedSinglePoint(member, recorder) for member in calculator.members]

    monkeypatch.setattr(SE3FastCalculator, "_recordings", recordings)
    return recorder


def compare(atoms: Atoms, usual: SE3FastCalculator, recorded: SE3FastCalculator) -> None:
    for calculator in (usual, recorded):
        calculator.calculate(atoms)
    assert usual.results.keys() == recorded.results.keys()
    for name, values in usual.results.items():
        np.testing.assert_allclose(recorded.results[name], values, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("make", [lambda: molecule("CH3CH2OH"), lambda: bulk("C", cubic=True)], ids=["molecule", "crystal"])
def test_steps_are_those_without_recording(recorder: RunAgain, make: Callable[[], Atoms]) -> None:
    """Over many steps, of which some search for neighbours anew; what was recorded once serves all."""
    atoms, model = make(), force_field()
    usual, recorded = (SE3FastCalculator(model, dtype=torch.float64, cuda_graphs=choice) for choice in (False, True))
    searches = set()
    for step in range(12):
        atoms.rattle(0.04, seed=step)
        compare(atoms, usual, recorded)
        searches.add(id(recorded.neighbours.searched))
    assert len(searches) > 1 and recorder.recordings == 1
    assert ("stress" in recorded.results) == bool(atoms.pbc.all())


def test_cells_that_change_and_committees(recorder: RunAgain) -> None:
    """The cell is read anew with every step; several members have a recording each."""
    atoms, models = bulk("C", cubic=True), [force_field(seed).double() for seed in (0, 1)]
    atoms.rattle(0.1, seed=0)
    usual, recorded = (SE3FastCalculator(models, cuda_graphs=choice) for choice in (False, True))
    for scale in (1.0, 1.001, 0.999, 1.002):
        atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
        compare(atoms, usual, recorded)
    assert recorder.recordings == 2 and "forces_spread" in recorded.results


def test_other_atoms_and_more_edges_are_recorded_anew(recorder: RunAgain) -> None:
    usual, recorded = (SE3FastCalculator(force_field(), dtype=torch.float64, cuda_graphs=choice) for choice in (False, True))
    ethanol, methane, dense = molecule("CH3CH2OH"), molecule("CH4"), bulk("C", cubic=True)
    for atoms in (ethanol, ethanol, methane, methane, dense, dense):
        compare(atoms, usual, recorded)
    assert recorder.recordings == 3
    dense.set_cell(0.8 * dense.cell.array, scale_atoms=True)
    for _ in range(2):
        compare(dense, usual, recorded)
    assert recorder.recordings == 4
    dense.numbers[0] = 8
    compare(dense, usual, recorded)
    slab = dense.copy()
    slab.pbc = [True, True, False]
    compare(slab, usual, recorded)
    for few in (Atoms("H", [[0.0, 0.0, 0.0]]), Atoms()):
        compare(few, usual, recorded)
    with pytest.raises(ValueError, match="expected the elements"):
        recorded.calculate(molecule("NH3"))


def test_results_are_kept_apart(recorder: RunAgain) -> None:
    """Those of a step are not overwritten by the next one's."""
    atoms, calculator = molecule("CH4"), SE3FastCalculator(force_field(), cuda_graphs=True)
    calculator.calculate(atoms)
    first = calculator.results
    kept = {name: np.copy(values) for name, values in first.items()}
    atoms.rattle(0.1, seed=0)
    calculator.calculate(atoms)
    assert all(np.array_equal(first[name], values) for name, values in kept.items())
    assert not np.allclose(calculator.results["forces"], kept["forces"])


def test_molecules_with_dipoles_are_not_recorded(recorder: RunAgain) -> None:
    usual, recorded = (SE3FastCalculator(force_field(dipole=True).double(), cuda_graphs=choice) for choice in (False, True))
    for atoms in (molecule("CH4"), molecule("CH4"), bulk("C"), bulk("C")):
        compare(atoms, usual, recorded)
    assert recorder.recordings == 1


def test_recording_needs_a_device() -> None:
    with pytest.raises(ValueError, match="cuda_graphs: expected a CUDA device to record on, got cpu"):
        SE3FastCalculator(force_field(), cuda_graphs=True)


@pytest.mark.parametrize("command", ["md", "relax"])
def test_commands(recorder: RunAgain, command: str, tmp_path: Path) -> None:
    """What they write is what they write without recording, one for all steps."""
    path = write_force_field(tmp_path / "model.pth", force_field())
    start = molecule("CH3CH2OH")
    start.rattle(0.03, seed=0)
    ase.io.write(tmp_path / "start.xyz", start)
    options = {"md": ["--steps", "20"], "relax": ["--max_steps", "15"]}[command]
    for name, more in (("usual", []), ("recorded", ["--cuda_graphs"])):
        words = [command, str(tmp_path / "start.xyz"), "--load_ckpt_path", str(path), "--dtype", "float64", "--device", "cpu"]
        assert main([*words, *options, *more, "--output", str(tmp_path / f"{name}.traj")]) in (0, NOT_RELAXED)
        assert recorder.recordings == int(name == "recorded")
    usual, recorded = (ase.io.read(tmp_path / f"{name}.traj") for name in ("usual", "recorded"))
    assert np.abs(usual.positions - start.positions).max() > 0.01
    np.testing.assert_allclose(recorded.positions, usual.positions, rtol=0, atol=1e-9)
    np.testing.assert_allclose(recorded.get_forces(), usual.get_forces(), rtol=0, atol=1e-8)
