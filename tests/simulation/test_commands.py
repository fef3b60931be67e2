"""`se3-fast md` and `relax` as a user runs them."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.md.verlet import VelocityVerlet

from se3_fast.__main__ import main
from se3_fast.ase import SE3FastCalculator
from se3_fast.simulation.md import ENSEMBLES, State, draw_velocities, drift_of, moving_degrees
from tests.simulation.conftest import small_force_field, write_force_field

DEVICE = ["--device", "cpu"]


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three geometries of ethanol."""
    frames = [molecule("CH3CH2OH") for _ in range(3)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=number)
    path = tmp_path_factory.mktemp("structures") / "ethanol.xyz"
    ase.io.write(path, frames)
    return path


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A force field that takes any distance for known."""
    return write_force_field(tmp_path_factory.mktemp("free") / "free.pth", small_force_field())


def rows_of(path: Path) -> list[State]:
    with open(path) as file:
        return [State(*map(float, row)) for row in list(csv.reader(file))[1:]]


def test_nve_is_that_of_ase(structures: Path, free: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--output", tmp_path / "out.traj", "--log", tmp_path / "log.csv", "--plot", tmp_path / "plot.png"]
    words = ["md", structures, "--load_ckpt_path", free, "--steps", 20, "--interval", 5, "--temperature", 200, *files, *DEVICE]
    assert main([*map(str, words), "--dtype", "float64"]) == 0
    frames = ase.io.read(tmp_path / "out.traj", ":")
    states = rows_of(tmp_path / "log.csv")
    assert len(frames) == len(states) == 5 and (tmp_path / "plot.png").stat().st_size > 0
    atoms = frames[0].copy()
    assert np.allclose(atoms.positions, ase.io.read(structures).positions)
    assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-10 and states[0].temperature_K == pytest.approx(200, rel=0.5)
    atoms.calc = SE3FastCalculator(free, dtype=small_force_field().double().atom_embedding.dtype)
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    for frame, state in zip(frames, states, strict=True):
        assert frame.get_potential_energy() == pytest.approx(state.potential_eV, abs=1e-5)
        np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-9)
        np.testing.assert_allclose(frame.get_forces(), atoms.get_forces(), atol=1e-7)
        assert state.conserved_eV == pytest.approx(state.potential_eV + state.kinetic_eV, abs=1e-5)
        dynamics.run(5)
    assert [state.time_ps for state in states] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01])
    assert "20 steps, 0.01 ps: mean temperature" in capsys.readouterr().out


def test_a_run_goes_on_with_the_velocities_of_its_last_frame(structures: Path, free: Path, tmp_path: Path) -> None:
    """Two halves are one whole, where no half is a multiple of the interval either."""
    common = ["--load_ckpt_path", free, "--interval", 3, "--dtype", "float64", *DEVICE]
    for name, start, steps in (("whole", structures, 8), ("first", structures, 4), ("second", tmp_path / "first.traj", 4)):
        words = ["md", start, *common, "--steps", steps, "--output", tmp_path / f"{name}.traj"]
        assert main(list(map(str, words))) == 0
    whole, second = (ase.io.read(tmp_path / f"{name}.traj") for name in ("whole", "second"))
    np.testing.assert_allclose(whole.positions, second.positions, atol=1e-10)
    assert len(ase.io.read(tmp_path / "whole.traj", ":")) == 4  # after 0, 3, 6 and 8 steps


@pytest.mark.parametrize("ensemble", ["langevin", "nvt"])
def test_thermostats(structures: Path, free: Path, tmp_path: Path, ensemble: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What they conserve is conserved, and two runs are the same."""
    outputs = []
    for name in ("one.xyz", "two.xyz"):
        words = ["md", structures, "--load_ckpt_path", free, "--ensemble", ensemble, "--steps", 30, "--timestep", 0.1]
        files = ["--output", tmp_path / name, "--log", tmp_path / "log.csv", "--plot", tmp_path / "plot.png"]
        assert main([str(word) for word in [*words, *files, *DEVICE]]) == 0
        outputs.append(ase.io.read(tmp_path / name, ":"))
    assert len(outputs[0]) == 4
    assert all(np.array_equal(one.positions, two.positions) for one, two in zip(*outputs, strict=True))
    states = rows_of(tmp_path / "log.csv")
    totals = np.array([state.potential_eV + state.kinetic_eV for state in states])
    conserved = np.array([state.conserved_eV for state in states])
    if ensemble == "langevin":
        assert np.isnan(conserved).all() and "drift" not in capsys.readouterr().out
    else:
        assert np.ptp(conserved) < 0.3 * np.ptp(totals)
    degrees = 27 if ensemble == "langevin" else 21  # a molecule of nine atoms which as a whole stays at rest, and which does not
    for state in states:
        assert state.temperature_K == pytest.approx(2 * state.kinetic_eV / (degrees * units.kB), rel=1e-6)


