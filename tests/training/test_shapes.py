"""Predictions and targets of other shapes than one number for each graph; shapes that would broadcast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from se3_fast import Fiber, SE3Transformer, radius_graph
from se3_fast.data import DataModule
from se3_fast.training import Trainer, TrainingOptions
from se3_fast.training.benchmark import benchmark_training
from se3_fast.training.evaluation import DirectPredictions, TargetScale
from se3_fast.training.precision import Precision
from se3_fast.training.report import report_training

from .conftest import LinearData, LinearModel


class Bodies(DataModule):
    """Five points each; the target is a multiple of the vectors that they come with."""

    unit = "m/s"
    targets_std = 2.0

    def __init__(self, target_shape: tuple[int, ...] = (-1, 1, 3), num_test: int = 4) -> None:
        super().__init__(batch_size=3)
        generator = torch.Generator().manual_seed(0)
        clouds = torch.randn(20, 2, 5, 3, generator=generator)
        self.ds_train, self.ds_val, self.ds_test = clouds[:12], clouds[12:16], clouds[16 : 16 + num_test]
        self._target_shape = target_shape

    def _collate(self, samples: list[Tensor]) -> tuple[Any, ...]:
        pos, vectors = torch.cat([sample[0] for sample in samples]), torch.cat([sample[1] for sample in samples])
        graph = radius_graph(pos, 1.5, batch_num_nodes=[5] * len(samples))
        return graph, {"1": vectors[:, None]}, {}, (0.5 * vectors).view(self._target_shape)


def transformer(return_type: int | None = 1) -> SE3Transformer:
    torch.manual_seed(0)
    return SE3Transformer(
        num_layers=1,
        fiber_in=Fiber({1: 1}),
        fiber_hidden=Fiber({0: 2, 1: 2}),
        fiber_out=Fiber({1: 1}),
        fiber_edge=Fiber({}),
        num_heads=1,
        channels_div=1,
        return_type=return_type,
    )


def options(folder: Path, **changes: Any) -> TrainingOptions:
    return TrainingOptions(**{"epochs": 8, "learning_rate": 0.03, "silent": True, "log_dir": folder, "eval_interval": 1, **changes})


def test_vectors_of_nodes_are_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(transformer(), Bodies(), options(tmp_path))
    result = trainer.fit()
    assert result.test.predictions.shape == result.test.targets.shape == (20, 1, 3)
    assert result.test.mae == pytest.approx(abs(result.test.predictions - result.test.targets).mean(), rel=1e-5)
    assert result.test.targets == pytest.approx(2.0 * 0.5 * trainer.data_module.ds_test[:, 1].reshape(20, 1, 3).double().numpy())
    assert trainer.history[-1]["train_loss"] < 0.7 * trainer.history[0]["train_loss"]
    report_training(trainer, result, "velocity")
    assert "test MAE of velocity" in capsys.readouterr().out
    assert (tmp_path / "parity.png").exists()


def test_molecules_are_counted_not_nodes(tmp_path: Path) -> None:
    assert benchmark_training(Trainer(transformer(), Bodies(), options(tmp_path, epochs=2, benchmark=True))).molecules == 12


@pytest.mark.parametrize(
    ("model", "target_shape", "named"),
    [
        (lambda: transformer(1), (-1, 3), r"prediction \[15, 1, 3\] and target \[15, 3\]"),
        (lambda: transformer(1), (-1, 3, 1), r"prediction \[15, 1, 3\] and target \[15, 3, 1\]"),
        (lambda: transformer(None), (-1, 1, 3), r"target's shape \[15, 1, 3\], got a dict of 1; return_type"),
    ],
)
def test_shapes_are_compared_before_any_step(tmp_path: Path, model: Any, target_shape: tuple[int, ...], named: str) -> None:
    made = model()
    trainer = Trainer(made, Bodies(target_shape), options(tmp_path))
    before = [parameter.detach().clone() for parameter in made.parameters()]
    with pytest.raises(ValueError, match=f"^model: expected a prediction of the [^\n]*{named}[^\n]*$"):
        trainer.fit()
    assert trainer.steps_done == 0
    assert all(torch.equal(*pair) for pair in zip(made.parameters(), before, strict=True))
    predictions = DirectPredictions(made, trainer.data_module.test_dataloader(), Precision("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^model: expected a prediction of the"):
        predictions(next(iter(predictions.batches())))


class Column(nn.Module):
    """[B, 1] instead of [B]: the usual slip."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = LinearModel()

    def forward(self, features: Tensor) -> Tensor:
        return self.inner(features)[:, None]


def test_a_column_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prediction \[4, 1\] and target \[4\]"):
        Trainer(Column(), LinearData(), options(tmp_path)).fit()


def test_scales_are_one_number(tmp_path: Path) -> None:
    data = LinearData()
    data.targets_mean = torch.tensor([-11178.966217])
    data.targets_std = 0.1
    assert TargetScale.of(data) == TargetScale(float(data.targets_mean), 0.1, "eV")
    data.targets_mean = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"^targets_mean of the data module: expected one number for all components, got shape \[3\]"
    ):
        Trainer(LinearModel(), data, options(tmp_path))


def test_a_test_set_of_nothing_does_not_cost_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer(transformer(), Bodies(num_test=0), options(tmp_path, epochs=1))
    result = trainer.fit()
    report_training(trainer, result, "velocity")
    trainer.close()
    assert "test MAE of velocity: not known, as there are no samples" in capsys.readouterr().out
    assert '"test_mae": null' in (tmp_path / "dllogger_results.json").read_text()
