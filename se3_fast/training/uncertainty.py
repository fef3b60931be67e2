"""How far a prediction may be off: the variance of the last layer, fitted to the errors on the validation set.

The pooled features x [W] of a molecule are compared with those of the training molecules: d^2 = (x - m)^T C^-1 (x - m) / W, with
their mean m and covariance C (and a ridge). For a last layer that is linear in x and fitted by least squares, the variance of a
prediction is a constant plus a multiple of d^2 (Bishop, Pattern Recognition and Machine Learning, 3.3.2). The errors of some
kinds of molecules are larger than those of others at the same distance: that is a factor exp(slope (x - m)). Slope, scale,
constant and ridge are those under which the errors on the validation set are the least surprising, as normally distributed ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from se3_fast.model import SE3TransformerPooled

from .distributed import World
from .evaluation import move_batch

NAME, VERSION = "last_layer", 1
NAME_OF_EACH = "last_layer_of_each"
"""Of several properties."""

FEWEST_MOLECULES = 20
"""Of the validation set; with fewer there is no estimate."""

_MOST_MOLECULES = 2_000
"""Of each set that are looked at: enough for the few hundred numbers that are fitted."""

_RIDGES = 10.0 ** np.arange(-6, 0)
_FLOORS = 10.0 ** np.arange(-3, 3, 0.5)
_SHARE_WITHIN = 0.999
_SMALLEST_ERROR = 1e-3  # of the root of the mean squared error: of no error there is no logarithm
_STEEPEST = 1.0
_DIGITS = 7


@dataclass(frozen=True)
class LastLayerUncertainty:
    """Standard deviations of standardised predictions by the pooled features.

    Attributes:
        mean: [W] float64, of the training molecules' pooled features.
        factor: [W, W] float64, lower triangular; the squared distance is |factor (x - mean)|^2.
        slope: [W] float64; the standard deviation has a factor exp(slope (x - mean)), which stays between 1/e and e.
        scale: Standard deviation at distance 1 without floor and slope.
        floor: What is added to the squared distance.
        farthest: Distance that 99.9 % of the validation molecules do not exceed.
    """

    mean: np.ndarray
    factor: np.ndarray
    slope: np.ndarray
    scale: float
    floor: float
    farthest: float

    @classmethod
    def fit(cls, train: np.ndarray, validation: np.ndarray, errors: np.ndarray) -> LastLayerUncertainty | None:
        """Fit to the features of both sets, and the errors on the second.

        Args:
            train: [n, W] pooled features.
            validation: [m, W] likewise.
            errors: [m], of the standardised predictions.

        Returns:
            None if there are too few molecules, or something is not finite.
        """
        width = train.shape[1]
        is_enough = len(train) > width and len(validation) >= FEWEST_MOLECULES and errors.any()
        if not is_enough or not all(np.isfinite(values).all() for values in (train, validation, errors)):
            return None
        covariance = np.cov(train, rowvar=False).reshape(width, width)  # [W, W]
        if not covariance.any():
            return None
        mean, slopes = train.mean(0), _Slopes(train, validation)
        candidates = (
            _candidate(mean, _factor(covariance, ridge), floor, validation, errors, slopes)
            for ridge in _RIDGES
            for floor in _FLOORS.tolist()
        )
        return min(candidates, key=lambda candidate: candidate[0])[1]

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> LastLayerUncertainty:
        """What :meth:`description` describes."""
        rows = description["factor"]
        factor = np.zeros((len(rows), len(rows)))
        for number, row in enumerate(rows):
            factor[number, : number + 1] = row
        numbers = {name: float(description[name]) for name in ("scale", "floor", "farthest")}
        mean, slope = (np.array(description[name], dtype=float) for name in ("mean", "slope"))
        return cls(mean, factor, slope, **numbers)

    def description(self) -> dict[str, Any]:
        """Plain values, for checkpoints: of the factor the rows up to the diagonal."""
        return {
            "name": NAME,
            "version": VERSION,
            "mean": _rounded(self.mean),
            "slope": _rounded(self.slope),
            "factor": [_rounded(row[: number + 1]) for number, row in enumerate(self.factor)],
            "scale": self.scale,
            "floor": self.floor,
            "farthest": self.farthest,
        }

    def distances(self, features: np.ndarray) -> np.ndarray:
        """[M, W] to [M]: distance to the training molecules; most of them have one around 1."""
        return np.linalg.norm((features - self.mean) @ self.factor.T, axis=1)

    def deviations(self, features: np.ndarray) -> np.ndarray:
        """[M, W] to [M]: standard deviation of standardised predictions for molecules with these pooled features."""
        tilt = np.clip((features - self.mean) @ self.slope, -_STEEPEST, _STEEPEST)  # [M]
        return self.scale * np.sqrt(self.distances(features) ** 2 + self.floor) * np.exp(tilt)


class _Slopes:
    """Ridge regressions of logarithms on the standardised features of the validation molecules."""

    def __init__(self, train: np.ndarray, validation: np.ndarray) -> None:
        self._std = train.std(0) + np.sqrt(np.finfo(float).tiny)  # [W]
        inputs = (validation - validation.mean(0)) / self._std  # [m, W]
        gram = inputs.T @ inputs + len(inputs) * np.eye(inputs.shape[1])  # [W, W]
        self._solution = np.linalg.solve(gram, inputs.T)  # [W, m]

    def fit(self, logarithms: np.ndarray) -> np.ndarray:
        """[m] to [W]: the slope with respect to the features as they are."""
        return self._solution @ (logarithms - logarithms.mean()) / self._std


def _candidate(
    mean: np.ndarray, factor: np.ndarray, floor: float, validation: np.ndarray, errors: np.ndarray, slopes: _Slopes
) -> tuple[float, LastLayerUncertainty]:
    """The best slope and scale with this factor and floor, and how surprising the errors are to it."""
    flat = LastLayerUncertainty(mean, factor, np.zeros_like(mean), 1.0, floor, 0.0)
    smallest = _SMALLEST_ERROR * np.sqrt((errors**2).mean())
    logarithms = np.log((np.abs(errors) + smallest) / flat.deviations(validation))  # [m]
    sloped = replace(flat, slope=slopes.fit(logarithms))
    deviations = sloped.deviations(validation)  # [m]
    scale = float(np.sqrt(((errors / deviations) ** 2).mean()))
    surprise = float(np.log(scale) + np.log(deviations).mean())
    farthest = float(np.quantile(flat.distances(validation), _SHARE_WITHIN))
    return surprise, replace(sloped, scale=scale, farthest=farthest)


class PooledOutputs(NamedTuple):
    """What a model makes of M molecules, float64.

    Attributes:
        features: [M, W], pooled.
        outputs: [M, P], standardised numbers or logits.
        targets: [M, P], standardised numbers, or 0 and 1; NaN where unknown.
    """

    features: np.ndarray
    outputs: np.ndarray
    targets: np.ndarray


@torch.inference_mode()
def pooled_outputs(
    model: SE3TransformerPooled, batches: Iterable[Any], device: torch.device, most: int | None = _MOST_MOLECULES
) -> PooledOutputs:
    """Pooled features and outputs of a model, in evaluation mode, on batches `(*inputs, target)`.

    Args:
        model: On the device.
        batches: Of a data module's loader.
        device: Where the model is.
        most: No further batch is taken when there are so many molecules; None takes all.
    """
    was_training = model.training
    model.eval()
    parts: list[list[Tensor]] = []
    count = 0
    for batch in batches:
        *inputs, target = move_batch(batch, device)
        features = model.transformer(*inputs)
        outputs = model.mlp(features)  # [B, P]
        parts.append([features, outputs, target.view(outputs.shape)])
        count += len(features)
        if most is not None and count >= most:
            break
    model.train(was_training)
    if not parts:
        return PooledOutputs(np.empty((0, 1)), np.empty((0, 1)), np.empty((0, 1)))
    return PooledOutputs(*(torch.cat(tensors).double().cpu().numpy() for tensors in zip(*parts, strict=True)))


def pooled_features(model: SE3TransformerPooled, batches: Iterable[Any], device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features [M, W] and errors [M] of a model of one number on enough of the batches."""
    found = pooled_outputs(model, batches, device)
    return found.features, (found.outputs - found.targets)[:, 0]


