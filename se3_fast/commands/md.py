"""Options of `se3-fast md`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.commands.force_field_arguments import add_force_field_arguments
from se3_fast.training.arguments import natural_int, positive_float, positive_int

ENSEMBLES = ("nve", "langevin", "nvt")


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast md",
        description="Run molecular dynamics with a force field.",
        epilog="Exit status: 0, the run went through; 1, it stopped on its way; 2, the input is at fault.",
        formatter_class=HelpFormatter,
    )
    add_force_field_arguments(parser, index="-1")
    dynamics = parser.add_argument_group("dynamics")
    dynamics.add_argument(
        "--ensemble",
        choices=ENSEMBLES,
        default="nve",
        help="nve: velocity Verlet; langevin: friction and noise; nvt: velocities rescaled at random (Bussi)",
    )
    dynamics.add_argument(
        "--temperature",
        type=positive_float,
        default=None,
        help="of thermostat and first velocities, K (default: 300; with nve: the velocities of the file, where it has some)",
    )
    dynamics.add_argument("--timestep", type=positive_float, default=0.5, help="fs")
    dynamics.add_argument("--steps", type=positive_int, default=1000, help="number of steps")
    dynamics.add_argument(
        "--time_constant", type=positive_float, default=0.1, help="of the thermostat, ps; of langevin 1 / friction"
    )
    dynamics.add_argument("--seed", type=natural_int, default=0, help="seed of velocities and noise")
    results = parser.add_argument_group("results")
    results.add_argument("--interval", type=positive_int, default=10, help="steps between frames, and lines of the log")
    results.add_argument("--output", type=Path, default=None, metavar="FILE", help="trajectory, in any format that ASE writes")
    results.add_argument("--log", type=Path, default=None, metavar="FILE", help="CSV of energies and temperatures")
    results.add_argument("--plot", type=Path, default=None, metavar="FILE", help="PNG of the conserved energy and the temperature")
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, simulate, and return the exit status."""
    return run("se3_fast.simulation.md", build_parser().parse_args(arguments))
