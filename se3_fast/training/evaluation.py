"""Evaluation of a model on a data loader: errors, predictions, latencies."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from se3_fast.data.resident import NumberedBatch, ResidentLoader
from se3_fast.unit_text import with_unit

from .distributed import World
from .precision import Precision
from .recorded import RecordedByShape, Recorder


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
        """The scale of a data module; without `targets_mean`, `targets_std` and `unit`, values stay as they are.

        Raises:
            ValueError: One of them is not a single number, which it is also for targets of several components.
        """
        return cls(
            _number(data_module, "targets_mean", 0.0),
            _number(data_module, "targets_std", 1.0),
            getattr(data_module, "unit", cls.unit),
        )

    def restore(self, values: Tensor) -> np.ndarray:
        """Values in the unit, float64: total energies would lose digits in single precision."""
        return values.double().numpy() * self.std + self.mean


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes:
        mae: Mean absolute error in the property's unit, over the samples (and components) of all processes; NaN if there are none.
        mean_predictor_mae: The same for predicting the training set's mean every time.
        predictions: [M], or [M, ...] as the targets are, float64, in the unit. Samples of rank 0 first; one process keeps the
            loader's order.
        targets: Likewise.
        latencies: [number of batches] seconds from a batch on the host to its predictions, where they were measured.
        seconds: Duration of the whole pass, loading included.
    """

    mae: float
    mean_predictor_mae: float
    predictions: np.ndarray
    targets: np.ndarray
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """What an epoch's record keeps of it, by name."""
        return {"mae": self.mae}

    def summary(self, unit: str) -> str:
        """The same in words, in a unit."""
        return f"MAE {with_unit(f'{self.mae:.4g}', unit)}"


