"""`se3-fast evaluate-forces`, and that a force field trained on labelled files repeats the errors that its training reports."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from se3_fast.__main__ import main
from se3_fast.ase import SE3FastCalculator
from se3_fast.training import read_checkpoint
from tests.simulation.conftest import small_force_field, write_force_field

DEVICE = ["--device", "cpu"]


def labelled(count: int, seed: int) -> list[Atoms]:
    """Crystals and molecules with the labels of a random force field; every fourth has no forces, every fifth no energy."""
    calculator = SE3FastCalculator(small_force_field(7, num_layers=1, num_channels=4, cutoff=3.0))
    frames = []
    for number in range(count):
        atoms = bulk("C") if number % 2 else molecule("CH4")
        atoms.rattle(0.1, seed=seed + number)
        atoms.calc = calculator
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if number % 2:
            results["stress"] = atoms.get_stress()
        if number % 4 == 3:
            del results["forces"]
        if number % 5 == 4:
            del results["energy"]
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def test_errors_of_frames_are_those_of_the_calculator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_force_field(tmp_path / "model.pth", small_force_field(cutoff=3.0))
    frames = labelled(9, 0)
    ase.io.write(tmp_path / "one.traj", frames[:4])
    ase.io.write(tmp_path / "two.xyz", frames[4:])
    files = [tmp_path / "one.traj", tmp_path / "two.xyz", "--output", tmp_path / "errors.csv", "--plot", tmp_path / "forces.png"]
    assert main([str(word) for word in ["evaluate-forces", *files, "--load_ckpt_path", path, "--batch_size", 4, *DEVICE]]) == 0
    with open(tmp_path / "errors.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == [*"0123", *"01234"] and rows[4]["file"].endswith("two.xyz")
    assert (tmp_path / "forces.png").stat().st_size > 0
    calculator, stress_errors, energy_errors, force_errors = SE3FastCalculator(path), [], [], []
    for row, atoms in zip(rows, frames, strict=True):
        known = atoms.calc.results
        atoms.calc = calculator
        if "energy" in known:
            assert float(row["predicted_energy_eV"]) == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
            energy_errors.append(atoms.get_potential_energy() - known["energy"])
        else:
            assert row["energy_eV"] == row["predicted_energy_eV"] == ""
        if "forces" in known:
            error = np.abs(atoms.get_forces() - known["forces"])
            assert float(row["force_mae_eV_A"]) == pytest.approx(error.mean(), abs=1e-4)
            assert float(row["largest_force_error_eV_A"]) == pytest.approx(error.max(), abs=1e-4)
            force_errors.append(error)
        else:
            assert row["force_mae_eV_A"] == ""
        if "stress" in known:
            difference = np.abs(atoms.get_stress() - known["stress"])
            stress_errors.append(difference[[0, 1, 2, 3, 3, 4, 4, 5, 5]])
    printed = capsys.readouterr().out
    found = [float(number) for number in re.findall(r"MAE (\S+)", printed)]
    expected = [np.concatenate(force_errors).mean(), np.abs(energy_errors).mean(), np.mean(stress_errors)]
    assert found == pytest.approx(expected, rel=2e-3)
    assert printed.endswith(f"{len(energy_errors)} frames\n")


def test_a_folder_is_evaluated_as_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_force_field(tmp_path / "model.pth", small_force_field(cutoff=3.0))
    ase.io.write(tmp_path / "frames.traj", labelled(9, 0))
    assert main(["pack-frames", str(tmp_path / "frames.traj"), "--output", str(tmp_path / "packed")]) == 0
    capsys.readouterr()
    printed, tables = [], []
    for name in ("frames.traj", "packed"):
        words = ["evaluate-forces", tmp_path / name, "--load_ckpt_path", path, "--output", tmp_path / "errors.csv", *DEVICE]
        assert main([str(word) for word in words]) == 0
        printed.append(capsys.readouterr().out)
        tables.append((tmp_path / "errors.csv").read_text().replace(str(tmp_path / name), "file"))
    assert printed[0] == printed[1] and tables[0] == tables[1] and tables[0].count("\n") == 10


def test_training_on_periodic_frames_with_stress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is trained is better than nothing, its checkpoint knows how close atoms came, and its errors are found again."""
    files: list[object] = []
    for name, count, seed in (("data", 20, 0), ("validation_data", 5, 100), ("test_data", 5, 200)):
        ase.io.write(tmp_path / f"{name}.xyz", labelled(count, seed))
        files += [f"--{name}", tmp_path / f"{name}.xyz"]
    sizes = ["--num_layers", 1, "--num_channels", 8, "--cutoff", 3, "--epochs", 8, "--eval_interval", 8, "--seed", 1, "--silent"]
    sizes += ["--stress_weight", 10, "--lr", 0.02, "--batch_size", 5]
    results = ["--save_ckpt_path", tmp_path / "model.pth", "--log_dir", tmp_path / "log", *DEVICE]
    assert main(["train-forces", *map(str, [*files, *sizes, *results])]) == 0
    reported = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("test: "))
    assert main(["evaluate-forces", str(tmp_path / "test_data.xyz"), "--load_ckpt_path", str(tmp_path / "model.pth"), *DEVICE]) == 0
    again = capsys.readouterr().out
    errors, errors_again = (re.findall(r"(?:MAE|force|component:) (\d\S*)", text) for text in (reported, again))
    assert len(errors) == 5 and list(map(float, errors)) == pytest.approx(list(map(float, errors_again)), rel=2e-3)
    assert float(errors[0]) < 0.9 * float(errors[1]) and float(errors[3]) < float(errors[4])
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert checkpoint["loss"]["stress_weight"] == 10
    assert checkpoint["data"]["file"] == "data.xyz, validation_data.xyz, test_data.xyz"
    shortest = min(atoms.get_distance(0, 1) for atoms in ase.io.read(tmp_path / "data.xyz", "::2"))
    assert 0.9 * shortest < checkpoint["closest_pairs"]["1-6"] <= shortest + 1e-5


def test_mistakes_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_force_field(tmp_path / "model.pth", small_force_field(cutoff=3.0))
    atoms = molecule("NH3")
    atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    ase.io.write(tmp_path / "frames.xyz", [*labelled(2, 0), atoms])
    for words, fault in (
        (["frames.xyz"], "frames.xyz: frame 2: expected the elements [1, 6, 8], got 7"),
        (
            ["frames.xyz", "--index", ":2", "--energy_name", "a", "--forces_name", "b"],
            "frames.xyz: expected 'a' or 'b' in some frame",
        ),
        (["nowhere.xyz"], "nowhere.xyz: no such file"),
        (
            ["frames.xyz", "--index", ":2", "--output", str(tmp_path / "frames.xyz")],
            "frames.xyz: expected another file for the table than that of the frames",
        ),
    ):
        assert main(["evaluate-forces", str(tmp_path / words[0]), *words[1:], "--load_ckpt_path", str(path), *DEVICE]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and fault in error
    assert len(ase.io.read(tmp_path / "frames.xyz", ":")) == 3
