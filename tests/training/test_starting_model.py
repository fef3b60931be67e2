"""Training that begins with a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from se3_fast.data import QM9DataModule
from se3_fast.pretrained import find_model
from se3_fast.train import main
from se3_fast.training.checkpoint import read_checkpoint
from se3_fast.training.evaluation import TargetScale
from se3_fast.training.starting_model import StartingModel


def test_another_scale_changes_no_prediction() -> None:
    start = StartingModel.read("homo")
    data = start.data
    same = start.model("homo", TargetScale(data["mean"], data["std"], "eV")).eval()
    other = start.model("homo", TargetScale(-6.5, 0.6, "eV")).eval()
    *inputs, _ = next(iter(QM9DataModule("unused", task="homo", dataset="sample", batch_size=8).test_dataloader()))
    with torch.no_grad():
        wanted = same(*inputs) * data["std"] + data["mean"]
        torch.testing.assert_close(other(*inputs) * 0.6 - 6.5, wanted, atol=1e-4, rtol=1e-5)


def test_fine_tuning_begins_where_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pth"
    run = f"--dataset sample --num_workers 0 --seed 1 --silent --log_dir {tmp_path} --save_ckpt_path {path}"
    common = [*run.split(), "--from", "homo", "--lr", "1e-6", "--batch_size", "128"]
    assert main([*common, "--max_steps", "1"]) == 0
    error = float(capsys.readouterr().out.split("test MAE of homo: ")[1].split()[0])
    assert error < 0.12  # a model from scratch has 0.6 after a step
    checkpoint, start = read_checkpoint(path), read_checkpoint(find_model("homo"))
    assert checkpoint["model_config"] == start["model_config"]
    assert checkpoint["step"] == 1


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", "sample", "--from", "nothing", "--log_dir", str(tmp_path)]) == 2
    assert "model 'nothing': expected one of" in capsys.readouterr().err
