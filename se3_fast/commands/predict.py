"""Options of `se3-fast predict`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.predict.options import BATCH_SIZE, SUFFIXES, WRITTEN_SUFFIXES
from se3_fast.pretrained import model_names
from se3_fast.training.arguments import add_log_level, natural_int, positive_int


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast predict",
        description="Predict properties of molecules with a trained model. Every molecule has a row: its numbers, and in the "
        "column `outside` how it differs from the training molecules; or in the column `error` why it has none.",
        epilog="Exit status: 0, all molecules have a number; 3, some have none; 2, the input as a whole is at fault.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("input", nargs="*", type=Path, metavar="FILE", help=f"molecules: {', '.join(SUFFIXES)}")
    parser.add_argument("--smiles", nargs="+", default=None, metavar="SMILES", help="molecules on the command line")
    trained = parser.add_mutually_exclusive_group(required=True)
    trained.add_argument("--model", default=None, metavar="NAME", help=f"a trained model: {', '.join(model_names())}")
    trained.add_argument("--load_ckpt_path", type=Path, default=None, metavar="FILE", help="checkpoint of a trained model")
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FILE", help=f"{', '.join(WRITTEN_SUFFIXES)} (default: CSV on standard output)"
    )
    parser.add_argument("--smiles_column", default="smiles", metavar="NAME", help="column of the SMILES in CSV files")
    parser.add_argument(
        "--target",
        nargs="+",
        default=None,
        metavar="NAME",
        help="columns of CSV files, or properties of SDF, with known values, one for each property of the model, for the report",
    )
    parser.add_argument(
        "--report",
        type=Path,
        default=None,
        metavar="FILE",
        help="page to write: figures, plots, drawings, table, view in space",
    )
    parser.add_argument(
        "--conformers",
        type=positive_int,
        default=1,
        help="conformers of each molecule that has no positions in space; of several, mean and spread are written",
    )
    parser.add_argument("--seed", type=natural_int, default=0, help="seed of the conformers")
    parser.add_argument("--batch_size", type=positive_int, default=BATCH_SIZE, help="molecules that are computed together")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    add_log_level(parser, "warning")
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, predict, and return the exit status."""
    return run("se3_fast.predict.command", build_parser().parse_args(arguments))
