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


def test_the_same_property_in_another_unit_is_another_scale() -> None:
    start = StartingModel.read("homo")
    hartree, trained = 27.211386245988, start.model(Objective("regression", (Property("gap", "eV", 0.0, 1.0),))).eval()
    *inputs, _ = next(iter(QM9DataModule("unused", task="homo", dataset="sample", batch_size=8).test_dataloader()))
    with torch.no_grad():
        wanted = trained(*inputs)
        for unit in ("hartree", ""):  # a table need not say its unit
            mean, std = start.data["mean"] / hartree, start.data["std"] / hartree
            other = start.model(Objective("regression", (Property("homo", unit, mean, std),))).eval()
            torch.testing.assert_close(other(*inputs), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("num_degrees", ["1", "5"])
def test_precomputed_geometry_is_that_of_the_starting_model(tmp_path: Path, num_degrees: str) -> None:
    words = ["--dataset", "sample", "--from", "homo", "--precompute_bases", "--num_degrees", num_degrees]
    words += ["--log_dir", str(tmp_path)]
    trainer = prepare(build_parser().parse_args(words), World(torch.device("cpu")))
    *inputs, _ = next(iter(trainer.data_module.val_dataloader()))
    assert inputs[-1].max_degree == 2
    assert trainer.model(*inputs).isfinite().all()
    trainer.close()


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
