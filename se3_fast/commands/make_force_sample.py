"""Options of `se3-fast data make-force-sample`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import quiet_when_unread, run


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast data make-force-sample", description="Make the force-field sample that is shipped with the package."
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "data" / "force_sample.npz")
    parser.add_argument("--num_frames", type=int, default=50, help="frames of every molecule")
    parser.add_argument("--seed", type=int, default=0)
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, make the sample, and return the exit status."""
    return run("se3_fast.data.make_force_sample", build_parser().parse_args(arguments))
