"""Options of `se3-fast pack-frames`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.training.arguments import FILES_OF_FRAMES, add_label_names, positive_float


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast pack-frames",
        description="Write frames into a folder, which --data of train-forces takes. Training maps it instead of loading it.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("data", type=Path, nargs="+", metavar="FILE", help=FILES_OF_FRAMES)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    add_label_names(parser)
    parser.add_argument(
        "--cutoff",
        type=positive_float,
        default=5.0,
        help="edges of every frame are counted for it, Angstrom; training may have another",
    )
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, write the folder, and return the exit status."""
    return run("se3_fast.data.pack_frames", build_parser().parse_args(arguments))
