"""What must not be written or go on: states that are not finite, a collapsed loss scale, checkpoints that find no room."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from se3_fast.training import Trainer, TrainingError, TrainingOptions, read_checkpoint
from se3_fast.training.health import SMALLEST_LOSS_SCALE, check_loss_scale
from se3_fast.training.optimizers import build_optimizer
from se3_fast.training.random_state import seed_everything

from .conftest import LinearData

MakeTrainer = Callable[..., Trainer]


def poison_after(trainer: Trainer, step: int, poison: Callable[[], None]) -> None:
    """Call a function right after an optimizer step."""
    original = trainer.optimizer.step

    def stepping(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if trainer.steps_done + 1 == step:
            poison()
        return result

    trainer.optimizer.step = stepping


@pytest.mark.parametrize("what", ["parameter 'weight'", "the optimizer's exp_avg_sq of parameter 'weight'"])
def test_the_last_good_checkpoint_stays(make_trainer: MakeTrainer, tmp_path: Path, what: str) -> None:
    """The last update makes something that is not finite: no loss shows it any more."""
    path = tmp_path / "model.pth"
    trainer = make_trainer(save_ckpt_path=path, ckpt_interval=1)
    state = trainer.optimizer.state
    weight = trainer.model.weight
    spoilt = {
        "parameter 'weight'": lambda: weight.data.fill_(float("nan")),
        "the optimizer's exp_avg_sq of parameter 'weight'": lambda: state[weight]["exp_avg_sq"].fill_(float("inf")),
    }
    poison_after(trainer, 18, spoilt[what])
    with pytest.raises(TrainingError, match=f"^{what} is not finite after optimizer step 18;"):
        trainer.fit()
    checkpoint = read_checkpoint(path)
    assert (checkpoint["epoch"], checkpoint["step"]) == (2, 12)
    assert checkpoint["state_dict"]["weight"].isfinite().all()


def test_also_where_no_checkpoint_is_wanted(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    poison_after(trainer, 18, lambda: trainer.model.weight.data.fill_(float("nan")))
    with pytest.raises(TrainingError, match="parameter 'weight' is not finite"):
        trainer.fit()


class Overflowing(nn.Module):
    """Its loss is finite, its gradient overflows float16 whatever it is scaled with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, features: Tensor) -> Tensor:
        prediction = features @ self.weight
        if prediction.requires_grad:
            prediction.register_hook(lambda gradient: gradient * float("inf"))
        return prediction


def test_a_loss_scale_that_collapsed_is_named(tmp_path: Path) -> None:
    """Long before the loss is no number: it stays as it was."""
    options = TrainingOptions(epochs=20, amp=True, amp_dtype="fp16", silent=True, log_dir=tmp_path)
    trainer = Trainer(Overflowing(), LinearData(batch_size=1), options)
    with pytest.raises(TrainingError, match=r"^the loss scale is [0-9.e-]+ after (\d+) optimizer steps: ") as caught:
        trainer.fit()
    assert int(str(caught.value).split(" after ")[1].split()[0]) <= 48
    assert torch.equal(trainer.model.weight, Overflowing().weight)


def test_scales_that_are_in_use_are_none_of_these() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 * SMALLEST_LOSS_SCALE)
    check_loss_scale(scaler, 1)
    check_loss_scale(torch.amp.GradScaler("cpu", init_scale=1e-9, enabled=False), 1)
    for scale in (SMALLEST_LOSS_SCALE / 2, 0.0, float("inf"), float("nan")):
        with pytest.raises(TrainingError, match="loss scale"):
            check_loss_scale(torch.amp.GradScaler("cpu", init_scale=scale), 1)


def test_momentum_begins_with_zero_when_the_first_step_is_left_out() -> None:
    """The fused optimizer leaves its buffers as memory was found, here NaN."""
    weight = nn.Parameter(torch.ones(4))
    sgd = build_optimizer([weight], TrainingOptions(optimizer="sgd", weight_decay=0.0, learning_rate=1.0))
    scaler = torch.amp.GradScaler("cpu")
    torch.use_deterministic_algorithms(True)  # fills memory that is not written with NaN
    try:
        for gradient in (float("inf"), 1.0):
            weight.grad = torch.full((4,), gradient) * scaler.get_scale()
            scaler.scale(torch.zeros(()))
            scaler.step(sgd)
            scaler.update()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(weight, torch.zeros(4))


def no_room(number: int, calls: list[int]) -> Callable[[Any], None]:
    """`os.fsync` that fails for a file, from its so-manieth call on and so many times."""
    original = os.fsync

    def fsync(descriptor: int) -> None:
        calls.append(1)
        if len(calls) <= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    return fsync


def test_a_checkpoint_that_finds_no_room_is_tried_again(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pth"
    seed_everything(1)
    whole = make_trainer()
    whole.fit()
    for failures, is_lost in ((2, False), (3, False), (4, True)):  # three in the run, one more at its end
        path.unlink(missing_ok=True)
        trainer = make_trainer(save_ckpt_path=path, ckpt_interval=1)
        monkeypatch.setattr(os, "fsync", no_room(failures, []))
        trainer.fit()
        monkeypatch.undo()
        assert torch.equal(trainer.model.weight, whole.model.weight)
        warnings = capsys.readouterr().err.splitlines()
        assert len(warnings) == failures
        assert warnings[0].startswith("warning: the checkpoint after optimizer step 6 could not be written (")
        assert "model.pth: No space left on device" in warnings[0]
        assert trainer.lost_checkpoint == (f"{path}: No space left on device" if is_lost else None)
        assert path.exists() != is_lost
        assert not is_lost or list(tmp_path.glob("*model*")) == []


@pytest.mark.parametrize("place", ["", "file/model.pth"])
def test_what_cannot_be_written_is_noticed_before_the_first_step(make_trainer: MakeTrainer, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"directory|exists"):
        make_trainer(save_ckpt_path=tmp_path / place)
    assert make_trainer(save_ckpt_path=tmp_path / place, benchmark=True).steps_done == 0


def test_room_is_asked_for_the_whole_checkpoint(make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda _, start, size: asked.append(size))
    for optimizer in ("adam", "sgd"):
        make_trainer(save_ckpt_path=tmp_path / "model.pth", optimizer=optimizer)
    assert asked == [3 * 12, 2 * 12]
