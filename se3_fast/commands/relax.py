"""Options of `se3-fast relax`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.commands.force_field_arguments import add_force_field_arguments
from se3_fast.training.arguments import add_flag, positive_float, positive_int

OPTIMIZERS = ("bfgs", "lbfgs", "fire")


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


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, relax, and return the exit status."""
    return run("se3_fast.simulation.relax", build_parser().parse_args(arguments))
