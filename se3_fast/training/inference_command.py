"""What `python -m se3_fast.inference` runs."""

from __future__ import annotations

import argparse
import csv
import io
import logging
import os
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import Subset

from se3_fast.data import QM9DataModule
from se3_fast.data.arguments import DATASETS
from se3_fast.data.molecules import read_gdb_index
from se3_fast.data.objective import REGRESSION, Objective, Property, decimals_of
from se3_fast.data.resident import ResidentLoader
from se3_fast.files import atomic_file, check_writable
from se3_fast.model import SE3TransformerPooled
from se3_fast.training.arguments import check_report
from se3_fast.training.checkpoint import check_same, load_weights, read_checkpoint
from se3_fast.training.distributed import World, open_world
from se3_fast.training.errors import run_command, user_errors
from se3_fast.training.evaluation import (
    DirectPredictions,
    Evaluation,
    Predictions,
    RecordedPredictions,
    TargetScale,
    evaluate,
)
from se3_fast.training.kinds import check_written_by
from se3_fast.training.loggers import JsonLinesLogger, log_path
from se3_fast.training.model_config import (
    build_model,
    match_parameterisation,
    model_config_from_arguments,
    model_of_checkpoint,
)
from se3_fast.training.plots import plot_parity
from se3_fast.training.precision import Precision
from se3_fast.training.recorded import choose_recorder
from se3_fast.training.signals import StopSignal
from se3_fast.training.uncertainty import uncertainties_of_entry

_FROM_DATA = {"fiber_in": {0: QM9DataModule.NODE_FEATURE_DIM}, "fiber_edge": {0: QM9DataModule.EDGE_FEATURE_DIM}, "output_dim": 1}
_PERCENTILES = (50, 90, 95, 99)
_WARM_UP_PASSES = 2  # what is recorded runs once before it is


@dataclass(frozen=True)
class Inference:
    """What the command works with.

    Attributes:
        model: The trained model, on the device of `world`.
        data_module: The data that it is evaluated on.
        model_scale: What its outputs are standardised with.
        checkpoint: As read.
        predictions: Its predictions on the test set.
        world: Where it runs.
    """

    model: SE3TransformerPooled
    data_module: QM9DataModule
    model_scale: TargetScale
    checkpoint: dict[str, Any]
    predictions: Predictions
    world: World

    def evaluate(self) -> Evaluation:
        """One pass over the test set."""
        scale = TargetScale.of(self.data_module)
        return evaluate(self.model, self.predictions, scale, self.world, self.model_scale, is_timed=True)


def prepare(arguments: argparse.Namespace, world: World) -> Inference:
    """Model and data that the command line asks for.

    Raises:
        ValueError: The checkpoint, the data or an option is at fault.
        OSError: A file cannot be read or written.
    """
    path = arguments.load_ckpt_path
    checkpoint = read_checkpoint(path)
    check_written_by("se3_fast.train", checkpoint, path)
    data = checkpoint.get("data", {})
    task, dataset = (_from_checkpoint(arguments, name, checkpoint) for name in ("task", "dataset"))
    check_same(path, "task", checkpoint.get("data"), {"task": task})
    if dataset not in DATASETS:
        raise ValueError(f"{path}: trained on {dataset}; se3-fast predict with --target and --report compares with a file")
    precision = Precision.choose(arguments.amp, arguments.amp_dtype, world.device)
    config = checkpoint.get("model_config")
    if config is None:
        config = model_config_from_arguments(arguments, QM9DataModule.NODE_FEATURE_DIM, QM9DataModule.EDGE_FEATURE_DIM)
        config = match_parameterisation(config, checkpoint["state_dict"])
        model = build_model(config)
        load_weights(model, checkpoint["state_dict"], path)
    else:
        model = model_of_checkpoint(path, config, checkpoint["state_dict"])
        check_same(path, "model", config, _FROM_DATA)
    for result in _results(arguments):
        check_writable(result)
    if arguments.report is not None:
        check_report(arguments.report)
    data_module = QM9DataModule(
        data_dir=arguments.data_dir,
        task=task,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        num_degrees=config["num_degrees"],
        precompute_bases=arguments.precompute_bases,
        dataset=dataset,
        device=world.device,
    )
    if len(cast(Subset[Any], data_module.ds_test)) == 0:
        raise ValueError(f"{data_module.path}: expected molecules to test on with a known target for {task}, got none")
    scale = TargetScale.of(data_module)
    model_scale = TargetScale(data.get("mean", scale.mean), data.get("std", scale.std), scale.unit)
    model, loader = model.to(world.device), data_module.test_dataloader()
    recorder = choose_recorder(arguments.cuda_graphs, arguments.benchmark, world.device, loader)
    direct = DirectPredictions(model, loader, precision, world.device)
    predictions = direct if recorder is None else RecordedPredictions(direct, cast(ResidentLoader, loader), recorder)
    return Inference(model, data_module, model_scale, checkpoint, predictions, world)


