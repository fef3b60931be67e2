"""Training that begins with a trained model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from se3_fast.data import QM9DataModule
from se3_fast.data.objective import Objective, Property
from se3_fast.pretrained import find_model
from se3_fast.train import build_parser, main, prepare
from se3_fast.training.checkpoint import read_checkpoint
from se3_fast.training.distributed import World
from se3_fast.training.starting_model import StartingModel


def test_another_scale_changes_no_prediction() -> None:
    start = StartingModel.read("homo")
    data = start.data
    same = start.model(Objective("regression", (Property("homo", "eV", data["mean"], data["std"]),))).eval()
    other = start.model(Objective("regression", (Property("homo", "eV", -6.5, 0.6),))).eval()
    *inputs, _ = next(iter(QM9DataModule("unused", task="homo", dataset="sample", batch_size=8).test_dataloader()))
    with torch.no_grad():
        wanted = same(*inputs) * data["std"] + data["mean"]
        torch.testing.assert_close(other(*inputs) * 0.6 - 6.5, wanted, atol=1e-4, rtol=1e-5)


def test_fine_tuning_begins_where_the_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "sample", "--from", "homo", "--seed", "1", "--log_dir", str(tmp_path), "--num_layers", "5", "--norm"]
    trainer = prepare(build_parser().parse_args(words), World(torch.device("cpu")))
    start = read_checkpoint(find_model("homo"))
    assert trainer.metadata["model_config"] == start["model_config"]  # not five layers
    found = trainer.model.state_dict()
    for name, wanted in start["state_dict"].items():
        torch.testing.assert_close(found[name], wanted.float(), atol=1e-5, rtol=1e-5)
    trainer.close()
    assert capsys.readouterr().err == "warning: --num_layers 5 is not used: homo has 3\n"


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", "sample", "--from", "nothing", "--log_dir", str(tmp_path)]) == 2
    assert "model 'nothing': expected one of" in capsys.readouterr().err
