"""Options of `se3-fast export-lammps`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.commands.force_field_arguments import add_export_arguments


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast export-lammps",
        description="Write a force field as a file for LAMMPS: pair_style mliap unified FILE 0. LAMMPS unpickles it, and imports "
        "se3_fast; its KOKKOS version is needed for force fields of more than one layer.",
        formatter_class=HelpFormatter,
    )
    add_export_arguments(parser, "file to write, .pkl")
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, export, and return the exit status."""
    return run("se3_fast.lammps", build_parser().parse_args(arguments))
