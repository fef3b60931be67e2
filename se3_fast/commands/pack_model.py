"""Options of `se3-fast models pack`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import quiet_when_unread, run


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast models pack",
        description="Make a named model of a checkpoint: weights, uncertainty, card and checksum. SE3_FAST_MODELS names the folder "
        "for se3-fast predict --model NAME.",
    )
    parser.add_argument("source", type=Path, help="checkpoint of se3_fast.train")
    parser.add_argument("--name", required=True, help="of the model")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go; SE3_FAST_MODELS names it for predictions")
    parser.add_argument("--data_dir", type=Path, default=Path("./data"), help="folder of qm9_edge.npz, for models trained on it")
    parser.add_argument("--note", default="", help="sentence for the card")
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, pack, and return the exit status."""
    return run("se3_fast.pretrained.pack", build_parser().parse_args(arguments))
