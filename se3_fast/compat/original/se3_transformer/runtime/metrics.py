"""Metrics that are summed up over batches and processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .utils import current_device

__all__ = ["MeanAbsoluteError", "Metric"]


class Metric(ABC):
    """A figure computed from sums; calling it adds a batch, :meth:`compute` gives it and begins anew.

    A subclass calls :meth:`add_state` for every sum, adds to them in :meth:`update` and defines :meth:`_compute`.
    """

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}

    def add_state(self, name: str, default: Tensor) -> None:
        """Make an attribute that starts as ``default`` and is added up over processes.

        Raises:
            ValueError: if there is one of that name.
        """
        if name in self.states:
            raise ValueError(f"name: expected a state that is not there yet, got {name!r}")
        self.states[name] = default.clone()
        setattr(self, name, default.clone())

    def synchronize(self) -> None:
        """Add up the states of all processes."""
        if dist.is_initialized():
            for name in self.states:
                dist.all_reduce(getattr(self, name))

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch, see :meth:`update`."""
        self.update(*args, **kwargs)

    def reset(self) -> None:
        """Begin anew."""
        for name, default in self.states.items():
            setattr(self, name, default.clone())

    def compute(self) -> float:
        """The figure over all batches and processes since the last call."""
        self.synchronize()
        value = float(self._compute())
        self.reset()
        return value

    @abstractmethod
    def _compute(self) -> Tensor:
        """The figure from the states."""

    @abstractmethod
    def update(self, preds: Tensor, targets: Tensor) -> None:
        """Add a batch."""


class MeanAbsoluteError(Metric):
    """The mean over samples of the absolute errors, summed over the components of a sample."""

    error: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("error", torch.zeros((), device=current_device()))
        self.add_state("total", torch.zeros((), dtype=torch.int64, device=current_device()))

    def update(self, preds: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            preds: [B, ...].
            targets: of the same number of values.

        Raises:
            ValueError: if they differ in size.
        """
        if preds.numel() != targets.numel():
            raise ValueError(f"targets: expected {preds.numel()} values as in preds, got {targets.numel()}")
        error = (preds.detach().reshape(len(preds), -1) - targets.detach().reshape(len(preds), -1)).abs().sum()
        self.error += error.to(self.error)
        self.total += len(preds)

    def _compute(self) -> Tensor:
        return self.error / self.total
