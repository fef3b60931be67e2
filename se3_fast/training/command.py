"""What the training commands do alike, whatever they train."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from se3_fast.data.frames import FrameError
from se3_fast.error_text import one_line

from .benchmark import benchmark_training
from .distributed import World, open_world
from .errors import Stopped, TrainingError, user_errors
from .progress import block, run_facts
from .signals import StopSignal
from .trainer import Trainer, TrainingResult

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def train_command(
    arguments: argparse.Namespace,
    prepare: Callable[[argparse.Namespace, World], AnyTrainer],
    report: Callable[[AnyTrainer, TrainingResult], None],
) -> None:
    """Set a run up, train or measure the throughput, report.

    Args:
        arguments: The parsed command line: `device`, `silent`, `log_level`, `benchmark`, and what `prepare` reads.
        prepare: Makes the trainer.
        report: Says what a finished run has reached.

    Raises:
        CommandError: The input is at fault.
        TrainingError: The run cannot go on, or its last checkpoint could not be written.
        Stopped: SIGINT or SIGTERM came; before the first step at once, then after a step.
    """
    stop, stopped = StopSignal(), None
    with stop.watched(), open_world(arguments.device) as world:
        quiet = arguments.silent or not world.is_main
        logging.basicConfig(level=logging.WARNING if quiet else arguments.log_level.upper(), format="%(message)s")
        with user_errors():
            trainer = prepare(arguments, world)
            facts = run_facts(trainer)
        if not quiet:
            print(block(facts), flush=True)
        trainer.stop_on(stop)
        try:
            _run(trainer, arguments.benchmark, report)
        except Stopped as error:
            stopped = error
        trainer.close()
    if stopped is not None:
        raise stopped
    if trainer.lost_checkpoint is not None:
        raise TrainingError(f"the last checkpoint could not be written ({trainer.lost_checkpoint})")


def _run(trainer: AnyTrainer, is_benchmark: bool, report: Callable[[AnyTrainer, TrainingResult], None]) -> None:
    try:
        if not is_benchmark:
            report(trainer, trainer.fit())
            return
        throughput = benchmark_training(trainer)
    except FrameError as error:  # of a frame that no one has looked at before its first batch
        raise TrainingError(one_line(error)) from error
    if trainer.world.is_main:
        print(f"training throughput: {throughput.molecules_per_millisecond:.4g} molecules/ms")


def common_seed(given: int | None, checkpoint: dict[str, Any], world: World) -> int:
    """The seed given, else that of the run which is resumed, else one drawn by the main process."""
    if given is not None:
        return given
    drawn = int(torch.seed() % 2**31)
    return int(checkpoint.get("seed", world.gather(drawn)[0]))
