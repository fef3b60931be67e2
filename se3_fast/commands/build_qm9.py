"""Options of `se3-fast data build-qm9`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import quiet_when_unread, run
from se3_fast.data.download import GDB9_URL


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast data build-qm9",
        description="Build qm9_edge.npz from gdb9.sdf and its csv.",
        epilog=f"Both files are in {GDB9_URL}",
    )
    parser.add_argument("--sdf", type=Path, required=True, help="gdb9.sdf")
    parser.add_argument("--csv", type=Path, required=True, help="gdb9.sdf.csv")
    parser.add_argument("--output", type=Path, required=True, help="File to write, normally qm9_edge.npz")
    parser.add_argument("--exclude", type=Path, help="List of molecules to leave out, normally uncharacterized.txt")
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, build the file, and return the exit status."""
    return run("se3_fast.data.build_qm9", build_parser().parse_args(arguments))
