"""Where the figures of a run go; only the first process writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from torch import distributed as dist

from se3_fast.training.loggers import JsonLinesLogger

from .utils import rank_zero_only

__all__ = ["DLLogger", "Logger", "LoggerCollection", "WandbLogger"]


class Logger(ABC):
    """Takes hyperparameters and figures."""

    @abstractmethod
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Record what the run was told."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record figures; ``step`` is the epoch, None for the whole run."""

    @staticmethod
    def _sanitize_params(params: Mapping[str, Any]) -> dict[str, Any]:
        """Paths and enumerations as text, functions and classes by their names."""
        return {name: _plain(value) for name, value in params.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path | Enum):
        return str(value)
    return getattr(value, "__name__", repr(value)) if isinstance(value, Callable) else value  # type: ignore[arg-type]


class LoggerCollection(Logger):
    """Passes everything on to several loggers."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        super().__init__()
        self.loggers = list(loggers)

    def __getitem__(self, index: int) -> Logger:
        return self.loggers[index]

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Record what the run was told."""
        for logger in self.loggers:
            logger.log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record figures."""
        for logger in self.loggers:
            logger.log_metrics(metrics, step)


class DLLogger(Logger):
    """A file of JSON lines in the shape of DLLogger's, without that package.

    Args:
        save_dir: folder of the file; made if it is not there.
        filename: its name.
    """

    def __init__(self, save_dir: Path | str, filename: str) -> None:
        super().__init__()
        if _is_first():
            Path(save_dir).mkdir(parents=True, exist_ok=True)
            self._lines = JsonLinesLogger(Path(save_dir) / filename)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Write a line of step PARAMETER."""
        self._lines.log_parameters(self._sanitize_params(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | tuple[()] | None = None) -> None:
        """Write a line of step [epoch], or [] for the whole run."""
        self._lines.log_metrics(metrics, None if step == () else step)  # type: ignore[arg-type]


class WandbLogger(Logger):
    """Weights & Biases.

    Args:
        name: of the run.
        save_dir: folder of its local files; made if it is not there.
        id: of a run that goes on.
        project: of the run.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, name: str, save_dir: Path | str, id: str | None = None, project: str | None = None) -> None:
        super().__init__()
        if not _is_first():
            return
        try:
            import wandb
        except ImportError:
            raise ImportError("WandbLogger needs the package wandb: pip install 'se3_fast[logging]'") from None
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        self.experiment = wandb.init(name=name, project=project, id=id, dir=str(save_dir), resume="allow")

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Record the run's configuration."""
        self.experiment.config.update(self._sanitize_params(params), allow_val_change=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record figures, with the epoch as one of them."""
        self.experiment.log(dict(metrics) if step is None else {**metrics, "epoch": step})


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
