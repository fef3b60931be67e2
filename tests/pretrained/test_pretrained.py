"""The models in the package are whole, small, as good as their cards say, and careful with molecules that they do not know."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from se3_fast.__main__ import main as se3_fast_main
from se3_fast.data import QM9DataModule
from se3_fast.pretrained import CHECKSUMS, file_checksum, find_model, model_names, model_summary
from se3_fast.pretrained.pack import main as pack
from se3_fast.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from se3_fast.training.model_config import model_of_checkpoint
from se3_fast.training.uncertainty import LastLayerUncertainty, pooled_features

LARGEST = 3_000_000
NAMES = model_names()


@pytest.mark.parametrize("name", NAMES)
def test_models_are_whole(name: str) -> None:
    path = find_model(name)
    assert path.stat().st_size <= LARGEST
    assert f"{file_checksum(path)}  {path.name}\n" in path.with_name(CHECKSUMS).read_text()
    checkpoint = read_checkpoint(path)
    assert {"model_config", "data", "featuriser", "domain", "uncertainty"} <= checkpoint.keys()
    assert model_summary(name).startswith(checkpoint["data"]["task"])


@pytest.mark.parametrize("name", [name for name in NAMES if "qm9" not in name])
def test_errors_and_uncertainties_of_the_cards(name: str) -> None:
    path = find_model(name)
    checkpoint = read_checkpoint(path)
    data = checkpoint["data"]
    model = model_of_checkpoint(path, checkpoint["model_config"], checkpoint["state_dict"])
    data_module = QM9DataModule("unused", data["task"], 128, dataset="sample")
    features, errors = pooled_features(model, data_module.test_dataloader(), torch.device("cpu"))
    deviations = LastLayerUncertainty.of_description(checkpoint["uncertainty"]).deviations(features)
    card = path.with_suffix(".md").read_text()
    told = re.search(r"MAE ([\d.]+) \S+, RMSE", card)
    assert told is not None
    assert np.abs(errors).mean() * data["std"] == pytest.approx(float(told[1]), rel=1e-3)
    assert 0.6 < (np.abs(errors) <= deviations).mean() < 0.85


@pytest.mark.parametrize("name", NAMES)
def test_molecules_of_another_kind_raise_the_flag(name: str) -> None:
    pytest.importorskip("rdkit")
    from se3_fast import Predictor

    predictor = Predictor.from_checkpoint(name)
    known, *others = predictor.predict(["c1ccccc1O", "CC(=O)[O-]", "C[NH3+]", "[Cl-]", "C" * 30])
    assert known.outside == "" and known.value is not None and known.uncertainty is not None and known.uncertainty > 0
    assert all(prediction.outside for prediction in others)
    assert [prediction.value is None for prediction in others] == [True, True, True, False]


def test_features_far_from_those_of_training_raise_the_flag() -> None:
    pytest.importorskip("rdkit")
    from se3_fast import Predictor

    predictor = Predictor.from_checkpoint("homo")
    (uncertainty,) = predictor.uncertainties
    assert uncertainty is not None
    assert predictor.predict(["C1CCOCC1"])[0].outside == ""
    predictor.uncertainties = [replace(uncertainty, farthest=0.01)]
    (prediction,) = predictor.predict(["C1CCOCC1"])
    assert re.fullmatch(r"features at distance [\d.]+ from those of training, most others are within 0.01", prediction.outside)
    assert prediction.value is not None


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"model 'nothing': expected one of .*homo"):
        find_model("nothing")
    assert pack([str(find_model("homo")), "--name", "mine", "--folder", str(tmp_path), "--note", "Packed again."]) == 0
    monkeypatch.setenv("SE3_FAST_MODELS", str(tmp_path))
    assert find_model("mine") == tmp_path / "mine.safetensors"
    assert se3_fast_main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*NAMES, "mine"])
    whole = find_model("mine").read_bytes()
    (tmp_path / "mine.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its checksum is not the one in SHA256SUMS"):
        find_model("mine")


def test_models_of_own_tables_keep_their_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rdkit")
    from se3_fast import Predictor

    source = tmp_path / "own.pth"
    words = ["models", "pack", str(source), "--name", "own", "--folder", str(tmp_path / "models"), "--note", "A try."]
    checkpoint = read_checkpoint(find_model("homo"))
    checkpoint["data"] |= {"dataset": "somewhere/table.csv", "unit": "eV"}
    write_checkpoint(source, checkpoint)
    assert se3_fast_main(words) == 2
    assert "own.pth: expected a checkpoint of a training that is finished; missing: results" in capsys.readouterr().err
    score = {"mae": 0.125, "mean_predictor_mae": 0.5, "known": 12.0}
    write_checkpoint(source, {**checkpoint, "results": {"test": {"homo": score}, "num_train": 1234}})
    assert se3_fast_main(words) == 0
    card = (tmp_path / "models" / "own.md").read_text()
    assert "homo of molecules, test MAE of homo: 0.125 eV (12 molecules)" in card and "1,234 molecules of `table.csv`" in card
    assert "A try. |" in card and "somewhere" not in card
    monkeypatch.setenv("SE3_FAST_MODELS", str(tmp_path / "models"))
    wanted = Predictor.from_checkpoint(source).predict(["CCCCO"])[0]
    found = Predictor.from_checkpoint("own").predict(["CCCCO"])[0]
    assert (found.value, found.uncertainty) == pytest.approx((wanted.value, wanted.uncertainty), abs=1e-6)
