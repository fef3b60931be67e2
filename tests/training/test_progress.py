"""What a run says before its first step, and how long it says that it will take."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from se3_fast import backend
from se3_fast.backends.choice import described_choice
from se3_fast.train import build_parser
from se3_fast.train import main as train
from se3_fast.train_forces import main as train_forces
from se3_fast.training import Trainer, TrainingOptions
from se3_fast.training.distributed import World
from se3_fast.training.progress import Pace, block, duration, run_facts

from .conftest import LinearData, LinearModel


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (121, "3 min"),
        (7199, "120 min"),
        (7200, "2 h 0 min"),
        (12_000, "3 h 20 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("se3_fast.training.progress.time.perf_counter", lambda: now)
    pace = Pace(10)
    assert pace.seconds_left(10, 50) == 0.0
    now = 108.0
    assert pace.seconds_left(14, 50) == pytest.approx(72.0)  # 2 s for each step of this run
    assert pace.seconds_left(50, 50) == 0.0


def test_facts(tmp_path: Path) -> None:
    options = TrainingOptions(epochs=3, max_steps=5, log_dir=tmp_path, save_ckpt_path=tmp_path / "model.pth", silent=True)
    trainer = Trainer(LinearModel(), LinearData(), options, metadata={"seed": 7})
    facts = dict(run_facts(trainer))
    sizes = [len(part) for part in (trainer.data_module.ds_train, trainer.data_module.ds_val, trainer.data_module.ds_test)]
    assert facts["data"] == "LinearData: {} to train on, {} to validate on, {} to test on".format(*sizes)
    assert facts["device"].startswith("cpu: ") and facts["seed"] == "7" and "split" not in facts
    assert facts["epochs"] == "0 of 3 done, at most 5 steps"
    assert facts["results"] == f"{tmp_path}; checkpoint {tmp_path / 'model.pth'}"
    trainer.world = replace(trainer.world, size=4)
    assert dict(run_facts(trainer))["device"].endswith(", 4 processes")
    assert block([("a", "1"), ("long", "2")]) == "a     1\nlong  2"
    trainer.close()


def test_why_a_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with backend("torch"):
        assert described_choice(cpu) == "torch (asked for by the program)"
    monkeypatch.setenv("SE3_FAST_BACKEND", "dense")
    assert described_choice(cpu) == "dense (asked for by SE3_FAST_BACKEND)"
    monkeypatch.setenv("SE3_FAST_BACKEND", "auto")
    monkeypatch.setattr("se3_fast.backends.choice._is_there", lambda _: True)
    assert described_choice(cpu) == "cpp (the fastest that is there)"
    monkeypatch.setattr("se3_fast.backends.choice._is_there", lambda _: False)
    monkeypatch.setattr("se3_fast.backends.choice._say_once_how_to_get_cpp", lambda: None)
    assert described_choice(cpu) == "torch (cpp is not there)"


def test_a_run_tells_before_its_first_step_and_how_long_it_takes(
    few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--num_layers 1 --num_degrees 1 --num_channels 4 --num_heads 1 --batch_size 16 --epochs 2 --num_workers 0 --seed 3"
    words = [*sizes.split(), "--data_dir", str(few_molecules), "--log_dir", str(tmp_path), "--device", "cpu"]
    assert train(words) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("epoch "))
    named = [line.split()[0] for line in lines[:first]]
    assert named == ["device", "backend", "model", "data", "split", "seed", "epochs", "results"]
    assert re.fullmatch(r"epoch 1/2: loss [\d.]+, [\d.]+ s; \d+ s left", lines[first])
    assert re.fullmatch(r"epoch 2/2: loss [\d.]+, validation MAE [\d.]+ eV, [\d.]+ s", lines[first + 1])
    assert train([*words, "--silent"]) == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith(("device ", "epoch "))]
    assert build_parser().parse_args([]).log_level == "info"


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (train, "--num_heads 3", "--num_heads 3: expected a divisor of 16, which is --num_channels 32 by --channels_div 2"),
        (train, "--num_channels 5", "--channels_div 2: expected a divisor of --num_channels, which is 5"),
        (train_forces, "--num_degrees 8", "--num_degrees 8: expected at most 7"),
    ],
)
def test_sizes_that_do_not_fit_name_the_options(
    command: Callable[[list[str]], int], words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([*words.split(), "--log_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_backend_that_does_not_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SE3_FAST_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    trainer = Trainer(LinearModel(), LinearData(), TrainingOptions(log_dir=tmp_path), World(torch.device("cpu")))
    with pytest.raises(ValueError, match="backend triton: expected tensors on a CUDA device"):
        run_facts(trainer)
