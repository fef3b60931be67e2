"""A run that is stopped after any step, or in an evaluation, goes on to the same last bit."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from se3_fast.training import CheckpointError, Trainer, TrainingError, TrainingOptions, read_checkpoint, write_checkpoint
from se3_fast.training.errors import Stopped
from se3_fast.training.random_state import seed_everything
from se3_fast.training.signals import StopSignal

from .conftest import LinearData, LinearModel

EPOCHS = 3


class DrawnOrder(LinearData):
    """Loaders that draw the order, and samples that draw noise, from the generator of the process."""

    def train_dataloader(self) -> DataLoader:
        features, targets = self.ds_train.tensors
        samples = [(feature, target) for feature, target in zip(features, targets, strict=True)]
        return DataLoader(samples, batch_size=4, shuffle=True, collate_fn=self._with_noise)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.ds_val, batch_size=2, shuffle=True)

    def _with_noise(self, samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        features, targets = self._collate(samples)
        return features + 0.1 * torch.randn(features.shape), targets


class StopWhen(StopSignal):
    """A signal that comes at a chosen reading: after an optimizer step, or before a batch of an evaluation."""

    def __init__(self, reading: int) -> None:
        self._left = reading
        super().__init__()
        self.is_watched = True

    @property
    def number(self) -> int | None:
        self._left -= 1
        return signal.SIGTERM if self._left <= 0 else None

    @number.setter
    def number(self, value: int | None) -> None:
        pass


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trainer]:
    def make_trainer(data: type[LinearData] = LinearData, noise: float = 0.1, resume: bool = False, **options: Any) -> Trainer:
        path = tmp_path / "model.pth"
        given = {"epochs": EPOCHS, "silent": True, "log_dir": tmp_path / "log", "save_ckpt_path": path, "eval_interval": 1}
        seed_everything(99 if resume else 7)
        return Trainer(LinearModel(noise), data(), TrainingOptions(**{**given, **options}), resume_from=path if resume else None)

    return make_trainer


def assert_same_run(found: Trainer, expected: Trainer) -> None:
    assert torch.equal(found.model.weight, expected.model.weight)
    assert (found.steps_done, found.epochs_done, found.history) == (expected.steps_done, expected.epochs_done, expected.history)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (LinearData, {}),
        (DrawnOrder, {}),
        (DrawnOrder, {"accumulate_grad_batches": 4}),
        (LinearData, {"max_steps": 10, "learning_rate": 0.1}),
        (DrawnOrder, {"amp": True, "amp_dtype": "fp16", "optimizer": "sgd", "gradient_clip": 0.1, "epochs": 1}),
    ],
)
def test_stopped_anywhere_and_resumed(make: Callable[..., Trainer], data: type[LinearData], options: dict[str, Any]) -> None:
    """After each step, and in each evaluation, of the run; stopped once more after it has gone on."""
    whole = make(data, **options)
    whole.fit()
    reading, was_within = 0, set()
    while True:
        reading += 1
        stopped = make(data, **options)
        stopped.stop_on(StopWhen(reading))
        try:
            stopped.fit()
            break
        except Stopped as stop:
            assert stop.status == 143
        checkpoint = read_checkpoint(stopped.options.save_ckpt_path)
        was_within |= {"position" in checkpoint}
        assert checkpoint["step"] == stopped.steps_done
        again = make(data, resume=True, **options)
        again.stop_on(StopWhen(2))
        with pytest.raises(Stopped):
            again.fit()
        resumed = make(data, resume=True, **options)
        resumed.fit()
        assert_same_run(resumed, whole)
    assert was_within == {True, False}  # in the last evaluation everything is done
    assert reading > whole.steps_done + 2 * whole.epochs_done


def test_a_stop_says_where_to_go_on(make: Callable[..., Trainer], tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    for options, said in (
        ({}, f"stopped by SIGTERM; 4 optimizer steps are done; --load_ckpt_path {path} goes on from there"),
        ({"save_ckpt_path": None}, "stopped by SIGTERM; nothing is saved: no --save_ckpt_path was given"),
    ):
        trainer = make(**options)
        trainer.stop_on(StopWhen(4))
        with pytest.raises(Stopped) as stopped:
            trainer.fit()
        assert str(stopped.value) == said


def test_an_epoch_of_other_batches_goes_on_at_the_same_share(
    make: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    """Six batches became three: after four of six the epoch goes on after the second."""
    stopped = make()
    stopped.stop_on(StopWhen(4))
    with pytest.raises(Stopped):
        stopped.fit()
    caplog.set_level(logging.WARNING)
    resumed = Trainer(LinearModel(0.1), LinearData(batch_size=8), stopped.options, resume_from=stopped.options.save_ckpt_path)
    resumed.fit()
    assert resumed.steps_done == 4 + 1 + 2 * 3
    assert "after batch 4 of 6; of 3 batches the epoch goes on after number 2" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"batches": 7},
        {"batches": -1},
        {"of_batches": 0},
        {"batches": "many"},
        {"losses": []},
        {"losses": [1.0]},
        {"learning_rate": None},
        {"rng": None},
    ],
)
def test_positions_that_are_none_are_refused(make: Callable[..., Trainer], change: dict[str, Any]) -> None:
    stopped = make()
    stopped.stop_on(StopWhen(4))
    with pytest.raises(Stopped):
        stopped.fit()
    path = stopped.options.save_ckpt_path
    checkpoint = read_checkpoint(path)
    for position in ({**checkpoint["position"], **change}, None, "middle"):
        write_checkpoint(path, {**checkpoint, "position": position})
        with pytest.raises(CheckpointError, match=r"model\.pth: (expected a )?position"):
            make(resume=True)


def test_signals_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once outside `deferred`, noted within; handlers are put back; those that ignore stay; a child process ignores it."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    with stop.watched():
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the second one ends the process at once
    assert signal.getsignal(signal.SIGTERM) == before
    stop = StopSignal()
    with stop.watched(), pytest.raises(Stopped, match="stopped by SIGINT"), stop.deferred():
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGINT
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopSignal().watched():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    stop = StopSignal()
    with stop.watched():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGINT)
            os._exit(0 if stop.number is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_torchrun_passes_on_does_not_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _, number: ended.append(number))
    stop = StopSignal()
    with stop.watched(), pytest.raises(Stopped), stop.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert not ended
        monkeypatch.setattr("se3_fast.training.signals.ECHO_SECONDS", -1.0)
        signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM]


class DyingLoader(LinearData):
    """The process that loads data dies with the fourth batch."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()

        class Dying:
            sampler = loader.sampler

            def __len__(self) -> int:
                return len(loader)

            def __iter__(self) -> Iterator[Any]:
                for number, batch in enumerate(loader):
                    if number == 3:
                        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. \nMore")
                    yield batch

        return Dying()