MOVING = {"molecule": 9, "periodic": 12, "linear": 4, "pair": 6}


def placed(kind: str) -> Atoms:
    atoms = molecule({"linear": "CO2", "pair": "CO"}.get(kind, "CH4"), vacuum=3.0)
    atoms.pbc = kind == "periodic"
    return atoms


@pytest.mark.parametrize(("kind", "degrees"), MOVING.items())
def test_velocities_have_the_temperature_that_is_asked_for(kind: str, degrees: int) -> None:
    atoms, energies = placed(kind), []
    for seed in range(1000):
        draw_velocities(atoms, 300.0, np.random.RandomState(seed))
        energies.append(atoms.get_kinetic_energy())
    assert moving_degrees(atoms) == degrees
    assert 2 * np.mean(energies) / (degrees * units.kB) == pytest.approx(300, rel=0.06)


@pytest.mark.parametrize(("kind", "degrees"), MOVING.items())
def test_the_thermostat_heats_what_moves(kind: str, degrees: int) -> None:
    """The atoms of a small molecule that does not turn would else be far too hot: methane by two thirds."""
    atoms, random = placed(kind), np.random.RandomState(0)
    draw_velocities(atoms, 300.0, random)
    arguments = argparse.Namespace(timestep=0.5, temperature=300.0, time_constant=0.0005)
    dynamics, energies = ENSEMBLES["nvt"](atoms, arguments, random), []
    for _ in range(4000):
        dynamics.scale_velocities()
        energies.append(atoms.get_kinetic_energy())
    assert 2 * np.mean(energies) / (degrees * units.kB) == pytest.approx(300, rel=0.06)
    assert np.var(energies) == pytest.approx(degrees / 2 * (300 * units.kB) ** 2, rel=0.15)


def test_atoms_that_are_held_do_not_count() -> None:
    atoms, energies = placed("molecule"), []
    atoms.set_constraint(FixAtoms([0]))
    for seed in range(1000):
        draw_velocities(atoms, 300.0, np.random.RandomState(seed))
        energies.append(atoms.get_kinetic_energy())
    assert moving_degrees(atoms) == 12 and not atoms.get_momenta()[0].any()
    assert 2 * np.mean(energies) / (12 * units.kB) == pytest.approx(300, rel=0.06)


def test_the_drift_is_in_mev_per_atom_and_picosecond() -> None:
    states = [State(0.1 * number, 0, 0, 0, -1000 + 0.003 * 0.1 * number) for number in range(10)]
    assert drift_of(states, 3) == pytest.approx(1.0)
    assert np.isnan(drift_of(states[:1], 3))


