"""``python -m bench``: its sections and its file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import bench.__main__ as command
from bench import environment


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    return tmp_path


def test_sections_are_written_beside_each_other(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = results / f"{command.device_name()}.json"
    file.write_text(json.dumps({"environment": {"commit": "before"}, "rows": [1], "tuned_allocator": [2]}))
    monkeypatch.setitem(command.SECTIONS, "scaling", lambda arguments: {"rows": [3]})
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "scaling"])
    assert command.main() == 0
    written = json.loads(file.read_text())
    assert written["environment"] == {"commit": "before"} and written["rows"] == [1] and written["tuned_allocator"] == [2]
    assert written["scaling"]["rows"] == [3] and "commit" in written["scaling"]["environment"]


def test_models_that_fail_give_their_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.pytest, "main", lambda arguments: 4)
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "models", "-k", "qm9"])
    assert command.main() == 4


def test_name_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert environment.device_name() == "NVIDIA_H200"
