"""What the training commands do alike, whatever they train."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from .benchmark import benchmark_training
from .distributed import World, open_world
from .errors import user_errors
from .trainer import Trainer, TrainingResult

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def train_command(
    arguments: argparse.Namespace,
    prepare: Callable[[argparse.Namespace, World], AnyTrainer],
    report: Callable[[AnyTrainer, TrainingResult], None],
) -> None:
    """Set a run up, train or measure the throughput, report.

    Args:
        arguments: The parsed command line: `device`, `silent`, `benchmark`, and what `prepare` reads.
        prepare: Makes the trainer.
        report: Says what a finished run has reached.

    Raises:
        CommandError: The input is at fault.
        TrainingError: The loss is not finite.
    """
    with open_world(arguments.device) as world:
        quiet = arguments.silent or not world.is_main
        logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s")
        with user_errors():
            trainer = prepare(arguments, world)
        if arguments.benchmark:
            throughput = benchmark_training(trainer)
            if world.is_main:
                print(f"training throughput: {throughput.molecules_per_millisecond:.4g} molecules/ms")
        else:
            report(trainer, trainer.fit())
        trainer.close()


def common_seed(given: int | None, checkpoint: dict[str, Any], world: World) -> int:
    """The seed given, else that of the run which is resumed, else one drawn by the main process."""
    if given is not None:
        return given
    drawn = int(torch.seed() % 2**31)
    return int(checkpoint.get("seed", world.gather(drawn)[0]))
