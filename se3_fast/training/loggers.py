"""Where a run's figures go: a JSON-lines file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from se3_fast.error_text import one_line

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
    """A line `DLLL {...}` for every record, the shape of DLLogger's stream. What is not finite is null, as JSON has no NaN.

    Args:
        path: File that lines are appended to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open until close())
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
            "data": _finite(data),
        }
        self._append(f"DLLL {json.dumps(record, default=str, allow_nan=False)}\n".encode())

    def _append(self, line: bytes) -> None:
        """Append the whole line, or nothing where the disk has no room for it."""
        written = self._file.write(line)
        if written == len(line):
            return
        if self._file.tell() == os.fstat(self._file.fileno()).st_size:  # no other process has appended
            self._file.truncate(self._file.tell() - (written or 0))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self._path))


def _finite(value: Any) -> Any:
    """The value, with None for every number in it that is not finite."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


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
    """Passes everything on to several loggers. One that fails does not end the run: that is said once, and it is tried again.

    Args:
        loggers: The loggers; with none, nothing is recorded.
    """

    def __init__(self, loggers: list[MetricLogger]) -> None:
        self._loggers = loggers
        self._failed: set[str] = set()

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Record what the run was told."""
        for logger in self._loggers:
            self._attempt(logger, partial(logger.log_parameters, parameters))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record figures."""
        for logger in self._loggers:
            self._attempt(logger, partial(logger.log_metrics, metrics, step))

    def close(self) -> None:
        """Close all of them."""
        for logger in self._loggers:
            self._attempt(logger, logger.close)

    def _attempt(self, logger: MetricLogger, action: Callable[[], None]) -> None:
        name = type(logger).__name__
        try:
            action()
        except Exception as error:  # of a full disk, a lost connection, another package: none is worth the run
            if name not in self._failed:
                print(f"warning: {name} cannot record ({one_line(error)}); the run goes on", file=sys.stderr)
            self._failed.add(name)


def log_path(folder: Path, name: str) -> Path:
    """The log of that name in a folder.

    Raises:
        ValueError: The name leads out of the folder.
    """
    if name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise ValueError(f"--dllogger_name: expected the name of a file in the log folder, got {name!r}")
    return folder / name


def open_loggers(options: TrainingOptions, world: World, first_step: int) -> LoggerGroup:
    """Loggers of a run: all of them on the main process, none on the others.

    Raises:
        ImportError: `options.wandb` is set and wandb is not installed.
        ValueError: The name of the log leads out of the log folder.
        OSError: The log folder cannot be written.
    """
    if not world.is_main:
        return LoggerGroup([])
    path = log_path(options.log_dir, options.dllogger_name)
    options.log_dir.mkdir(parents=True, exist_ok=True)
    loggers: list[MetricLogger] = [
        JsonLinesLogger(path),
        TensorBoardLogger(options.log_dir, first_step),
    ]
    if options.wandb:
        loggers.append(WandbLogger(options.log_dir))
    return LoggerGroup(loggers)
