"""``python -m bench.weak_scaling``: the commands it starts, its rows and its file."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from bench import weak_scaling
from bench.weak_scaling import RunFailed, measure, rows, table
from se3_fast.data.qm9 import SAMPLE_PATH

TINY = ["--dataset", "qm9", "--num_layers", "1", "--num_degrees", "2", "--num_channels", "4", "--num_heads", "2"]


def test_the_best_of_each_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([2.0, 3.0, 2.5, 4.0])
    order: list[int] = []

    def next_figure(processes: int, options: Any, threads: int) -> float:
        order.append(processes)
        return next(figures)

    monkeypatch.setattr(weak_scaling, "measure", next_figure)
    one, two = rows([1, 2], [], 1, 2)
    assert order == [1, 2, 1, 2]
    assert (one["molecules_per_ms"], one["efficiency"], one["all_molecules_per_ms"]) == (2.5, 1.0, [2.0, 2.5])
    assert (two["molecules_per_ms"], two["molecules_per_ms_of_a_process"], two["efficiency"]) == (4.0, 2.0, 0.8)
    assert table([one, two]).splitlines()[-1] == "| 2 | 4 | 2 | 80 % |"


@pytest.mark.parametrize("processes", [1, 4])
def test_every_process_has_the_same_number_of_batches(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    started: dict[str, Any] = {}

    def start(command: list[str], env: dict[str, str], **_: Any) -> CompletedProcess[str]:
        started.update(command=command, threads=env["OMP_NUM_THREADS"])
        return CompletedProcess(command, 1, "", "error: no such data\n")

    monkeypatch.setattr(weak_scaling.subprocess, "run", start)
    with pytest.raises(RunFailed, match=f"^{processes} processes: error: no such data$"):
        measure(processes, ["--batch_size", "8"], 3)
    words = started["command"]
    assert words[words.index("--nproc_per_node") + 1] == str(processes)
    assert words[words.index("--epochs") + 1] == str(weak_scaling.WARM_UP_EPOCHS + processes)
    assert words[-2:] == ["--batch_size", "8"] and "--benchmark" in words and started["threads"] == "3"


def test_a_measurement_and_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(weak_scaling, "RESULTS", tmp_path / "results")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "qm9_edge.npz").write_bytes(SAMPLE_PATH.read_bytes())
    words = ["--processes", "1", "--repeats", "1", "--data_dir", str(tmp_path / "data"), "--batch_size", "600", *TINY]
    assert weak_scaling.main(words) == 0
    written = json.loads((tmp_path / "results" / "weak_scaling_cpu.json").read_text())
    only = written["rows"][0]
    assert only["processes"] == 1 and only["molecules_per_ms"] > 0 and only["efficiency"] == 1.0
    assert "commit" in written["environment"] and str(tmp_path) not in json.dumps(written)
    assert capsys.readouterr().out.startswith("| processes |")


def test_a_run_that_fails_gets_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(processes: int, *_: Any) -> float:
        raise RunFailed(f"{processes} processes: error: no such data")

    monkeypatch.setattr(weak_scaling, "measure", fail)
    assert weak_scaling.main(["--processes", "2"]) == 1
    assert capsys.readouterr().err == "2 processes: error: no such data\n"
