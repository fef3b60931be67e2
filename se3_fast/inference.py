"""Evaluate a trained model on the test set: `python -m se3_fast.inference --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from se3_fast.command_line import HelpFormatter, quiet_when_unread, run
from se3_fast.data.arguments import add_qm9_arguments
from se3_fast.lazy import lazy_names
from se3_fast.training.arguments import (
    add_cuda_graphs,
    add_flag,
    add_log_level,
    add_model_arguments,
    add_report,
    add_run_arguments,
)

if TYPE_CHECKING:
    from se3_fast.training.inference_command import infer, prepare

__all__ = ["build_parser", "infer", "main", "prepare"]

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(["infer", "prepare"], "se3_fast.training.inference_command"))

_BATCH_SIZE = 240


def build_parser() -> argparse.ArgumentParser:
    """Parser of all options of the command."""
    parser = argparse.ArgumentParser(
        prog="se3-fast evaluate",
        description="Evaluate a trained SE(3)-Transformer on the test set and write its predictions. Model, task and "
        "data set are those of the checkpoint; the model options are for published checkpoints, which name none.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--load_ckpt_path", type=Path, required=True, metavar="FILE", help="checkpoint of the trained model")
    add_qm9_arguments(parser)
    parser.set_defaults(task=None, dataset=None)
    add_run_arguments(parser, batch_size=_BATCH_SIZE)
    add_model_arguments(parser)
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output",
        type=Path,
        default=None,
        metavar="FILE",
        help="table of predictions to write (default: predictions.csv in the log folder)",
    )
    results.add_argument(
        "--log_dir", type=Path, default=Path("./results/evaluation"), metavar="FOLDER", help="folder of the log and the plot"
    )
    results.add_argument(
        "--dllogger_name", default="dllogger_results.json", metavar="NAME", help="JSON-lines log in the log folder"
    )
    add_flag(results, "benchmark", "passes to warm up before the measured one")
    add_cuda_graphs(results, "record the forward pass on the GPU and replay it (default: with --benchmark, where it is possible)")
    add_flag(results, "silent", "print the error alone")
    add_log_level(results, "info")
    add_report(parser)
    return parser


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate, and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    return run("se3_fast.training.inference_command", parsed)


if __name__ == "__main__":
    sys.exit(main())
