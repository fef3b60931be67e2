"""Where a run's figures go: a JSON-lines file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from .distributed import World
from .options import TrainingOptions


class MetricLogger(Protocol):
    """Takes figures; `step` is the number of epochs done, None for figures of the whole run."""

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Record what the run was told."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record figures."""

    def close(self) -> None:
        """Write what is still held back."""


class JsonLinesLogger:
    """A line `DLLL {...}` for every record, the shape of DLLogger's stream.

    Args:
        path: File that lines are appended to.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (open until close())
        self._start = time.monotonic()

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Write a line of step PARAMETER."""
        self._write("PARAMETER", dict(parameters))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a line of step [epochs], or [] for the whole run."""
        self._write([] if step is None else [step], dict(metrics))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, step: list[int] | str, data: dict[str, Any]) -> None:
        now = datetime.now()
        record = {
            "timestamp": str(now.timestamp()),
            "datetime": str(now),
            "elapsedtime": str(time.monotonic() - self._start),
            "type": "LOG",
            "step": step,
            "data": data,
        }
        self._file.write(f"DLLL {json.dumps(record, default=str)}\n")


class TensorBoardLogger:
    """TensorBoard event files.

    Args:
        folder: Folder of the event files.
        first_step: Figures that an earlier run left in the folder are dropped from this step on.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Write the parameters as a text."""
        self._writer.add_text("parameters", "\n".join(f"    {name}: {value}" for name, value in parameters.items()))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write every figure as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbLogger:
    """Weights & Biases.

    Args:
        folder: Folder of its local files.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise ImportError("--wandb needs the package wandb: pip install 'se3_fast[logging]'") from None
        self._run = wandb.init(project="se3_fast", dir=str(folder))

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Record the run's configuration."""
        self._run.config.update({name: str(value) for name, value in parameters.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record figures."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class LoggerGroup:
    """Passes everything on to several loggers.

    Args:
        loggers: The loggers; with none, nothing is recorded.
    """

    def __init__(self, loggers: list[MetricLogger]) -> None:
        self._loggers = loggers

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Record what the run was told."""
        for logger in self._loggers:
            logger.log_parameters(parameters)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record figures."""
        for logger in self._loggers:
            logger.log_metrics(metrics, step)

    def close(self) -> None:
        """Close all of them."""
        for logger in self._loggers:
            logger.close()


def open_loggers(options: TrainingOptions, world: World, first_step: int) -> LoggerGroup:
    """Loggers of a run: all of them on the main process, none on the others.

    Raises:
        ImportError: `options.wandb` is set and wandb is not installed.
        OSError: The log folder cannot be written.
    """
    if not world.is_main:
        return LoggerGroup([])
    options.log_dir.mkdir(parents=True, exist_ok=True)
    loggers: list[MetricLogger] = [
        JsonLinesLogger(options.log_dir / options.dllogger_name),
        TensorBoardLogger(options.log_dir, first_step),
    ]
    if options.wandb:
        loggers.append(WandbLogger(options.log_dir))
    return LoggerGroup(loggers)