def performance(evaluation: Evaluation) -> dict[str, float]:
    """Throughput in molecules per millisecond (loading included) and latencies of a batch in milliseconds."""
    milliseconds = np.asarray(evaluation.latencies) * 1000
    return {
        "throughput_inference": len(evaluation.targets) / (evaluation.seconds * 1000),
        "total_time_inference": evaluation.seconds,
        "latency_mean": float(milliseconds.mean()),
        **{f"latency_p{percent}": float(np.percentile(milliseconds, percent)) for percent in _PERCENTILES},
    }


def write_predictions(path: Path, evaluation: Evaluation, data_module: QM9DataModule) -> None:
    """Write a CSV table of the test molecules whose target is known, whole or not at all.

    Columns: `molecule` (its number in the data file), `gdb_index` where the file has one, then target and
    prediction in the task's unit.

    Raises:
        OSError: The file cannot be written.
        DataError: The molecules' numbers in the data file cannot be read.
    """
    test_set = cast(Subset[Any], data_module.ds_test)
    numbers = np.asarray(test_set.indices)
    columns = {"molecule": numbers}
    gdb_index = read_gdb_index(data_module.path, len(cast(Sized, test_set.dataset)))
    if gdb_index is not None:
        columns["gdb_index"] = gdb_index[numbers]
    name = f"{data_module.task} ({data_module.unit})"
    decimals = decimals_of(data_module.targets_std)
    columns[f"target {name}"] = evaluation.targets.round(decimals)
    columns[f"prediction {name}"] = evaluation.predictions.round(decimals)
    with atomic_file(path) as file:
        table = csv.writer(text := io.TextIOWrapper(file, encoding="utf-8", newline=""))
        table.writerow(columns)
        table.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))
        text.flush()
        text.detach()


def infer(arguments: argparse.Namespace) -> None:
    """Run the command with parsed arguments.

    Raises:
        CommandError: The input is at fault.
        Stopped: SIGINT or SIGTERM has ended it.
    """
    logging.basicConfig(level=logging.WARNING if arguments.silent else arguments.log_level.upper(), format="%(message)s")
    with user_errors():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("inference runs in one process: expected no torchrun, got WORLD_SIZE above 1")
    with StopSignal().watched(), open_world(arguments.device) as world:
        with user_errors():
            inference = prepare(arguments, world)
        for _ in range(_WARM_UP_PASSES if arguments.benchmark else 0):
            inference.evaluate()
        evaluation = inference.evaluate()
        report_inference(arguments, inference.data_module, evaluation)
        if arguments.report is not None:
            with user_errors():
                _write_report(arguments, inference)


def _write_report(arguments: argparse.Namespace, inference: Inference) -> None:
    # Not at the top: it needs RDKit.
    from se3_fast.report.predictions import Subject
    from se3_fast.report.test_set import write_test_report

    model, checkpoint, scale = inference.model, inference.checkpoint, inference.model_scale
    objective = Objective(REGRESSION, (Property(inference.data_module.task, scale.unit, scale.mean, scale.std),))
    entry = checkpoint.get("uncertainty")
    width = checkpoint.get("model_config", {}).get("fiber_out", {}).get(0, 0)
    uncertainties = [None] if entry is None else uncertainties_of_entry(entry, 1, width)
    facts = [("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}")]
    subject = Subject(str(arguments.load_ckpt_path), objective, facts, checkpoint.get("history", ()), of_which="test molecules")
    write_test_report(arguments.report, model, inference.data_module, subject, uncertainties, inference.world.device)


def report_inference(arguments: argparse.Namespace, data_module: QM9DataModule, evaluation: Evaluation) -> None:
    """Print and log the figures; write the table and the parity plot."""
    task, unit = data_module.task, data_module.unit
    figures = performance(evaluation)
    print(f"test MAE of {task}: {evaluation.mae:.4g} {unit} ({len(evaluation.targets)} molecules)")
    if not arguments.silent:
        print(f"throughput: {figures['throughput_inference']:.4g} molecules/ms")
        latencies = ", ".join(f"{percent} %: {figures[f'latency_p{percent}']:.4g}" for percent in _PERCENTILES)
        print(f"latency of a batch in ms, percentiles: {latencies}")
    with user_errors():
        table, plot, log = _results(arguments)
        write_predictions(table, evaluation, data_module)
        plot_parity(evaluation.predictions, evaluation.targets, task, unit, plot)
        logger = JsonLinesLogger(log)
        logger.log_metrics({"test_mae": evaluation.mae, **figures})
        logger.close()


def _results(arguments: argparse.Namespace) -> tuple[Path, Path, Path]:
    """The files that are written: table, plot and log.

    Raises:
        ValueError: The log is not in the log folder.
    """
    plot = arguments.log_dir / "parity_inference.png"
    table = arguments.output or arguments.log_dir / "predictions.csv"
    return table, plot, log_path(arguments.log_dir, arguments.dllogger_name)


def _from_checkpoint(arguments: argparse.Namespace, name: str, checkpoint: dict[str, Any]) -> str:
    """What the command line says, else what the checkpoint says, else the published default."""
    published = {"task": "homo", "dataset": "qm9"}
    return getattr(arguments, name) or checkpoint.get("data", {}).get(name, published[name])


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return run_command(lambda: infer(arguments))
