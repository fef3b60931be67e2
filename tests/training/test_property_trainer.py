"""Several properties, of which some are not known, and classes: losses and errors by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from se3_fast.data import DataModule
from se3_fast.data.objective import Objective, Property
from se3_fast.training import TrainingOptions
from se3_fast.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from se3_fast.training.property_trainer import PropertyTrainer, property_evaluation

NAN = float("nan")
NUMBERS = Objective("regression", (Property("a", "eV", 10.0, 2.0), Property("b", "", -1.0, 0.5)))
CLASSES = Objective("classification", (Property("a"), Property("b")))


class Pairs(DataModule):
    """Three features; two targets, a linear function of them, some of which are not known."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(batch_size=8)
        self.objective = objective
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(64, 3, generator=generator)
        targets = features @ torch.tensor([[1.0, 0.0], [0.5, -1.0], [0.0, 0.3]])
        if objective.is_classification:
            targets = (targets > 0).float()
        targets[::3, 0] = targets[1::3, 1] = NAN
        samples = list(zip(features, targets, strict=True))
        self.ds_train, self.ds_val, self.ds_test = samples[:40], samples[40:52], samples[52:]

    def _collate(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Any, ...]:
        features, targets = zip(*samples, strict=True)
        return torch.stack(features), torch.stack(targets)


def trainer(objective: Objective, folder: Path, **options: Any) -> PropertyTrainer:
    torch.manual_seed(0)
    told = TrainingOptions(**{"log_dir": folder, "silent": True, "learning_rate": 0.05, "weight_decay": 0.0, **options})
    return PropertyTrainer(nn.Linear(3, 2), Pairs(objective), told)


@pytest.mark.parametrize("objective", [NUMBERS, CLASSES], ids=["numbers", "classes"])
def test_the_loss_is_that_of_what_is_known(objective: Objective, tmp_path: Path) -> None:
    trained = trainer(objective, tmp_path)
    features, targets = next(iter(trained.data_module.train_dataloader()))
    targets[0] = NAN
    outputs = trained.model(features).detach().double().numpy()
    known = ~np.isnan(targets.numpy())
    if objective.is_classification:
        probability = 1 / (1 + np.exp(-outputs))
        each = -np.log(np.where(targets.numpy() == 1, probability, 1 - probability))
    else:
        each = np.abs(outputs - targets.numpy())
    loss = trained.batch_loss(trained.model, (features, targets))
    assert loss.item() == pytest.approx(each[known].mean(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in trained.model.parameters())
    assert trained.batch_loss(trained.model, (features, torch.full_like(targets, NAN))).item() == 0.0


@pytest.mark.parametrize("objective", [NUMBERS, CLASSES], ids=["numbers", "classes"])
def test_it_learns(objective: Objective, tmp_path: Path) -> None:
    trained = trainer(objective, tmp_path, epochs=30, eval_interval=10)
    result = trained.fit()
    if objective.is_classification:
        assert result.test.roc_auc > 0.95 and trained.history[9]["validation_roc_auc_b"] > 0.9
    else:
        assert result.test.mae < 0.1 and trained.history[9]["validation_mae_b"] > 0
    trained.close()


def test_errors_of_numbers() -> None:
    outputs, targets = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]]), np.array([[0.5, NAN], [1.0, NAN], [NAN, NAN]])
    found = property_evaluation(outputs, targets, NUMBERS)
    assert found.scores["a"] == pytest.approx({"mae": 1.5, "mean_predictor_mae": 1.5, "known": 2.0})
    assert np.isnan(found.scores["b"]["mae"]) and found.scores["b"]["known"] == 0
    assert found.mae == pytest.approx(0.75)
    np.testing.assert_allclose(found.predictions, [[10.0, -0.5], [14.0, -1.0], [12.0, -0.5]])
    np.testing.assert_allclose(found.targets, [[11.0, NAN], [12.0, NAN], [NAN, NAN]])


def test_errors_of_classes() -> None:
    outputs = np.array([[2.0, 800.0], [-1.0, -800.0], [0.5, 0.0], [1.0, 0.0]])
    found = property_evaluation(outputs, np.array([[1, 1], [0, NAN], [1, 1], [0, 1]], dtype=float), CLASSES)
    assert found.scores["a"]["roc_auc"] == pytest.approx(0.75) and found.scores["a"]["accuracy"] == pytest.approx(0.75)
    assert np.isnan(found.scores["b"]["roc_auc"])  # of one class alone
    assert found.roc_auc == pytest.approx(0.75)
    np.testing.assert_allclose(found.predictions[:, 1], [1, 0, 0.5, 0.5])
    assert found.figures() == pytest.approx({"roc_auc": 0.75, "roc_auc_a": 0.75, "roc_auc_b": NAN}, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "data: objective: name: expected a name"),
        ({"version": -1}, "data: objective: version: expected a whole number"),
        ({"properties": []}, "data: objective: properties: expected a list of properties"),
        ({"properties": [{"name": "a"}]}, "data: objective: expected name, unit, mean and std"),
        ({"properties": [{"name": "a", "unit": "", "mean": 0.0, "std": 0.0}]}, "expected finite numbers for mean and std, above 0"),
    ],
)
def test_damaged_descriptions(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    description = NUMBERS.description()
    assert Objective.of_data({"objective": description}) == NUMBERS
    entries = {"state_dict": {}, "optimizer_state_dict": {}, "epoch": 0}
    write_checkpoint(path, {**entries, "data": {"task": "a, b", "objective": {**description, **change}}})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_later_versions_are_told() -> None:
    with pytest.raises(
        ValueError, match="objective: expected regression or classification, version 1, which this version has, got 'x'"
    ):
        Objective.of_data({"objective": {**NUMBERS.description(), "name": "x"}})