def last_layer_uncertainties(model: SE3TransformerPooled, data_module: Any, world: World) -> list[LastLayerUncertainty | None]:
    """The uncertainty of each property of a trained model, from the training and validation sets of a molecule data module.

    None for a property with too few molecules. Of a classification it is that of the probabilities. Every process takes part with
    its share of the molecules, and gets the same.
    """
    train = _of_all_processes(model, data_module.train_dataloader(), world)
    validation = _of_all_processes(model, data_module.val_dataloader(), world)
    objective, outputs = data_module.objective, validation.outputs
    if not len(outputs):
        return [None] * len(objective.properties)
    if objective.is_classification:
        outputs = objective.restore(outputs)
    errors = outputs - validation.targets  # [m, P]
    is_known = ~np.isnan(errors)
    return [
        LastLayerUncertainty.fit(train.features, validation.features[known], column[known])
        for column, known in zip(errors.T, is_known.T, strict=True)
    ]


def _of_all_processes(model: SE3TransformerPooled, batches: Iterable[Any], world: World) -> PooledOutputs:
    """As :func:`pooled_outputs`, of the shares of all processes, on each of them."""
    shares = world.gather(pooled_outputs(model, batches, world.device, -(-_MOST_MOLECULES // world.size)))
    filled = [share for share in shares if len(share.features)] or shares[:1]
    return PooledOutputs(*(np.concatenate(parts) for parts in zip(*filled, strict=True)))


def uncertainty_entry(uncertainties: Sequence[LastLayerUncertainty | None]) -> dict[str, Any]:
    """Plain values for the entry `uncertainty` of checkpoints; empty if there is none at all."""
    described = [None if one is None else one.description() for one in uncertainties]
    if not any(described):
        return {}
    first = described[0]
    return {
        "uncertainty": first if len(described) == 1 and first else {"name": NAME_OF_EACH, "version": VERSION, "each": described}
    }


def uncertainties_of_entry(entry: Mapping[str, Any], num_properties: int, width: int) -> list[LastLayerUncertainty | None]:
    """What :func:`uncertainty_entry` has described.

    Args:
        entry: The entry `uncertainty` of a checkpoint.
        num_properties: Of its model.
        width: Number of its pooled features.

    Raises:
        ValueError: In one line: it is of a later version, or not this model's.
    """
    described = entry["each"] if entry["name"] == NAME_OF_EACH else [entry]
    for one in [entry, *filter(None, described)]:
        if one["name"] not in (NAME, NAME_OF_EACH) or one["version"] != VERSION:
            found, known = (one["name"], one["version"]), (NAME, VERSION)
            raise ValueError(f"uncertainty: expected name and version {known}, which this version has, got {found}")
        if one["name"] == NAME and len(one["mean"]) != width:
            raise ValueError(f"uncertainty: expected the model's {width} features, got {len(one['mean'])}")
    if len(described) != num_properties:
        raise ValueError(f"uncertainty: expected one for each of {num_properties} properties, got {len(described)}")
    return [None if one is None else LastLayerUncertainty.of_description(one) for one in described]


def _factor(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """[W, W] to the lower triangular [W, W] whose product with its transpose, from the left, is the inverse over W."""
    width = len(covariance)
    ridged = covariance + ridge * np.trace(covariance) / width * np.eye(width)
    return np.linalg.inv(np.linalg.cholesky(ridged)) / np.sqrt(width)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values]