def test_a_run_that_leaves_what_is_known(
    structures: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so once, or stops; what was written before stays."""
    words = ["md", structures, "--load_ckpt_path", checkpoint, "--steps", 400, "--temperature", 9000, "--interval", 1]
    words += ["--output", tmp_path / "out.xyz", *DEVICE]
    assert main([*map(str, words), "--steps", "40"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("warning: step ") and "Angstrom apart" in line for line in lines)
    first = int(lines[0].split()[2].rstrip(":"))
    assert main([*map(str, words), "--outside", "stop"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: step {first}: atoms ") and error.count("\n") == 1
    assert len(ase.io.read(tmp_path / "out.xyz", ":")) == first


@pytest.mark.parametrize("optimizer", ["bfgs", "fire"])
def test_relaxation(structures: Path, free: Path, tmp_path: Path, optimizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Forces fall below what is asked for, or the status says that they have not."""
    words = ["relax", structures, "--index", ":2", "--load_ckpt_path", free, "--optimizer", optimizer, "--fmax", 0.4]
    words += ["--output", tmp_path / "relaxed.xyz", "--trajectory", tmp_path / "way.traj", "--max_steps", 60, *DEVICE]
    status = main(list(map(str, words)))
    found = ase.io.read(tmp_path / "relaxed.xyz", ":")
    lines = capsys.readouterr().out.splitlines()
    assert len(found) == len(lines) == 2
    largest = [np.linalg.norm(atoms.get_forces(), axis=1).max() for atoms in found]
    assert status == (0 if max(largest) <= 0.4 else 3) and min(largest) <= 0.4
    for number, (atoms, line) in enumerate(zip(found, lines, strict=True)):
        assert line.startswith(f"frame {number}: {'relaxed' if largest[number] <= 0.4 else 'not relaxed'} after ")
        assert f"{atoms.get_potential_energy():.6f} eV" in line
        atoms.calc = SE3FastCalculator(free)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() == pytest.approx(largest[number], abs=2e-3)
    assert len(ase.io.read(tmp_path / "way.traj", ":")) >= 4
    assert main([*map(str, words), "--max_steps", "1", "--fmax", "1e-6"]) == 3
    assert "frame 0: not relaxed after 1 steps" in capsys.readouterr().out


def test_a_structure_that_cannot_be_relaxed_does_not_cost_those_before_it(free: Path, tmp_path: Path) -> None:
    write_faulty(tmp_path)
    words = ["relax", tmp_path / "fluorine.xyz", "--load_ckpt_path", free, "--output", tmp_path / "out.xyz", "--max_steps", 5]
    assert main([*map(str, words), *DEVICE]) == 2
    (found,) = ase.io.read(tmp_path / "out.xyz", ":")
    assert len(found) == 3 and found.get_potential_energy() < 0


def test_cells_are_relaxed_too(free: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "diamond.xyz", bulk("C", cubic=True))
    words = ["relax", tmp_path / "diamond.xyz", "--load_ckpt_path", free, "--output", tmp_path / "relaxed.cif", "--cell", *DEVICE]
    assert main([*map(str, words), "--max_steps", "3"]) in (0, 3)
    before, after = bulk("C", cubic=True), ase.io.read(tmp_path / "relaxed.cif")
    for atoms in (before, after):
        atoms.calc = SE3FastCalculator(free)
    assert abs(after.get_volume() / before.get_volume() - 1) > 1e-3
    assert after.get_potential_energy() < before.get_potential_energy()


def write_faulty(folder: Path) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.numbers[0] = 9
    ase.io.write(folder / "fluorine.xyz", [molecule("H2O"), atoms])
    ase.io.write(folder / "water.xyz", molecule("H2O"))
    (folder / "same.xyz").hardlink_to(folder / "water.xyz")
    ase.io.write(folder / "nothing.xyz", Atoms())
    lines = (folder / "fluorine.xyz").read_text().splitlines()
    (folder / "cut.xyz").write_text("\n".join(lines[:-2]))
    ase.io.write(folder / "together.xyz", Atoms("OHH", positions=[[0, 0, 0], [0, 0, 1], [0, 0, 1]]))


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("relax nowhere.xyz --output out.xyz", "nowhere.xyz: no such file"),
        ("relax cut.xyz --output out.xyz", "cut.xyz: frame 1: cannot be read as extended XYZ (expected 9 atoms, got 7)"),
        ("relax fluorine.xyz --output out.xyz", "fluorine.xyz: frame 1: step 0: graph: expected the elements [1, 6, 8], got [9]"),
        ("relax together.xyz --output out.xyz", "together.xyz: frame 0: step 0: positions: expected atoms at different places"),
        ("relax water.xyz --output out.xyz --index 5", "water.xyz: expected structures at index 5, got none"),
        ("relax water.xyz --output out.xyz --index a", "index: expected the number of a frame or start:stop:step, got 'a'"),
        ("relax water.xyz --output out.nothing", "out.nothing: expected the name of a format that ASE writes"),
        ("relax water.xyz --output out.xyz --trajectory out.cube", "out.cube: expected a format of many frames"),
        (
            "relax fluorine.xyz --output out.cube",
            "expected a format of many frames, such as .traj or .xyz, for 2 structures",
        ),
        ("relax water.xyz --output out.xyz --cell", "water.xyz: frame 0: expected three periodic directions for --cell"),
        ("md fluorine.xyz --index :", "fluorine.xyz: expected one structure at index :, got 2"),
        ("md nothing.xyz", "nothing.xyz: frame 0: expected one atom at least, got none"),
        ("relax nothing.xyz --output out.xyz", "nothing.xyz: frame 0: expected one atom at least, got none"),
        ("md fluorine.xyz", "graph: expected the elements [1, 6, 8], got [9]"),
        ("md water.xyz --largest_spread 1", "largest_spread: expected several force fields to compare, got 1"),
        ("md water.xyz --output ./water.xyz", "water.xyz: expected another file for the trajectory than that of the structure"),
        ("md water.xyz --output out.cube", "out.cube: expected a format of many frames"),
        ("md water.xyz --log ./water.xyz", "water.xyz: expected another file for the log than that of the structure"),
        ("md water.xyz --output out.xyz --log ./out.xyz", "out.xyz: expected another file for the log than that of the trajectory"),
        ("md water.xyz --log a --plot a", "a: expected another file for the plot than that of the log"),
        ("relax water.xyz --output ./water.xyz", "expected another file for the relaxed structures than that of the structures"),
        (
            "relax water.xyz --output a.xyz --trajectory a.xyz",
            "a.xyz: expected another file for the trajectory than that of the relaxed structures",
        ),
        (
            "relax water.xyz --output a.xyz --trajectory same.xyz",
            "same.xyz: expected another file for the trajectory than that of the structures",
        ),
    ],
)
def test_mistakes_get_one_line(
    free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_faulty(tmp_path)
    assert main([*words.split(), "--load_ckpt_path", str(free), *DEVICE]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and fault in error
    assert len(ase.io.read(tmp_path / "water.xyz")) == 3
