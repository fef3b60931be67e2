"""Force fields that give dipoles: how they turn, what they are trained on, and what stays as it was."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from torch import Tensor

from se3_fast.__main__ import main
from se3_fast.ase import SE3FastCalculator
from se3_fast.data import DataError
from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, ForceDataModule, FrameFiles, read_force_frames, read_frame_file
from se3_fast.data.label_units import LabelNames, LabelUnits
from se3_fast.data.npz_file import write_npz
from se3_fast.forces import ForceField, energy_and_forces, energy_forces_and_dipoles, load_force_field, molecule_graph
from se3_fast.graph import Graph
from se3_fast.training import TrainingOptions, read_checkpoint
from se3_fast.training.force_trainer import ForceTrainer

SIZES = [3, 5, 1, 4]
NUMBERS = torch.tensor([8, 1, 1, 6, 1, 1, 1, 1, 8, 8, 6, 1, 1])


def force_field(num_degrees: int = 2, seed: int = 0, **options: object) -> ForceField:
    torch.manual_seed(seed)
    return ForceField([1, 6, 8], num_layers=2, num_degrees=num_degrees, num_channels=8, **options).double()


def positions() -> Tensor:
    return 1.2 * torch.randn(len(NUMBERS), 3, generator=torch.Generator().manual_seed(1)).double()


def graph_of(pos: Tensor) -> Graph:
    return molecule_graph(pos, NUMBERS, SIZES, cutoff=5.0)


@pytest.mark.parametrize("num_degrees", [1, 2, 3])
def test_dipoles_turn_with_molecules(num_degrees: int) -> None:
    """They are vectors under rotations and reflections, and do not change with the origin or the order of the atoms."""
    model, pos = force_field(num_degrees, dipole=True), positions()
    dipoles = energy_forces_and_dipoles(model, graph_of(pos)).dipoles
    assert dipoles.shape == (4, 3) and dipoles[[0, 1, 3]].norm(dim=1).min() > 1e-3
    torch.testing.assert_close(dipoles[2], torch.zeros(3).double(), atol=1e-12, rtol=0)  # a single atom
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double())
    for matrix in (turn, -turn, torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()):
        found = energy_forces_and_dipoles(model, graph_of(pos @ matrix.T + 100.0)).dipoles
        torch.testing.assert_close(found, dipoles @ matrix.T, atol=1e-11, rtol=0)
    order = torch.cat([torch.tensor([2, 0, 1]), 3 + torch.randperm(5), torch.tensor([8]), 9 + torch.randperm(4)])
    permuted = molecule_graph(pos[order], NUMBERS[order], SIZES, cutoff=5.0)
    torch.testing.assert_close(energy_forces_and_dipoles(model, permuted).dipoles, dipoles, atol=1e-11, rtol=0)


def test_a_planar_molecule_has_its_dipole_in_the_plane() -> None:
    """What reflection demands: a pseudovector would stand on it."""
    pos = positions()[:3]
    pos[:, 2] = 0
    dipole = energy_forces_and_dipoles(force_field(3, dipole=True), molecule_graph(pos, NUMBERS[:3])).dipoles[0]
    assert dipole[:2].norm() > 1e-3 and abs(dipole[2]) < 1e-12


def test_energies_and_forces_are_those_without_the_head() -> None:
    """To rounding: a backend may find them at once, which dipoles are not. A force field without dipoles is what it was."""
    model, graph = force_field(dipole=True), graph_of(positions())
    found = energy_forces_and_dipoles(model, graph)
    energies, forces = energy_and_forces(model, graph)
    torch.testing.assert_close((found.energies, found.forces), (energies, forces), atol=1e-12, rtol=1e-12)
    assert "dipole" not in force_field().config and not any("dipole" in name for name in force_field().state_dict())
    assert force_field(dipole=False).config == force_field().config
    with pytest.raises(ValueError, match="with_dipoles: expected a force field that was trained on dipoles, got one without"):
        energy_forces_and_dipoles(force_field(), graph)
    periodic = molecule_graph(positions()[:3], NUMBERS[:3], cutoff=5.0, cell=9 * torch.eye(3).double())
    with pytest.raises(ValueError, match=r"graph: expected molecules, whose dipoles are defined, got edata\['offset'\]"):
        energy_forces_and_dipoles(model, periodic)


def test_gradients_of_a_loss_on_dipoles() -> None:
    """Those of parameters of the head and of the layers, by differences."""
    model, graph = force_field(dipole=True), graph_of(positions())
    wanted = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).double()

    def loss() -> Tensor:
        energies, forces, dipoles = energy_forces_and_dipoles(model, graph, create_graph=True)
        return (dipoles - wanted).square().sum() + forces.square().sum() + energies.square().sum()

    loss().backward()
    head = model.dipole_of_molecule
    for parameter in (head.charge_of_atom[0].weight, head.vector_weight, model.layers[0].before[0], model.layers[1].gates[0]):
        place = tuple(0 for _ in parameter.shape)
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                parameter[place] += step
                values.append(float(loss()))
            parameter[place] += 1e-5
        assert float(parameter.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def sample_with_dipoles(path: Path, count: int = 60, unknown: int = 0) -> None:
    """Every tenth frame of the sample; dipoles of charges by element, relative to the centre, which a force field can learn."""
    sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
    frames = []
    for number in range(0, 600, 600 // count):
        part = sample.select([number])
        atoms = Atoms(part.atomic_numbers.numpy(), part.pos.numpy())
        charges = np.array([0.2 if z == 1 else -0.1 * (z - 5) for z in atoms.numbers])
        dipole = (charges - charges.mean()) @ atoms.positions
        results = {"energy": float(part.energies[0]), "forces": part.forces.numpy()}
        if len(frames) >= unknown:
            results["dipole"] = dipole
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(path, frames)


def test_labels_of_files(tmp_path: Path) -> None:
    """Extended XYZ, its folder, and npz; units and names; those of crystals are not read."""
    sample_with_dipoles(tmp_path / "frames.xyz", unknown=3)
    found = read_frame_file(tmp_path / "frames.xyz").frames
    assert found.dipoles.shape == (60, 3) and int(found.dipoles.isnan().any(1).sum()) == 3
    debye = read_frame_file(tmp_path / "frames.xyz", names=LabelNames(units=LabelUnits(dipole="debye"))).frames
    torch.testing.assert_close(debye.dipoles, 0.20819433 * found.dipoles, equal_nan=True)
    assert read_frame_file(tmp_path / "frames.xyz", names=LabelNames(dipole="other")).frames.dipoles is None
    with np.load(FORCE_SAMPLE_PATH) as archive:
        arrays = dict(archive) | {"dipole_e_A": np.arange(1800.0).reshape(600, 3)}
    write_npz(tmp_path / "frames.npz", arrays)
    assert main(["pack-frames", str(tmp_path / "frames.npz"), "--output", str(tmp_path / "packed"), "--index", "7:9"]) == 0
    for path in (tmp_path / "frames.npz", tmp_path / "packed"):
        assert read_frame_file(path).frames.dipoles[-1 if path.is_dir() else 8].tolist() == [24, 25, 26]
    write_npz(tmp_path / "faulty.npz", arrays | {"dipole_e_A": np.zeros((600, 2))})
    with pytest.raises(DataError, match=r"faulty\.npz: array 'dipole_e_A' must have shape \[600, 3\], got \[600, 2\]"):
        read_frame_file(tmp_path / "faulty.npz")
    crystal = bulk("C")
    crystal.calc = SinglePointCalculator(crystal, energy=1.0, forces=np.zeros((2, 3)), dipole=np.ones(3))
    ase.io.write(tmp_path / "crystal.xyz", [crystal])
    assert read_frame_file(tmp_path / "crystal.xyz").frames.dipoles is None


def test_labels_of_collections(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "frames.h5", "w") as file:
        for name, unit in (("a", "elementary_charge*bohr"), ("b", None), ("c", None)):
            group = file.create_group(name)
            group["atomic_numbers"], group["positions"], group["energy"] = [8, 1], np.ones((2, 2, 3)), np.zeros(2)
            if name != "c":
                group["dipole"] = np.full((2, 3), 1.0)
            if unit:
                group["dipole"].attrs["units"] = unit
    found = read_frame_file(tmp_path / "frames.h5", names=LabelNames(units=LabelUnits(dipole="debye"))).frames.dipoles
    np.testing.assert_allclose(found[:, 0], [0.529177, 0.529177, 0.208194, 0.208194, np.nan, np.nan], rtol=1e-5)


def options(log_dir: Path) -> list[str]:
    sizes = ["--num_layers", "1", "--num_channels", "8", "--num_radial", "4", "--radial_width", "8", "--batch_size", "8"]
    return [*sizes, "--seed", "1", "--silent", "--log_dir", str(log_dir), "--num_train", "40", "--num_validation", "10"]


def test_training_learns_dipoles_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames without a dipole add nothing; a run that is resumed ends as one that was not."""
    sample_with_dipoles(tmp_path / "frames.xyz", unknown=5)
    checkpoint, words = tmp_path / "whole.pth", ["train-forces", "--data", str(tmp_path / "frames.xyz"), "--dipole_weight", "3"]
    words += [*options(tmp_path), "--max_steps", "60"]
    assert main([*words, "--epochs", "12", "--save_ckpt_path", str(checkpoint)]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("validation: "))
    error, guess = (float(line.split(before)[1].split()[0]) for before in ("dipole MAE ", "mean absolute component: "))
    assert error < 0.5 * guess
    resumed = tmp_path / "resumed.pth"
    assert main([*words, "--epochs", "5", "--save_ckpt_path", str(resumed)]) == 0
    assert main([*words, "--epochs", "12", "--load_ckpt_path", str(resumed), "--save_ckpt_path", str(resumed)]) == 0
    one, other = (read_checkpoint(path) for path in (checkpoint, resumed))
    assert one["model_config"]["dipole"] is True and one["loss"]["dipole_weight"] == 3
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    capsys.readouterr()
    assert main([*words[:3], *options(tmp_path), "--load_ckpt_path", str(resumed)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "dipole is True in the checkpoint, False in this run" in error
    # What is evaluated, moved and exported.
    assert main(["evaluate-forces", str(tmp_path / "frames.xyz"), "--load_ckpt_path", str(checkpoint)]) == 0
    assert "e·Å (mean absolute component:" in capsys.readouterr().out
    ase.io.write(tmp_path / "mixed.xyz", [*ase.io.read(tmp_path / "frames.xyz", ":3"), _methane_in_a_cell()])
    assert main(["evaluate-forces", str(tmp_path / "mixed.xyz"), "--load_ckpt_path", str(checkpoint)]) == 0
    assert "dipole MAE" not in capsys.readouterr().out
    assert main(["export-lammps", "--load_ckpt_path", str(checkpoint), "--output", str(tmp_path / "exported.pkl")]) == 0
    assert "note: energies and forces alone are exported, not the dipole" in capsys.readouterr().out
    atoms = ase.io.read(tmp_path / "frames.xyz", "-1")
    known = atoms.get_dipole_moment()
    atoms.calc = SE3FastCalculator(checkpoint, outside="ignore")
    assert np.abs(atoms.get_dipole_moment() - known).mean() < guess
    model = load_force_field(checkpoint)
    graph = molecule_graph(torch.from_numpy(atoms.positions).float(), torch.from_numpy(atoms.numbers))
    np.testing.assert_allclose(atoms.get_dipole_moment(), energy_forces_and_dipoles(model, graph).dipoles[0], atol=1e-5)


def _methane_in_a_cell() -> Atoms:
    atoms = molecule("CH4", cell=[8.0] * 3, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((5, 3)))
    return atoms


def test_the_calculator() -> None:
    """A dipole of molecules, none of what is periodic; the mean of a committee; none where a member has none."""
    members = [force_field(seed=seed, dipole=True) for seed in (0, 1)]
    atoms = molecule("CH3CH2OH")
    single = []
    for member in members:
        atoms.calc = SE3FastCalculator(member)
        single.append(atoms.get_dipole_moment())
        forces = atoms.get_forces()
    atoms.calc = SE3FastCalculator(members)
    np.testing.assert_allclose(atoms.get_dipole_moment(), np.mean(single, axis=0), atol=1e-12)
    atoms.calc = SE3FastCalculator([members[0], force_field()])
    assert "dipole" not in atoms.calc.implemented_properties and "dipole" in SE3FastCalculator.implemented_properties
    with pytest.raises(NotImplementedError):
        atoms.get_dipole_moment()
    for pbc in (True, [False, True, False]):
        periodic = molecule("CH3CH2OH", cell=[20.0] * 3, pbc=pbc)
        periodic.calc = SE3FastCalculator(members[1])
        np.testing.assert_allclose(periodic.get_forces(), forces, atol=1e-10)
        with pytest.raises(NotImplementedError):
            periodic.get_dipole_moment()


def test_what_cannot_be_trained_on(tmp_path: Path) -> None:
    sample_with_dipoles(tmp_path / "frames.xyz", unknown=60)
    with pytest.raises(DataError, match=r"frames\.xyz: expected dipoles in some of the 48 training frames, got none"):
        ForceDataModule(FrameFiles([tmp_path / "frames.xyz"]), dipoles=True)
    sample_with_dipoles(tmp_path / "frames.xyz")
    ase.io.write(tmp_path / "cell.xyz", [*ase.io.read(tmp_path / "frames.xyz", ":3"), _methane_in_a_cell()])
    files = FrameFiles([tmp_path / "frames.xyz", tmp_path / "cell.xyz"])
    with pytest.raises(DataError, match=r"cell\.xyz: frame 3: expected molecules, whose dipoles are defined, got a periodic cell"):
        ForceDataModule(files, dipoles=True)
    assert not ForceDataModule(files).has_dipoles
    data, model = ForceDataModule(FrameFiles([tmp_path / "frames.xyz"])), force_field(dipole=True)
    with pytest.raises(ValueError, match="dipole_weight: expected 0, or a number above with frames and a force field that have"):
        ForceTrainer(model, data, TrainingOptions(log_dir=tmp_path), dipole_weight=1.0)
    with pytest.raises(ValueError, match=r"dipole_weight: expected 0, or a number above .*, got -1"):
        ForceTrainer(model, data, TrainingOptions(log_dir=tmp_path), dipole_weight=-1.0)
