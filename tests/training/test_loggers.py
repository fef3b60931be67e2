"""The JSON-lines log and the group of loggers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from se3_fast.training import TrainingOptions, World
from se3_fast.training.loggers import JsonLinesLogger, open_loggers


def test_every_line_has_the_shape_of_dllogger(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    logger = JsonLinesLogger(path)
    logger.log_parameters({"epochs": 3, "log_dir": tmp_path})
    logger.log_metrics({"train_loss": 0.5}, 1)
    logger.log_metrics({"test_mae": 0.25})
    logger.close()
    lines = path.read_text().splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    records = [json.loads(line.removeprefix("DLLL ")) for line in lines]
    assert all(set(r) == {"timestamp", "datetime", "elapsedtime", "type", "step", "data"} for r in records)
    assert all(float(record["timestamp"]) > 1e9 and record["type"] == "LOG" for record in records)
    assert [record["step"] for record in records] == ["PARAMETER", [1], []]
    assert records[1]["data"] == {"train_loss": 0.5}


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        logger = JsonLinesLogger(tmp_path / "log.json")
        logger.log_metrics({"train_loss": 0.5}, step)
        logger.close()
    assert len((tmp_path / "log.json").read_text().splitlines()) == 2


def test_only_the_main_process_logs(tmp_path: Path) -> None:
    options = TrainingOptions(log_dir=tmp_path / "log")
    loggers = open_loggers(options, World(torch.device("cpu"), rank=1, size=2), 1)
    loggers.log_metrics({"train_loss": 0.5}, 1)
    assert not (tmp_path / "log").exists()


def test_tensorboard_is_on_by_default(tmp_path: Path) -> None:
    loggers = open_loggers(TrainingOptions(log_dir=tmp_path), World(torch.device("cpu")), 1)
    loggers.log_metrics({"train_loss": 0.5}, 1)
    loggers.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(1, 0.5)]


def test_wandb_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"se3_fast\[logging\]"):
        open_loggers(TrainingOptions(log_dir=tmp_path, wandb=True), World(torch.device("cpu")), 1)
