"""Relaxing structures with a force field: `se3-fast relax --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from se3_fast.command_line import HelpFormatter
from se3_fast.error_text import one_line
from se3_fast.training.arguments import add_flag, positive_float, positive_int
from se3_fast.training.distributed import open_world
from se3_fast.training.errors import CommandError, TrainingError, run_command, user_errors
from se3_fast.training.signals import StopSignal

from .arguments import add_force_field_arguments, calculator_of, device_name_of, structures_of
from .domain import OutsideDomainError
from .trajectory import Trajectory, check_format, open_trajectory, with_results, write_structures
from .warned import warnings_on_one_line

OPTIMIZERS = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}
NOT_RELAXED = 3
"""Exit status of a run that went through, with structures whose forces are still larger than asked for."""


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast relax",
        description="Move atoms to where a force field has no force on them.",
        epilog="Exit status: 0, all structures are relaxed; 3, some need more steps; 1, it stopped on its way; 2, the input is at "
        "fault.",
        formatter_class=HelpFormatter,
    )
    add_force_field_arguments(parser, index=":")
    group = parser.add_argument_group("relaxation")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="bfgs", help="how atoms are moved")
    group.add_argument("--fmax", type=positive_float, default=0.01, help="largest force on an atom that may be left, eV/Angstrom")
    group.add_argument("--max_steps", type=positive_int, default=500, help="steps that a structure may take")
    add_flag(group, "cell", "relax the cell too; all directions must be periodic")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="relaxed structures, in any format that ASE writes"
    )
    results.add_argument("--trajectory", type=Path, default=None, metavar="FILE", help="all frames on the way")
    return parser


def relax(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns how many structures are not relaxed.

    Raises:
        CommandError: The input is at fault.
        TrainingError: A structure has left what was trained on, and that was to stop.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    with StopSignal().watched(), open_world(device_name_of(arguments)) as world:
        with user_errors():
            structures = structures_of(arguments)
            check_format(arguments.output, len(structures))
            calculator = calculator_of(arguments, world.device)
            for number, atoms in structures:
                if arguments.cell and not atoms.pbc.all():
                    raise ValueError(f"{arguments.structures}: frame {number}: expected three periodic directions for --cell")
        relaxed, left = [], 0
        with user_errors(), open_trajectory(arguments.trajectory) as trajectory:
            for number, atoms in structures:
                atoms.calc = calculator
                left += not _relax(atoms, f"frame {number}", arguments, trajectory)
                relaxed.append(with_results(atoms))
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, relax, and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    left = 0

    def action() -> None:
        nonlocal left
        left = relax(parsed)

    return run_command(action) or (NOT_RELAXED if left else 0)


if __name__ == "__main__":
    sys.exit(main())
