"""Options of `se3-fast evaluate-forces`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.commands.force_field_arguments import add_repulsion
from se3_fast.training.arguments import FILES_OF_FRAMES, add_label_names, positive_int


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast evaluate-forces",
        description="Compare a force field with the energies, forces, stress and dipoles that frames have.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "data",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=FILES_OF_FRAMES,
    )
    parser.add_argument("--load_ckpt_path", type=Path, required=True, metavar="FILE", help="checkpoint of se3-fast train-forces")
    add_repulsion(parser)
    add_label_names(parser)
    parser.add_argument("--batch_size", type=positive_int, default=50, help="frames that are computed together")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="CSV to write, a line for each frame")
    parser.add_argument("--plot", type=Path, default=None, metavar="FILE", help="PNG to write, predicted against known forces")
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    return run("se3_fast.simulation.evaluate", build_parser().parse_args(arguments))
