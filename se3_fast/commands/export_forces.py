"""Options of `se3-fast export-forces`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.commands.force_field_arguments import add_export_arguments


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast export-forces",
        description="Compile a force field for the CPU to a package of AOTInductor: energies of atoms, forces and virial from "
        "relative positions, sources and destinations of edges, and atomic numbers. Needs a C++ compiler; takes minutes.",
        formatter_class=HelpFormatter,
    )
    add_export_arguments(parser, "package to write, .pt2")
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, export, and return the exit status."""
    return run("se3_fast.simulation.export", build_parser().parse_args(arguments))
