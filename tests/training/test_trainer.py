"""The loop on a problem small enough to check by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from se3_fast.data.samplers import EpochShuffleSampler
from se3_fast.training import (
    CheckpointError,
    DirectPredictions,
    TargetScale,
    Trainer,
    TrainingError,
    TrainingOptions,
    World,
    evaluate,
    read_checkpoint,
)
from se3_fast.training.benchmark import benchmark_training
from se3_fast.training.precision import Precision
from se3_fast.training.random_state import seed_everything
from se3_fast.training.report import report_training

from .conftest import LinearData, LinearModel

MakeTrainer = Callable[..., Trainer]


def test_training_learns_and_reports_in_the_unit(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(epochs=60, learning_rate=0.1, weight_decay=0.0)
    result = trainer.fit()
    known = trainer.data_module.ds_val.tensors[1].double().numpy()
    assert result.validation.mean_predictor_mae == pytest.approx(2.0 * abs(known).mean(), rel=1e-6)
    assert result.validation.mae < 0.1 * result.validation.mean_predictor_mae
    assert result.test.targets == pytest.approx(1.0 + 2.0 * known)
    assert result.test.mae == pytest.approx(abs(result.test.predictions - result.test.targets).mean(), rel=1e-6)


def test_accumulated_gradients_equal_a_larger_batch(make_trainer: MakeTrainer) -> None:
    accumulated = make_trainer(LinearData(batch_size=4), accumulate_grad_batches=3)
    whole = make_trainer(LinearData(batch_size=12))
    accumulated.fit()
    whole.fit()
    assert accumulated.steps_done == whole.steps_done == 6
    torch.testing.assert_close(accumulated.model.weight, whole.model.weight, rtol=1e-5, atol=1e-6)


def test_an_incomplete_group_is_averaged_over_what_it_has(make_trainer: MakeTrainer) -> None:
    # Four batches of six in groups of three: the last group has one batch alone.
    options = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0}
    trainer = make_trainer(LinearData(batch_size=6), accumulate_grad_batches=3, **options)
    by_hand = LinearModel()
    loader = trainer.data_module.train_dataloader()
    loader.sampler.set_epoch(0)
    batches = list(loader)
    for group in (batches[:3], batches[3:]):
        by_hand.zero_grad()
        for features, target in group:
            ((by_hand(features) - target).abs().mean() / len(group)).backward()
        by_hand.weight.data -= by_hand.weight.grad
    trainer.fit()
    torch.testing.assert_close(trainer.model.weight, by_hand.weight)


def test_the_gradient_is_clipped(make_trainer: MakeTrainer) -> None:
    options = {"epochs": 1, "max_steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0}
    trainer = make_trainer(gradient_clip=0.01, **options)
    before = trainer.model.weight.detach().clone()
    trainer.fit()
    assert (trainer.model.weight - before).norm().item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_names_the_step(make_trainer: MakeTrainer, tmp_path: Path, bad: float) -> None:
    data = LinearData(batch_size=1)
    data.ds_train.tensors[1][5] = bad
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    step = next(number for number, batch in enumerate(loader, start=1) if not batch[1].isfinite().all())
    trainer = make_trainer(data, save_ckpt_path=tmp_path / "model.pth")
    with pytest.raises(TrainingError, match=f"the loss became {bad} at optimizer step {step};"):
        trainer.fit()
    assert not (tmp_path / "model.pth").exists()


def test_a_training_set_of_no_batches_is_an_error(make_trainer: MakeTrainer) -> None:
    data = LinearData()
    data.ds_train = TensorDataset(torch.empty(0, 3), torch.empty(0))
    with pytest.raises(TrainingError, match="training set"):
        make_trainer(data).fit()


def test_max_steps_ends_inside_an_epoch_and_stretches_the_cosine(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=8, learning_rate=0.1)
    trainer.fit()
    assert (trainer.steps_done, trainer.epochs_done) == (8, 2)
    assert "validation_mae" in trainer.history[-1]
    # Six of the eight steps make the first epoch.
    assert trainer.history[1]["learning_rate"] == pytest.approx(0.01 + 0.09 * (1 + math.cos(math.pi * 6 / 8)) / 2)


def test_evaluations_and_checkpoints_come_at_their_intervals(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    monkeypatch.setattr("se3_fast.training.trainer.write_checkpoint", lambda path, state: saved.append(state["epoch"]))
    trainer = make_trainer(epochs=5, eval_interval=2, ckpt_interval=3, save_ckpt_path=tmp_path / "model.pth")
    trainer.fit()
    assert [record["epoch"] for record in trainer.history if "validation_mae" in record] == [2, 4, 5]
    assert saved == [3, 5]


@pytest.mark.parametrize("options", [{"noise": 0.1}, {"optimizer": "sgd"}, {"amp": True}, {"amp": True, "amp_dtype": "fp16"}])
def test_a_resumed_run_equals_the_uninterrupted_one(make_trainer: MakeTrainer, tmp_path: Path, options: dict) -> None:
    path = tmp_path / "model.pth"
    seed_everything(7)
    whole = make_trainer(epochs=4, **options)
    whole.fit()
    seed_everything(7)
    interrupted = make_trainer(epochs=4, save_ckpt_path=path, **options)
    interrupted.train_epoch(interrupted.data_module.train_dataloader())
    interrupted._save()
    seed_everything(8)
    resumed = make_trainer(epochs=4, resume_from=path, **options)
    resumed.fit()
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert resumed.steps_done == whole.steps_done


def test_every_epoch_has_an_order_of_its_own(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    monkeypatch.setattr(EpochShuffleSampler, "set_epoch", lambda sampler, epoch: epochs.append(epoch))
    make_trainer(epochs=3).fit()
    assert epochs == [0, 1, 2]


def test_predictions_of_a_model_trained_on_other_targets_are_rescaled() -> None:
    data, model_scale = LinearData(), TargetScale(mean=-3.0, std=0.5, unit="eV")
    world = World(torch.device("cpu"))
    model = LinearModel()
    predictions = DirectPredictions(model, data.val_dataloader(), Precision("cpu"), world.device)
    found = evaluate(model, predictions, TargetScale.of(data), world, model_scale)
    features, targets = data.ds_val.tensors
    predictions = (LinearModel()(features) * 0.5 - 3.0).detach()
    assert found.predictions == pytest.approx(predictions.double().numpy(), rel=1e-5)
    assert found.mae == pytest.approx((predictions - (targets * 2.0 + 1.0)).abs().mean().item(), rel=1e-5)


def test_a_finished_run_is_only_evaluated(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    first = make_trainer(save_ckpt_path=path)
    expected = first.fit()
    resumed = make_trainer(resume_from=path)
    assert resumed.fit().test.mae == expected.test.mae
    assert resumed.steps_done == first.steps_done
    assert resumed.history == first.history


def test_a_published_checkpoint_resumes(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    trainer = make_trainer(epochs=4)
    trainer.train_epoch(trainer.data_module.train_dataloader())
    published = {"state_dict": trainer.model.state_dict(), "optimizer_state_dict": trainer.optimizer.state_dict()}
    torch.save({**published, "epoch": 1}, path)
    trainer.fit()
    resumed = make_trainer(epochs=4, resume_from=path)
    resumed.fit()
    assert torch.equal(resumed.model.weight, trainer.model.weight)


def test_a_checkpoint_of_another_run_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    trainer = make_trainer(save_ckpt_path=path, epochs=1)
    trainer.metadata = {"model_config": {"num_layers": 3}, "data": {"task": "mu"}}
    trainer.fit()
    with pytest.raises(CheckpointError, match="optimizer is 'adam' in the checkpoint, 'sgd' in this run"):
        make_trainer(resume_from=path, optimizer="sgd")
    for key, wanted in (("model_config", {"num_layers": 7}), ("data", {"task": "homo"})):
        options = TrainingOptions(log_dir=tmp_path)
        with pytest.raises(CheckpointError, match="in the checkpoint"):
            Trainer(LinearModel(), LinearData(), options, metadata={key: wanted}, resume_from=path)


def test_checkpoints_have_the_published_keys_and_ours(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(save_ckpt_path=tmp_path / "new folder" / "model.pth").fit()
    checkpoint = read_checkpoint(tmp_path / "new folder" / "model.pth")
    published = {"state_dict", "optimizer_state_dict", "epoch"}
    ours = {"scheduler_state_dict", "scaler_state_dict", "step", "optimizer", "rng", "history", "version"}
    assert set(checkpoint) == published | ours
    assert checkpoint["epoch"] == 3


def test_benchmark_measures_all_but_the_first_epoch(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(epochs=3, benchmark=True, save_ckpt_path=tmp_path / "model.pth")
    throughput = benchmark_training(trainer)
    assert throughput.molecules == 2 * 24
    assert throughput.molecules_per_millisecond > 0
    assert not (tmp_path / "model.pth").exists()
    last = json.loads((tmp_path / "log" / "dllogger_results.json").read_text().splitlines()[-1].removeprefix("DLLL "))
    assert set(last["data"]) == {"throughput_train", "total_time_train"}


def test_report_draws_the_plots(make_trainer: MakeTrainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer()
    report_training(trainer, trainer.fit(), "homo")
    out = capsys.readouterr().out
    assert "validation MAE of homo" in out and "test MAE of homo" in out and "ratio" in out
    for name in ("learning_curve.png", "parity.png"):
        assert (tmp_path / "log" / name).read_bytes().startswith(b"\x89PNG")
