"""What is called in the course of training and evaluation."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from .loggers import Logger
from .metrics import MeanAbsoluteError

__all__ = ["BaseCallback", "LRSchedulerCallback", "PerformanceCallback", "QM9LRSchedulerCallback", "QM9MetricCallback"]

_log = logging.getLogger(__name__)


class BaseCallback(ABC):  # noqa: B024 (a subclass defines what it needs)
    """Does nothing at all moments; a subclass defines those it needs."""

    def on_fit_start(self, optimizer: torch.optim.Optimizer, args: Any) -> None:  # noqa: B027
        """Before the first epoch."""

    def on_fit_end(self) -> None:  # noqa: B027
        """After the last epoch."""

    def on_epoch_end(self) -> None:  # noqa: B027
        """After an epoch of training, or a pass of inference."""

    def on_batch_start(self) -> None:  # noqa: B027
        """When a batch is on the device."""

    def on_validation_step(self, input: Any, target: Tensor, pred: Tensor) -> None:  # noqa: B027
        """After a batch was predicted."""

    def on_validation_end(self, epoch: int | None = None) -> None:  # noqa: B027
        """After all batches were predicted."""

    def on_checkpoint_load(self, checkpoint: dict[str, Any]) -> None:  # noqa: B027
        """When a checkpoint was read, before or after :meth:`on_fit_start`."""

    def on_checkpoint_save(self, checkpoint: dict[str, Any]) -> None:  # noqa: B027
        """Before a checkpoint is written: entries may be added."""


class LRSchedulerCallback(BaseCallback):
    """A learning-rate schedule that goes on by epochs, and lies in checkpoints as ``scheduler_state_dict``."""

    def __init__(self, logger: Logger | None = None) -> None:
        self.logger = logger
        self.scheduler: Any = None
        self._loaded: dict[str, Any] | None = None

    @abstractmethod
    def get_scheduler(self, optimizer: torch.optim.Optimizer, args: Any) -> Any:
        """Make the schedule."""

    def on_fit_start(self, optimizer: torch.optim.Optimizer, args: Any) -> None:
        """Make the schedule; go on where a checkpoint was."""
        self.scheduler = self.get_scheduler(optimizer, args)
        if self._loaded is not None:
            self.scheduler.load_state_dict(self._loaded)

    def on_checkpoint_load(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint was."""
        self._loaded = checkpoint["scheduler_state_dict"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(self._loaded)

    def on_checkpoint_save(self, checkpoint: dict[str, Any]) -> None:
        """Add the schedule's state."""
        checkpoint["scheduler_state_dict"] = self.scheduler.state_dict()

    def on_epoch_end(self) -> None:
        """Log the rate, and take the next one."""
        if self.logger is not None:
            self.logger.log_metrics({"learning rate": self.scheduler.get_last_lr()[0]}, step=self.scheduler.last_epoch)
        self.scheduler.step()


class QM9MetricCallback(BaseCallback):
    """The mean absolute error in the property's unit, and the smallest so far.

    Args:
        logger: takes them.
        targets_std: what the targets were divided by.
        prefix: of their names: ``<prefix> MAE``, ``<prefix> best MAE``.
    """

    def __init__(self, logger: Logger, targets_std: float | Tensor, prefix: str = "") -> None:
        self.mae = MeanAbsoluteError()
        self.logger = logger
        self.targets_std = float(targets_std)
        self.prefix = prefix
        self.best_mae = float("inf")

    def on_validation_step(self, input: Any, target: Tensor, pred: Tensor) -> None:
        """Add a batch."""
        self.mae(pred, target)

    def on_validation_end(self, epoch: int | None = None) -> None:
        """Log the error."""
        mae = self.mae.compute() * self.targets_std
        _log.info("%s MAE: %s", self.prefix, mae)
        self.logger.log_metrics({f"{self.prefix} MAE": mae}, epoch)
        self.best_mae = min(self.best_mae, mae)

    def on_fit_end(self) -> None:
        """Log the smallest error."""
        if self.best_mae != float("inf"):
            self.logger.log_metrics({f"{self.prefix} best MAE": self.best_mae})


class QM9LRSchedulerCallback(LRSchedulerCallback):
    """A cosine from ``args.learning_rate`` to ``args.min_learning_rate`` (None: a tenth of it) over ``epochs`` epochs."""

    def __init__(self, logger: Logger | None, epochs: int) -> None:
        super().__init__(logger)
        self.epochs = epochs

    def get_scheduler(self, optimizer: torch.optim.Optimizer, args: Any) -> CosineAnnealingWarmRestarts:
        """Make the schedule."""
        smallest = args.min_learning_rate if args.min_learning_rate else args.learning_rate / 10
        return CosineAnnealingWarmRestarts(optimizer, self.epochs, eta_min=smallest)


class PerformanceCallback(BaseCallback):
    """Throughput and latencies.

    Args:
        logger: takes them.
        batch_size: samples in a batch, of all processes together.
        warmup_epochs: epochs that are not measured.
        mode: part of their names: ``throughput_<mode>`` (samples per millisecond), ``latency_<mode>_mean``, ``_90``, ``_95``,
            ``_99`` and ``total_time_<mode>`` (milliseconds).
    """

    def __init__(self, logger: Logger, batch_size: int, warmup_epochs: int = 1, mode: str = "train") -> None:
        self.logger = logger
        self.batch_size = batch_size
        self.warmup_epochs = warmup_epochs
        self.mode = mode
        self.epoch = 0
        self.timestamps: list[float] = []

    def on_batch_start(self) -> None:
        """Take the time, when the device has done what came before."""
        if self.epoch >= self.warmup_epochs:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.timestamps.append(time.perf_counter() * 1000)

    def on_epoch_end(self) -> None:
        """Count the epoch."""
        self.epoch += 1

    def on_fit_end(self) -> None:
        """Log the figures, if two batches or more were measured."""
        if len(self.timestamps) < 2:
            _log.info("performance: expected 2 or more batches after %d epochs to warm up, got fewer", self.warmup_epochs)
            return
        figures = self.process_performance_stats()
        for name, value in figures.items():
            _log.info("performance %s: %s", name, value)
        self.logger.log_metrics(figures)
        self.timestamps = []

    def process_performance_stats(self) -> dict[str, float]:
        """The figures from the times taken."""
        times = np.asarray(self.timestamps)
        latencies = np.diff(times)  # from batch to batch
        return {
            f"throughput_{self.mode}": float((self.batch_size / latencies).mean()),
            f"latency_{self.mode}_mean": float(latencies.mean()),
            f"total_time_{self.mode}": float(times[-1] - times[0]),
            **{f"latency_{self.mode}_{level}": float(np.percentile(latencies, level)) for level in (90, 95, 99)},
        }
