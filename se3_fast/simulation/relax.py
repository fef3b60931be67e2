"""Relaxing structures with a force field: `se3-fast relax --help`."""

from __future__ import annotations

import argparse
import sys

from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from se3_fast.commands.relax import main
from se3_fast.error_text import one_line
from se3_fast.files import check_apart
from se3_fast.training.distributed import open_world
from se3_fast.training.errors import CommandError, TrainingError, run_command, user_errors
from se3_fast.training.signals import StopSignal

from .arguments import calculator_of, device_name_of, structures_of
from .domain import OutsideDomainError
from .trajectory import Trajectory, check_format, open_trajectory, with_results, write_structures
from .warned import warnings_on_one_line

OPTIMIZERS = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}
NOT_RELAXED = 3
"""Exit status of a run that went through, with structures whose forces are still larger than asked for."""


def relax(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns how many structures are not relaxed.

    Raises:
        CommandError: The input is at fault.
        TrainingError: A structure has left what was trained on, and that was to stop.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    with StopSignal().watched(), open_world(device_name_of(arguments)) as world:
        with user_errors():
            written = [("the relaxed structures", arguments.output), ("the trajectory", arguments.trajectory)]
            check_apart(written, [("the structures", arguments.structures)])
            structures = structures_of(arguments)
            check_format(arguments.output, len(structures))
            calculator = calculator_of(arguments, world.device)
            for number, atoms in structures:
                if arguments.cell and not atoms.pbc.all():
                    raise ValueError(f"{arguments.structures}: frame {number}: expected three periodic directions for --cell")
        relaxed: list[Atoms] = []
        left = 0
        try:
            with user_errors(), open_trajectory(arguments.trajectory) as trajectory:
                for number, atoms in structures:
                    atoms.calc = calculator
                    left += not _relax(atoms, f"frame {number}", arguments, trajectory)
                    relaxed.append(with_results(atoms))
        finally:
            if relaxed:  # a structure that cannot be relaxed does not cost those before it
                with user_errors():
                    write_structures(arguments.output, relaxed)
    return left


def _relax(atoms: Atoms, name: str, arguments: argparse.Namespace, trajectory: Trajectory | None) -> bool:
    """Relax one structure, say what came of it, and return whether its forces are small enough."""
    moved = FrechetCellFilter(atoms) if arguments.cell else atoms
    optimizer = OPTIMIZERS[arguments.optimizer](moved, logfile=None)
    if trajectory is not None:
        optimizer.attach(lambda: trajectory.write(atoms))
    try:
        with warnings_on_one_line(lambda: f"{name}: step {optimizer.nsteps}"):
            is_relaxed = bool(optimizer.run(fmax=arguments.fmax, steps=arguments.max_steps))
    except OutsideDomainError as error:
        raise TrainingError(f"{arguments.structures}: {name}: step {optimizer.nsteps}: {one_line(error)}") from error
    except ValueError as error:
        raise CommandError(f"{arguments.structures}: {name}: step {optimizer.nsteps}: {one_line(error)}") from error
    force = float((atoms.get_forces() ** 2).sum(1).max() ** 0.5)
    outcome = "relaxed" if is_relaxed else "not relaxed"
    print(f"{name}: {outcome} after {optimizer.nsteps} steps: {atoms.get_potential_energy():.6f} eV, fmax {force:.3g} eV/Angstrom")
    return is_relaxed


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    left = 0

    def action() -> None:
        nonlocal left
        left = relax(arguments)

    return run_command(action) or (NOT_RELAXED if left else 0)


if __name__ == "__main__":
    sys.exit(main())