def test_a_process_that_loads_data_and_dies(make: Callable[..., Trainer], tmp_path: Path) -> None:
    whole = make()
    whole.fit()
    (tmp_path / "model.pth").unlink()
    said = r"^a process that loads data has died \(DataLoader worker \(pid 7\)[^\n]*; --load_ckpt_path [^\n]*model\.pth goes on"
    with pytest.raises(TrainingError, match=said):
        make(DyingLoader).fit()
    resumed = make(resume=True)
    assert resumed.steps_done == 3
    resumed.fit()
    assert_same_run(resumed, whole)
    with pytest.raises(TrainingError, match="--save_ckpt_path keeps what was reached"):
        make(DyingLoader, save_ckpt_path=None).fit()


def test_other_errors_stay_what_they_are(make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    trainer = make()
    monkeypatch.setattr(trainer, "batch_loss", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit()


KILLED_WORKER = """
import os, signal, sys
from pathlib import Path
import torch
from torch.utils.data import TensorDataset
from se3_fast.training import Trainer, TrainingError, TrainingOptions
from tests.training.conftest import LinearData, LinearModel

class Killing(TensorDataset):
    def __getitem__(self, number):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)

folder = Path(sys.argv[1])
data = LinearData()
data._dataloader_options |= {"num_workers": 2, "persistent_workers": True}
data.ds_train = Killing(*data.ds_train.tensors)
options = TrainingOptions(epochs=1, silent=True, log_dir=folder / "log", save_ckpt_path=folder / "model.pth")
try:
    Trainer(LinearModel(), data, options).fit()
except TrainingError as error:
    print(error, (folder / "model.pth").exists())
"""


def test_a_killed_worker_is_recognised(run_python: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """By the words that torch finds for it. In a process of its own: torch may raise the error anywhere, and more than once."""
    ended = run_python("-c", KILLED_WORKER, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("a process that loads data has died (") and ended.stdout.endswith(" True\n")
