"""Train an SE(3)-Transformer on a molecular property: `python -m se3_fast.train --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.data.arguments import SPLITS, add_qm9_arguments
from se3_fast.lazy import lazy_names
from se3_fast.training.arguments import (
    add_flag,
    add_model_arguments,
    add_report,
    add_run_arguments,
    add_starting_model,
    add_training_arguments,
)
from se3_fast.training.run_config import add_config, parse_with_config

if TYPE_CHECKING:
    from se3_fast.training.property_command import prepare, train

__all__ = ["build_parser", "main", "prepare", "train"]

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(["prepare", "train"], "se3_fast.training.property_command"))

_BATCH_SIZE = 240
OF_OWN_MOLECULES = {
    "smiles": "smiles",
    "target": None,
    "unit": None,
    "classification": False,
    "split": "random",
    "split_column": None,
}
"""Options that say something about `--data` alone, with their defaults."""


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast train",
        description="Train an SE(3)-Transformer on a molecular property.",
        formatter_class=HelpFormatter,
    )
    add_qm9_arguments(parser)
    add_run_arguments(parser, batch_size=_BATCH_SIZE)
    add_model_arguments(parser)
    add_training_arguments(parser)
    add_starting_model(parser)
    add_own_molecules(parser)
    add_report(parser)
    add_config(parser)
    return parser


def add_own_molecules(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is read of a file of one's own."""
    group = parser.add_argument_group("molecules of your own")
    group.add_argument("--data", type=Path, default=None, metavar="FILE", help="CSV with SMILES, or SDF, in place of --dataset")
    group.add_argument("--smiles", "--smiles_column", metavar="COLUMN", help="column of the SMILES")
    group.add_argument(
        "--target", nargs="+", metavar="NAME", help="column, or property of the SDF, to learn; several are learned at once"
    )
    group.add_argument("--unit", nargs="+", help="unit of each target (default: none)")
    add_flag(group, "classification", "targets are 0 or 1, whose probability is learned")
    group.add_argument("--split", choices=SPLITS, help="how molecules to validate and to test on are chosen")
    group.add_argument(
        "--split_column", metavar="NAME", help="column, or property, that says train, validation or test, in place of --split"
    )
    parser.set_defaults(**OF_OWN_MOLECULES)


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, and return the exit status."""
    parsed = parse_with_config(build_parser(), sys.argv[1:] if arguments is None else arguments)
    return run("se3_fast.training.property_command", parsed)


if __name__ == "__main__":
    sys.exit(main())
