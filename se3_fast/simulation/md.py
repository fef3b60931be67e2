"""Molecular dynamics with a force field: `se3-fast md --help`."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure

from se3_fast.commands.md import main
from se3_fast.error_text import one_line
from se3_fast.files import atomic_file, check_apart, check_writable
from se3_fast.training.distributed import World, open_world
from se3_fast.training.errors import TrainingError, run_command, user_errors
from se3_fast.training.signals import StopSignal

from .arguments import calculator_of, device_name_of, structures_of
from .domain import OutsideDomainError
from .trajectory import Trajectory, open_trajectory
from .warned import warnings_on_one_line

_TEMPERATURE = 300.0
_AT_REST = 1e-6  # share of the atoms' momenta that the whole may have; trajectories are written with few digits


class State(NamedTuple):
    """A line of the log.

    Attributes:
        time_ps: Since the start.
        potential_eV: Of all atoms.
        kinetic_eV: Of all atoms.
        temperature_K: Of the degrees of freedom that move (:func:`moving_degrees`); with langevin all do.
        conserved_eV: What the ensemble conserves: the total energy, less what a thermostat has brought; not a number where a
            thermostat keeps no account of it.
    """

    time_ps: float
    potential_eV: float
    kinetic_eV: float
    temperature_K: float
    conserved_eV: float


def _verlet(atoms: Atoms, arguments: argparse.Namespace, _: np.random.RandomState) -> MolecularDynamics:
    return VelocityVerlet(atoms, arguments.timestep * units.fs)


def _langevin(atoms: Atoms, arguments: argparse.Namespace, random: np.random.RandomState) -> MolecularDynamics:
    friction = 1 / (1000 * units.fs * arguments.time_constant)
    options = {"temperature_K": arguments.temperature or _TEMPERATURE, "friction": friction, "rng": random}
    return Langevin(atoms, arguments.timestep * units.fs, fixcm=False, **options)


def _bussi(atoms: Atoms, arguments: argparse.Namespace, random: np.random.RandomState) -> MolecularDynamics:
    taut = 1000 * units.fs * arguments.time_constant
    options = {"temperature_K": arguments.temperature or _TEMPERATURE, "taut": taut, "rng": random}
    dynamics = Bussi(atoms, arguments.timestep * units.fs, **options)
    # It counts three for each atom, and would heat a molecule that does not turn for those as well.
    dynamics.ndof = moving_degrees(atoms)
    dynamics.target_kinetic_energy = 0.5 * dynamics.temp * dynamics.ndof
    return dynamics


ENSEMBLES: dict[str, Callable[[Atoms, argparse.Namespace, np.random.RandomState], MolecularDynamics]] = {
    "nve": _verlet,
    "langevin": _langevin,
    "nvt": _bussi,
}
"""How each moves atoms."""


class Run:
    """A simulation, and what is written of it.

    Args:
        arguments: The parsed command line.
        world: Where it runs.

    Raises:
        ValueError: The structure, a checkpoint or an option is at fault.
        OSError: A file cannot be read or written.
    """

    def __init__(self, arguments: argparse.Namespace, world: World) -> None:
        self.arguments = arguments
        written = [("the trajectory", arguments.output), ("the log", arguments.log), ("the plot", arguments.plot)]
        check_apart(written, [("the structure", arguments.structures)])
        for path in filter(None, (arguments.log, arguments.plot)):
            check_writable(path)
        structures = structures_of(arguments)
        if len(structures) != 1:
            raise ValueError(f"{arguments.structures}: expected one structure at index {arguments.index}, got {len(structures)}")
        self.atoms = structures[0][1]
        self.atoms.calc = calculator_of(arguments, world.device)
        self.atoms.get_forces()
        random = np.random.RandomState(arguments.seed)
        if arguments.temperature is not None or arguments.ensemble != "nve" or not self.atoms.get_momenta().any():
            draw_velocities(self.atoms, arguments.temperature or _TEMPERATURE, random)
        self.dynamics = ENSEMBLES[arguments.ensemble](self.atoms, arguments, random)
        is_open = isinstance(self.dynamics, Langevin)
        self._degrees = self.atoms.get_number_of_degrees_of_freedom() if is_open else moving_degrees(self.atoms)
        self.states: list[State] = []

    def go(self, trajectory: Trajectory | None) -> None:
        """Make all steps.

        Raises:
            TrainingError: It cannot go on; says at which step.
        """

        def observe() -> None:
            self.states.append(self._state())
            if trajectory is not None:
                trajectory.write(self.atoms)

        self.dynamics.attach(observe, interval=self.arguments.interval)
        try:
            # A step is counted when it is done, after its forces.
            with warnings_on_one_line(lambda: f"step {self.dynamics.nsteps + 1}"):
                self.dynamics.run(self.arguments.steps)
            if self.arguments.steps % self.arguments.interval:
                observe()  # the last step, which a run goes on from
        except (OutsideDomainError, ValueError) as error:
            raise TrainingError(f"step {self.dynamics.nsteps + 1}: {one_line(error)}") from error
        finally:
            self._write()

    def _state(self) -> State:
        potential, kinetic = self.atoms.get_potential_energy(), self.atoms.get_kinetic_energy()
        is_open = isinstance(self.dynamics, Langevin)
        conserved = np.nan if is_open else potential + kinetic - getattr(self.dynamics, "transferred_energy", 0.0)
        time = self.dynamics.nsteps * self.arguments.timestep / 1000
        return State(time, potential, kinetic, 2 * kinetic / (self._degrees * units.kB), conserved)

    def _write(self) -> None:
        if self.arguments.log is not None:
            with atomic_file(self.arguments.log) as file:
                table = csv.writer(text := io.TextIOWrapper(file, encoding="utf-8", newline=""))
                table.writerow(State._fields)
                table.writerows([f"{value:.10g}" for value in state] for state in self.states)
                text.flush()
                text.detach()
        if self.arguments.plot is not None:
            plot_conservation(self.states, len(self.atoms), self.arguments.plot)

    def summary(self) -> str:
        """What a finished run has shown, on one line."""
        temperature = np.mean([state.temperature_K for state in self.states])
        text = f"{self.dynamics.nsteps} steps, {self.states[-1].time_ps:g} ps: mean temperature {temperature:.4g} K"
        drift = drift_of(self.states, len(self.atoms))
        return text if np.isnan(drift) else f"{text}, drift of the conserved energy {drift:.3g} meV/atom/ps"


def draw_velocities(atoms: Atoms, temperature: float, random: np.random.RandomState) -> None:
    """Give atoms momenta of a temperature (Maxwell, Boltzmann), and the whole none; the temperature is that of what moves.

    What constraints hold is not free to move as a whole: to take its momentum off would only make it colder.
    """
    deviations = np.sqrt(atoms.get_masses() * units.kB * temperature)
    atoms.set_momenta(deviations[:, None] * random.standard_normal((len(atoms), 3)))
    if len(atoms) > 2 and not atoms.constraints:  # of fewer little would be left
        Stationary(atoms, preserve_temperature=False)
        if not atoms.pbc.any():
            ZeroRotation(atoms, preserve_temperature=False)


def moving_degrees(atoms: Atoms) -> int:
    """Degrees of freedom that have a share of the kinetic energy.

    Three for each atom, less those of constraints; and, where atoms that nothing holds have no momentum as a whole, and a molecule
    no angular momentum, less the translation and the rotation: without friction and noise it stays so.
    """
    count = int(atoms.get_number_of_degrees_of_freedom())
    momenta = atoms.get_momenta()
    most = _AT_REST * np.abs(momenta).sum()
    if atoms.constraints or np.abs(momenta.sum(0)).max() > most:
        return count
    count -= 3
    if atoms.pbc.any():
        return count
    arms = atoms.positions - atoms.get_center_of_mass()
    if np.abs(np.cross(arms, momenta).sum(0)).max() > most * np.abs(arms).max():
        return count
    moments = atoms.get_moments_of_inertia()
    return count - int((moments > _AT_REST * moments.max()).sum())  # a linear molecule has two


def drift_of(states: Sequence[State], num_atoms: int) -> float:
    """Slope of the conserved energy over time by least squares, meV/atom/ps; not a number where there is none."""
    times, energies = (np.array([getattr(state, name) for state in states]) for name in ("time_ps", "conserved_eV"))
    if len(times) < 2:
        return float("nan")
    return (
        float(np.polyfit(times, energies - energies[0], 1)[0]) * 1000 / num_atoms if np.isfinite(energies).all() else float("nan")
    )


def plot_conservation(states: Sequence[State], num_atoms: int, path: Path) -> None:
    """The conserved energy (the total one, where none is known to be) and the temperature over time, as PNG.

    Raises:
        OSError: The file cannot be written.
    """
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    times = [state.time_ps for state in states]
    energies, name = np.array([state.conserved_eV for state in states]), "conserved energy"
    if not np.isfinite(energies).all():
        energies, name = np.array([state.potential_eV + state.kinetic_eV for state in states]), "total energy"
    above.plot(times, (energies - energies[:1]) * 1000 / num_atoms, linewidth=0.8)
    above.set(ylabel=f"{name}\n(meV/atom, from the start)")
    below.plot(times, [state.temperature_K for state in states], color="tab:red", linewidth=0.8)
    below.set(xlabel="time (ps)", ylabel="temperature (K)")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


def simulate(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
        TrainingError: The run cannot go on.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    with StopSignal().watched(), open_world(device_name_of(arguments)) as world, user_errors():
        try:
            with warnings_on_one_line(lambda: "step 0"):
                run = Run(arguments, world)
        except OutsideDomainError as error:
            raise TrainingError(f"step 0: {one_line(error)}") from error
        with open_trajectory(arguments.output) as trajectory:
            run.go(trajectory)
    print(run.summary())


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return run_command(lambda: simulate(arguments))


if __name__ == "__main__":
    sys.exit(main())
