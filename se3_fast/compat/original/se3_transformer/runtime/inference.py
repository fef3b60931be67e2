"""Evaluation of a model, and the command that does it: ``python -m se3_transformer.runtime.inference --help``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from se3_fast import data
from se3_fast.inference import build_parser as build_inference_parser
from se3_fast.inference import infer
from se3_fast.training.checkpoint import load_weights, read_checkpoint
from se3_fast.training.distributed import World, open_world
from se3_fast.training.errors import CommandError, run_command, user_errors
from se3_fast.training.model_config import build_model, match_parameterisation, model_config_from_arguments
from se3_fast.training.precision import Precision

from .arguments import build_parser
from .callbacks import BaseCallback, PerformanceCallback
from .loggers import DLLogger, Logger, LoggerCollection, WandbLogger
from .utils import get_local_rank, seed_everything, to_device

__all__ = ["evaluate", "main"]


def evaluate(model: nn.Module, dataloader: DataLoader[Any], callbacks: Sequence[BaseCallback], args: Any) -> None:
    """Predict all batches, in evaluation mode and without gradients, and call the callbacks.

    Args:
        model: called with all of a batch but the last, the target.
        dataloader: the batches; they are moved to the model's device.
        callbacks: their ``on_batch_start`` and ``on_validation_step``.
        args: has ``amp`` and ``silent``.
    """
    device = next(model.parameters()).device
    precision = Precision.choose(args.amp, getattr(args, "amp_dtype", "auto"), device)
    is_quiet = args.silent or get_local_rank() != 0
    model.eval()
    with torch.no_grad():
        for batch in tqdm(dataloader, unit="batch", desc="Evaluation", leave=False, disable=is_quiet):
            *inputs, target = to_device(batch, device)
            for callback in callbacks:
                callback.on_batch_start()
            with precision.autocast():
                prediction = model(*inputs)
            for callback in callbacks:
                callback.on_validation_step(inputs, target, prediction)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, evaluate or measure, and return the exit status.

    With ``--benchmark`` the throughput on the training set is measured, ``--epochs`` passes of which the first warms up, with the
    model of ``--load_ckpt_path`` or an untrained one. Otherwise the checkpoint is evaluated on the test set by
    ``se3_fast.inference``; the predictions lie in the log folder unless ``--output`` says otherwise.
    """
    parser = build_parser("inference")
    parser.add_argument("--output", default=argparse.SUPPRESS, help="table of predictions to write (default: in the log folder)")
    parser.set_defaults(task=None, dataset=None)
    parsed = parser.parse_args(arguments)
    parsed.pooling = parsed.pooling or "max"
    logging.basicConfig(level=logging.WARNING if parsed.silent else logging.INFO, format="%(message)s")
    return run_command(lambda: _measure(parsed) if parsed.benchmark else _infer(parsed))


def _infer(arguments: argparse.Namespace) -> None:
    if arguments.load_ckpt_path is None:
        raise CommandError("--load_ckpt_path: expected the checkpoint of a trained model (or --benchmark, without one), got none")
    output = getattr(arguments, "output", arguments.log_dir / "predictions.csv")
    given = build_inference_parser().parse_args(["--load_ckpt_path", str(arguments.load_ckpt_path), "--output", str(output)])
    known = vars(given)
    known |= {name: value for name, value in vars(arguments).items() if name in known and name != "output"}
    infer(given)


def _measure(arguments: argparse.Namespace) -> None:
    with open_world(arguments.device) as world:
        with user_errors():
            model, loader = _prepare(arguments, world)
            loggers: list[Logger] = [DLLogger(arguments.log_dir, arguments.dllogger_name)]
            if arguments.wandb:
                loggers.append(WandbLogger(f"QM9({arguments.task or 'homo'})", arguments.log_dir, project="se3_fast"))
        warm_up = 1 if arguments.epochs > 1 else 0
        logger = LoggerCollection(loggers)
        performance = PerformanceCallback(logger, arguments.batch_size * world.size, warm_up, mode="inference")
        for _ in range(arguments.epochs):
            evaluate(model, loader, [performance], arguments)
            performance.on_epoch_end()
        performance.on_fit_end()


def _prepare(arguments: argparse.Namespace, world: World) -> tuple[nn.Module, DataLoader[Any]]:
    """The model, of the checkpoint if there is one, and the training set."""
    path = arguments.load_ckpt_path
    checkpoint = read_checkpoint(path) if path else {}
    described = checkpoint.get("data", {})
    seed_everything(arguments.seed or 0)
    module = data.QM9DataModule(
        data_dir=arguments.data_dir,
        task=arguments.task or described.get("task", "homo"),
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        num_degrees=arguments.num_degrees,
        precompute_bases=arguments.precompute_bases,
        dataset=arguments.dataset or described.get("dataset", "qm9"),
        device=world.device,
    )
    config = checkpoint.get("model_config")
    if config is None:
        config = model_config_from_arguments(arguments, module.NODE_FEATURE_DIM, module.EDGE_FEATURE_DIM)
        config = match_parameterisation(config, checkpoint["state_dict"]) if checkpoint else config
    model = build_model(config)
    if checkpoint:
        load_weights(model, checkpoint["state_dict"], path)
    return model.to(world.device), module.train_dataloader()


if __name__ == "__main__":
    sys.exit(main())
