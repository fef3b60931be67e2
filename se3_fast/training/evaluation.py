"""Evaluation of a model on a data loader: errors, predictions, latencies."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError

from .distributed import World
from .precision import Precision


@dataclass(frozen=True)
class TargetScale:
    """Mean and standard deviation that a property is standardised with, and its unit.

    Attributes:
        mean: In `unit`.
        std: In `unit`.
        unit: For example 'eV'.
    """

    mean: float = 0.0
    std: float = 1.0
    unit: str = "standardised"

    @classmethod
    def of(cls, data_module: Any) -> TargetScale:
        """The scale of a data module; without `targets_mean`, `targets_std` and `unit`, values stay as they are."""
        return cls(
            float(getattr(data_module, "targets_mean", 0.0)),
            float(getattr(data_module, "targets_std", 1.0)),
            getattr(data_module, "unit", cls.unit),
        )

    def restore(self, values: Tensor) -> np.ndarray:
        """Values in the unit, float64: total energies would lose digits in single precision."""
        return values.double().numpy() * self.std + self.mean


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        mae: Mean absolute error in the property's unit, over the samples of all processes.
        mean_predictor_mae: The same for predicting the training set's mean every time.
        predictions: [M] float64, in the unit. Samples of rank 0 first; one process keeps the loader's order.
        targets: [M] float64, in the unit.
        latencies: [number of batches] seconds from a batch on the host to its predictions.
        seconds: Duration of the whole pass, loading included.
    """

    mae: float
    mean_predictor_mae: float
    predictions: np.ndarray
    targets: np.ndarray
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0


def move_batch(batch: Any, device: torch.device) -> Any:
    """A batch (tuples, lists and dicts of what has `.to`) on `device`; copies from pinned memory do not block."""
    if isinstance(batch, dict):
        return {name: move_batch(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [move_batch(value, device) for value in batch]
    return batch.to(device, non_blocking=True)


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    scale: TargetScale,
    world: World,
    precision: Precision,
    model_scale: TargetScale | None = None,
) -> Evaluation:
    """Run the model over a loader without gradients.

    Args:
        model: Called as `model(*inputs)`; returns [B], standardised.
        loader: Yields batches `(*inputs, target)` with a standardised target [B]; every process has its own share.
        scale: How the targets are standardised.
        world: The processes whose figures are put together.
        precision: Precision of the forward pass.
        model_scale: What the model was trained with, where that is not `scale`.
    """
    model_scale = model_scale or scale
    shift = (model_scale.mean - scale.mean) / scale.std
    error = MeanAbsoluteError().to(world.device)
    mean_error = MeanAbsoluteError().to(world.device)
    predictions: list[Tensor] = []
    targets: list[Tensor] = []
    latencies: list[float] = []
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    with torch.no_grad():
        for batch in loader:
            batch_start = time.perf_counter()
            *inputs, target = move_batch(batch, world.device)
            with precision.autocast():
                prediction = model(*inputs)
            prediction = prediction.float() * (model_scale.std / scale.std) + shift
            error.update(prediction, target)
            mean_error.update(torch.zeros_like(target), target)
            predictions.append(prediction)
            targets.append(target)
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            latencies.append(time.perf_counter() - batch_start)
    seconds = time.perf_counter() - start
    model.train(was_training)
    return Evaluation(
        mae=error.compute().item() * scale.std,
        mean_predictor_mae=mean_error.compute().item() * scale.std,
        predictions=scale.restore(_gather(predictions, world)),
        targets=scale.restore(_gather(targets, world)),
        latencies=latencies,
        seconds=seconds,
    )


def _gather(parts: list[Tensor], world: World) -> Tensor:
    own = torch.cat(parts).cpu() if parts else torch.empty(0)
    return torch.cat(world.gather(own))
