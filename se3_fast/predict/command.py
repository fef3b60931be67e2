"""The command `python -m se3_fast.predict`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from rdkit import rdBase
from tqdm import tqdm

from se3_fast.commands.predict import main
from se3_fast.data.objective import Objective
from se3_fast.files import check_apart, check_writable
from se3_fast.pretrained import find_model
from se3_fast.report.predictions import PredictionReport, Subject
from se3_fast.training.distributed import open_world
from se3_fast.training.errors import run_command, user_errors
from se3_fast.training.signals import StopSignal

from .options import SUFFIXES
from .predictor import Predictor
from .readers import check_columns, item_names, read_file, read_smiles
from .records import Record
from .writers import Layout, Write, check_output, csv_writer, open_writer

__all__ = ["main", "predict", "run"]

SOME_NOT_SERVED = 3
"""Exit status of a run that went through, with molecules that have no number."""

_log = logging.getLogger(__name__)


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
        read = [("the molecules", path) for path in arguments.input]
        check_apart([("the predictions", arguments.output), ("the report", arguments.report)], read)
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
    if arguments.output is None:
        return csv_writer(sys.stdout.buffer, layout)
    if arguments.output.suffix.lower() == ".sdf":
        layout = replace(layout, kept=frozenset().union(*map(item_names, arguments.input)))
    renamed = layout.renamed()
    if renamed:
        _log.warning(
            "warning: molecules that are read have properties %s, which are kept; those of the predictions are called %s",
            ", ".join(renamed),
            ", ".join(renamed.values()),
        )
    return open_writer(arguments.output, layout)


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    unserved = []
    status = run_command(lambda: unserved.append(predict(arguments)))
    return SOME_NOT_SERVED if status == 0 and unserved[0] else status
