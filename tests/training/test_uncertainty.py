"""The variance of the last layer: what is fitted is what errors have, and checkpoints carry it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from se3_fast.train import main
from se3_fast.training.calibration import Calibration
from se3_fast.training.checkpoint import read_checkpoint, write_safetensors
from se3_fast.training.checkpoint_entries import check_entries
from se3_fast.training.uncertainty import LastLayerUncertainty

WIDTH = 6
RANDOM = np.random.default_rng(0)


def molecules(count: int) -> np.ndarray:
    return RANDOM.standard_normal((count, WIDTH)) * np.array([1, 2, 3, 0.5, 1, 10]) + 7


def fitted(scale: float = 0.3, slope: float = 0.0) -> tuple[LastLayerUncertainty, np.ndarray]:
    """The fit, and features and errors of a test set, where errors grow with the distance and along the first feature."""
    train, validation, test = molecules(1000), molecules(2000), molecules(4000)

    def errors(features: np.ndarray) -> np.ndarray:
        whitened = (features - 7) / np.array([1, 2, 3, 0.5, 1, 10])
        deviation = scale * np.sqrt((whitened**2).mean(1) + 0.3) * np.exp(slope * whitened[:, 0])
        return deviation * RANDOM.standard_normal(len(features))

    uncertainty = LastLayerUncertainty.fit(train, validation, errors(validation))
    assert uncertainty is not None
    return uncertainty, np.c_[test, errors(test)]


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_errors_are_as_large_as_was_said(slope: float) -> None:
    uncertainty, test = fitted(slope=slope)
    features, errors = test[:, :-1], test[:, -1]
    told = Calibration.of(errors, uncertainty.deviations(features))
    assert told.within_one == pytest.approx(0.683, abs=0.03)
    assert told.within_two == pytest.approx(0.954, abs=0.02)
    assert told.area < 0.02
    assert told.rank_correlation > (0.3 if slope else 0.1)


def test_distance_and_what_is_far() -> None:
    uncertainty, test = fitted()
    features = test[:, :-1]
    assert np.sqrt((uncertainty.distances(features) ** 2).mean()) == pytest.approx(1, abs=0.05)
    assert (uncertainty.distances(features) > uncertainty.farthest).mean() < 0.01
    far = features[:1] + 100
    assert uncertainty.distances(far)[0] > uncertainty.farthest
    assert uncertainty.deviations(far)[0] > 3 * uncertainty.deviations(features).mean()


def test_description_and_back() -> None:
    uncertainty, test = fitted()
    again = LastLayerUncertainty.of_description(uncertainty.description())
    features = test[:, :-1]
    np.testing.assert_allclose(again.deviations(features), uncertainty.deviations(features), rtol=1e-5)
    np.testing.assert_allclose(again.distances(features), uncertainty.distances(features), rtol=1e-5)


@pytest.mark.parametrize("case", ["few", "no errors", "not finite", "all alike"])
def test_no_estimate_without_grounds(case: str) -> None:
    train, validation, errors = molecules(100), molecules(100), RANDOM.standard_normal(100)
    if case == "few":
        train = train[:WIDTH]
    elif case == "no errors":
        errors = np.zeros(100)
    elif case == "not finite":
        validation[3, 2] = math.nan
    else:
        train = np.ones_like(train)
    assert LastLayerUncertainty.fit(train, validation, errors) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": math.nan}, "uncertainty: scale: expected a finite number"),
        ({"mean": [0.0]}, "uncertainty: mean: expected a list of 6 finite numbers"),
        ({"factor": [[1.0], [1.0]]}, "uncertainty: mean: expected a list of 2"),
        ({"factor": [[1.0, 2.0]]}, "uncertainty"),
        ({"factor": "1"}, "uncertainty: factor: expected a list of rows"),
        ({"more": 1}, "uncertainty: expected the entries"),
    ],
)
def test_damaged_entries_are_refused(changed: dict, message: str) -> None:
    entry = {**fitted()[0].description(), **changed}
    checkpoint = {"state_dict": {}, "optimizer_state_dict": {}, "epoch": 0, "uncertainty": entry}
    with pytest.raises(ValueError, match=message):
        check_entries(checkpoint, 10_000)


def test_training_puts_it_into_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    sizes = "--num_layers 1 --num_degrees 1 --num_channels 8 --num_heads 2 --batch_size 128 --max_steps 2"
    rest = f"--dataset sample --num_workers 0 --seed 1 --silent --log_dir {tmp_path} --save_ckpt_path {path}"
    assert main([*sizes.split(), *rest.split()]) == 0
    checkpoint = read_checkpoint(path)
    uncertainty = LastLayerUncertainty.of_description(checkpoint["uncertainty"])
    assert uncertainty.mean.shape == (8,) and uncertainty.scale > 0
    converted = tmp_path / "model.safetensors"
    write_safetensors(converted, checkpoint)
    assert read_checkpoint(converted)["uncertainty"] == checkpoint["uncertainty"]
