"""The command `python -m se3_fast.predict`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from rdkit import rdBase
from tqdm import tqdm

from se3_fast.command_line import HelpFormatter
from se3_fast.data.objective import Objective
from se3_fast.files import check_writable
from se3_fast.pretrained import find_model, model_names
from se3_fast.report.predictions import PredictionReport, Subject
from se3_fast.training.arguments import add_log_level, natural_int, positive_int
from se3_fast.training.distributed import open_world
from se3_fast.training.errors import run_command, user_errors
from se3_fast.training.signals import StopSignal

from .predictor import BATCH_SIZE, Predictor
from .readers import SUFFIXES, check_columns, read_file, read_smiles
from .records import Record
from .writers import WRITERS, Layout, Write, check_output, csv_writer, open_writer

SOME_NOT_SERVED = 3
"""Exit status of a run that went through, with molecules that have no number."""

_log = logging.getLogger(__name__)


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
        "--output", type=Path, default=None, metavar="FILE", help=f"{', '.join(WRITERS)} (default: CSV on standard output)"
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


def predict(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns how many molecules have no number.

    Raises:
        CommandError: The input as a whole is at fault.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    logging.basicConfig(level=arguments.log_level.upper(), format="%(message)s")
    rdBase.DisableLog("rdApp.*")
    with StopSignal().watched(), open_world(arguments.device) as world, user_errors():
        _check_arguments(arguments)
        path = find_model(arguments.model) if arguments.model is not None else arguments.load_ckpt_path
        predictor = Predictor.from_checkpoint(path, world.device)
        if predictor.domain is None:
            _log.warning(
                "warning: the checkpoint does not say what its training data span; sizes and kinds of atoms are not compared"
            )
        if not all(predictor.uncertainties):
            _log.warning(
                "warning: the checkpoint has no uncertainty of its predictions, as training had too few molecules or was not "
                "finished; that column is empty, and features far from those of training are not told"
            )
        records = _records(arguments, _known_columns(arguments, predictor.objective))
        predictions = predictor.predict_records(records, arguments.conformers, arguments.seed, arguments.batch_size)
        report = _report(arguments, predictor) if arguments.report is not None else None
        served = unserved = 0
        with _writer(arguments, predictor) as write:
            for prediction in tqdm(predictions, unit="molecule", disable=None, leave=False):
                write(prediction)
                if report is not None:
                    report.add(prediction)
                served += not prediction.error
                unserved += bool(prediction.error)
        if report is not None:
            report.write(arguments.report)
    if unserved:
        print(f"{unserved} of {served + unserved} molecules have no number: see column error", file=sys.stderr)
    return unserved


def _check_arguments(arguments: argparse.Namespace) -> None:
    if not arguments.input and not arguments.smiles:
        raise ValueError("expected files of molecules, or --smiles")
    if arguments.target is not None and arguments.report is None:
        target = " ".join(arguments.target)
        raise ValueError(f"--target {target}: expected --report as well, the page that compares with known values")
    for path in arguments.input:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path}: expected a file whose name ends in {', '.join(SUFFIXES)}")
        with open(path, "rb"):
            pass
        check_columns(path, arguments.smiles_column, arguments.target or ())
    if arguments.output is not None:
        check_output(arguments.output)
        if any(arguments.output.exists() and path.samefile(arguments.output) for path in arguments.input):
            raise ValueError(f"{arguments.output}: expected an output that is none of the inputs")
        check_writable(arguments.output)
    if arguments.report is not None:
        check_writable(arguments.report)


def _known_columns(arguments: argparse.Namespace, objective: Objective) -> dict[str, str]:
    """Where known values stand, by the names of the properties."""
    if arguments.target is None:
        return {}
    if len(arguments.target) != len(objective.properties):
        raise ValueError(
            f"--target {' '.join(arguments.target)}: expected one for each of the model's properties, {', '.join(objective.names)}"
        )
    return dict(zip(objective.names, arguments.target, strict=True))


def _records(arguments: argparse.Namespace, known_columns: Mapping[str, str]) -> Iterator[Record]:
    """The records of all inputs, with known values under the names of the properties."""
    yield from read_smiles(arguments.smiles or ())
    for path in arguments.input:
        for record in read_file(path, arguments.smiles_column, list(known_columns.values())):
            yield replace(record, columns={name: record.columns.get(column, "") for name, column in known_columns.items()})


def _report(arguments: argparse.Namespace, predictor: Predictor) -> PredictionReport:
    model = arguments.model or str(arguments.load_ckpt_path)
    return PredictionReport(Subject(model, predictor.objective))


def _writer(arguments: argparse.Namespace, predictor: Predictor) -> AbstractContextManager[Write]:
    layout = Layout.of(predictor.objective, has_spread=arguments.conformers > 1)
    return csv_writer(sys.stdout.buffer, layout) if arguments.output is None else open_writer(arguments.output, layout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, predict, and return the exit status."""
    parsed = build_parser().parse_args(arguments)
    unserved = []
    status = run_command(lambda: unserved.append(predict(parsed)))
    return SOME_NOT_SERVED if status == 0 and unserved[0] else status
