"""Training throughput."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from .trainer import Trainer


@dataclass(frozen=True)
class Throughput:
    """Training speed over the measured epochs.

    Attributes:
        molecules: Molecules trained on, by all processes.
        milliseconds: Time they took, data loading included.
    """

    molecules: int
    milliseconds: float

    @property
    def molecules_per_millisecond(self) -> float:
        """The published measure."""
        return self.molecules / self.milliseconds


def benchmark_training(trainer: Trainer) -> Throughput:
    """Train for all epochs without evaluations and checkpoints; the first of several epochs only warms up.

    Where steps are recorded, the second of more warms up too: what is recorded runs once before it is. A run of one epoch, or one
    limited by `max_steps`, is measured from its start.

    Raises:
        TrainingError: The loss is not finite, or there is nothing to train on.
    """
    loader = trainer.data_module.train_dataloader()
    if trainer.options.epochs > 1 and trainer.options.max_steps is None:
        trainer.train_epoch(loader)
        if trainer.is_recorded and trainer.options.epochs > 2:
            trainer.train_epoch(loader)
    _synchronise(trainer.world.device)
    molecules_before, start = trainer.molecules_seen, time.perf_counter()
    while not trainer.finished:
        trainer.train_epoch(loader)
    _synchronise(trainer.world.device)
    milliseconds = (time.perf_counter() - start) * 1000
    molecules = sum(trainer.world.gather(trainer.molecules_seen - molecules_before))
    throughput = Throughput(molecules, milliseconds)
    trainer.loggers.log_metrics(
        {
            "throughput_train": throughput.molecules_per_millisecond,
            "total_time_train": milliseconds / 1000,
        }
    )
    return throughput


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
