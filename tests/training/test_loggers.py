"""The JSON-lines log and the group of loggers."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from se3_fast.training import TrainingOptions, World
from se3_fast.training.loggers import JsonLinesLogger, LoggerGroup, open_loggers


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


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    """JSON has no NaN: readers other than Python's refuse it."""
    logger = JsonLinesLogger(tmp_path / "log.json")
    logger.log_metrics({"train_loss": math.nan, "mae": np.float64("inf"), "ratio": 0.5}, 1)
    logger.log_parameters({"data": {"mean": -math.inf, "sizes": [1, math.nan]}})
    logger.close()
    lines = (tmp_path / "log.json").read_text().splitlines()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    data = [json.loads(line.removeprefix("DLLL "), parse_constant=refuse)["data"] for line in lines]
    assert data == [{"train_loss": None, "mae": None, "ratio": 0.5}, {"data": {"mean": None, "sizes": [1, None]}}]


def test_a_line_is_whole_or_not_there(tmp_path: Path) -> None:
    """Where the disk has room for a part of it; the next one is whole again."""
    logger = JsonLinesLogger(tmp_path / "log.json")
    logger.log_metrics({"train_loss": 0.5}, 1)
    file = logger._file

    class Full:
        def write(self, data: bytes) -> int:
            return file.write(data[:20])

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

    logger._file = Full()
    with pytest.raises(OSError, match="No space"):
        logger.log_metrics({"train_loss": 0.25}, 2)
    logger._file = file
    logger.log_metrics({"train_loss": 0.125}, 3)
    logger.close()
    lines = (tmp_path / "log.json").read_text().splitlines()
    assert [json.loads(line.removeprefix("DLLL "))["step"] for line in lines] == [[1], [3]]


class Failing:
    def __init__(self) -> None:
        self.calls = 0

    def log_parameters(self, parameters: object) -> None:
        self._fail()

    def log_metrics(self, metrics: object, step: int | None = None) -> None:
        self._fail()

    def close(self) -> None:
        self._fail()

    def _fail(self) -> None:
        self.calls += 1
        raise ConnectionError("no route\nto the host")


def test_a_logger_that_fails_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = Failing()
    group = LoggerGroup([failing, JsonLinesLogger(tmp_path / "log.json")])
    group.log_parameters({})
    group.log_metrics({"train_loss": 0.5}, 1)
    group.close()
    assert failing.calls == 3
    assert len((tmp_path / "log.json").read_text().splitlines()) == 2
    assert capsys.readouterr().err == "warning: Failing cannot record (no route to the host); the run goes on\n"