def move_batch(batch: Any, device: torch.device) -> Any:
    """A batch (tuples, lists and dicts of what has `.to`) on `device`; copies from pinned memory do not block."""
    if isinstance(batch, dict):
        return {name: move_batch(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return [move_batch(value, device) for value in batch]
    return batch.to(device, non_blocking=True)


def matching_prediction(prediction: Any, target: Tensor, num_padding_graphs: int = 0) -> Tensor:
    """A prediction in float32, without the graphs at its end that are padding, after comparing its shape with the target's.

    Shapes that differ would broadcast to a loss that means nothing.

    Raises:
        ValueError: The shapes differ, or the model has returned no tensor.
    """
    if not isinstance(prediction, Tensor):
        came = f"a dict of {', '.join(map(str, prediction))}" if isinstance(prediction, dict) else type(prediction).__name__
        raise ValueError(
            f"model: expected a prediction of the target's shape {list(target.shape)}, got {came}; return_type of an "
            "SE3Transformer chooses a degree"
        )
    if num_padding_graphs:
        prediction = prediction[: prediction.shape[0] - num_padding_graphs]
    if prediction.shape != target.shape:
        raise ValueError(
            f"model: expected a prediction of the target's shape, got prediction {list(prediction.shape)} and target "
            f"{list(target.shape)}"
        )
    return prediction.float()


class Predictions(Protocol):
    """The predictions of a model on the batches of a loader."""

    def batches(self) -> Iterable[Any]:
        """The batches, in the form that a call takes."""

    def __call__(self, batch: Any) -> Tensor:
        """Prediction and target, standardised, [2, B] or [2, B, ...] float32; the next call may overwrite them."""

    def running(self) -> AbstractContextManager[None]:
        """Within it all of the above is to be called."""


class DirectPredictions:
    """Every operation is launched as it comes.

    Args:
        model: Called as `model(*inputs)`; returns what has the shape of the target, standardised.
        loader: Yields batches `(*inputs, target)` with a standardised target, [B] or [B, ...], B samples or nodes; every
            process has its own share.
        precision: Precision of the forward pass.
        device: The device of the model.
    """

    def __init__(self, model: nn.Module, loader: Iterable[Any], precision: Precision, device: torch.device) -> None:
        self._model = model
        self._loader = loader
        self._precision = precision
        self._device = device

    def batches(self) -> Iterable[Any]:
        """The loader's."""
        return self._loader

    def __call__(self, batch: Any) -> Tensor:
        """See :class:`Predictions`."""
        return self.predict(move_batch(batch, self._device))

    def predict(self, batch: Any, num_padding_graphs: int = 0) -> Tensor:
        """The same for a batch on the device, at whose end some graphs have no target.

        Raises:
            ValueError: The prediction has not the shape of the target.
        """
        *inputs, target = batch
        with self._precision.autocast():
            prediction = self._model(*inputs)
        return torch.stack([matching_prediction(prediction, target, num_padding_graphs), target.float()])

    def running(self) -> AbstractContextManager[None]:
        """See :class:`Predictions`."""
        return nullcontext()


class RecordedPredictions:
    """Batch assembly and forward pass recorded on the GPU for each of few padded shapes, and replayed.

    Args:
        direct: What is recorded.
        loader: Its batches; on the device.
        recorder: Records it.
    """

    def __init__(self, direct: DirectPredictions, loader: ResidentLoader, recorder: Recorder) -> None:
        self._direct = direct
        self._loader = loader
        self._recorder = recorder
        self._forward = RecordedByShape(self._assembled, loader, recorder)

    def batches(self) -> Iterable[NumberedBatch]:
        """The numbers of the molecules; their batch is assembled in the recording."""
        return self._loader.numbered_batches()

    def __call__(self, batch: NumberedBatch) -> Tensor:
        """See :class:`Predictions`."""
        return self._forward(batch)

    def running(self) -> AbstractContextManager[None]:
        """See :class:`Predictions`."""
        return self._recorder.stream()

    def _assembled(self, batch: NumberedBatch) -> Tensor:
        return self._direct.predict(self._loader.assemble(batch, is_padded=True), num_padding_graphs=1)


def evaluate(
    model: nn.Module,
    predictions: Predictions,
    scale: TargetScale,
    world: World,
    model_scale: TargetScale | None = None,
    is_timed: bool = False,
) -> Evaluation:
    """Predict a whole data set without gradients.

    Args:
        model: The model that predicts; in evaluation mode meanwhile.
        predictions: Its predictions.
        scale: How the targets are standardised.
        world: The processes whose figures are put together.
        model_scale: What the model was trained with, where that is not `scale`.
        is_timed: Wait for the device after every batch, for its latency.
    """
    # Not at the top: importing torchmetrics takes as long as importing PyTorch, and other commands do without.
    from torchmetrics import MeanAbsoluteError

    model_scale = model_scale or scale
    shift = (model_scale.mean - scale.mean) / scale.std
    error = MeanAbsoluteError().to(world.device)
    mean_error = MeanAbsoluteError().to(world.device)
    pairs: list[Tensor] = []
    latencies: list[float] = []
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    with torch.no_grad(), predictions.running():
        for batch in predictions.batches():
            batch_start = time.perf_counter()
            prediction, target = predictions(batch)
            prediction = prediction * (model_scale.std / scale.std) + shift
            error.update(prediction, target)
            mean_error.update(torch.zeros_like(target), target)
            pairs.append(torch.stack([prediction, target]))
            if is_timed:
                if world.device.type == "cuda":
                    torch.cuda.current_stream().synchronize()
                latencies.append(time.perf_counter() - batch_start)
    found, known = _gather(pairs, world)
    seconds = time.perf_counter() - start
    model.train(was_training)
    is_empty = known.numel() == 0
    return Evaluation(
        mae=float("nan") if is_empty else error.compute().item() * scale.std,
        mean_predictor_mae=float("nan") if is_empty else mean_error.compute().item() * scale.std,
        predictions=scale.restore(found),
        targets=scale.restore(known),
        latencies=latencies,
        seconds=seconds,
    )


def _gather(pairs: list[Tensor], world: World) -> Tensor:
    own = torch.cat(pairs, 1).cpu() if pairs else torch.empty(2, 0)
    shares = world.gather(own)
    return torch.cat([share for share in shares if share.shape[1] > 0] or shares[:1], 1)


def _number(data_module: Any, name: str, default: float) -> float:
    value = getattr(data_module, name, default)
    shape = list(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise ValueError(f"{name} of the data module: expected one number for all components, got shape {shape}")
    return float(value)
