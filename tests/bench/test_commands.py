"""``python -m bench`` and ``python -m bench.gpu``: their rows, their files, and what is done where time runs out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import bench.__main__ as command
from bench import gpu, rivals, scaling, throughput
from bench.registry import BENCHMARKS
from bench.workloads import BACKENDS, SIZES


@pytest.fixture(autouse=True)
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for module in (command, gpu):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
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
    monkeypatch.setattr(command, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert command.device_name() == "NVIDIA_H200"


def test_rows_of_the_gpu_command() -> None:
    models, operations = list(gpu._models()), list(gpu._operations())
    assert len(models) == len(SIZES) * 2 * 2 * len(BACKENDS)
    assert {row["operation"] for row in operations} == set(BENCHMARKS)
    assert not any(row["operation"] in ("edge_frames", "basis") and row["precision"] == "float16" for row in operations)
    assert set(gpu.SHARES) == set(gpu.SECTIONS) and gpu.SHARES[gpu.SECTIONS[-1]] == 1.0
    assert sorted(gpu.SHARES.values()) == [gpu.SHARES[section] for section in gpu.SECTIONS]


def a_row(sweep: str, **more: Any) -> dict[str, Any]:
    return {"sweep": sweep, "backend": BACKENDS[-1], "edges": 100, "max_degree": 2, **more}


def test_gpu_command_measures_every_section(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the measurements replaced: what is there is written, what is not says why, and plots are made."""
    run = gpu.Run(60.0)
    monkeypatch.setattr(throughput, "measure", lambda data, **row: {"molecules_per_ms": 1.0})
    monkeypatch.setattr(rivals, "measure", lambda name: {"forward_ms": 1.0, "step_ms": 2.0, "times_ours": 1.0} | PEAK)
    sweeps = {"edges": [a_row("edges", step_ms=1.0, peak_MiB=1.0)], "degrees": [a_row("degrees", reason="no memory")]}
    monkeypatch.setattr(scaling, "sweep_edges", lambda limits: sweeps["edges"])
    monkeypatch.setattr(scaling, "sweep_degrees", lambda limits: sweeps["degrees"])
    monkeypatch.setattr(scaling, "largest_graph", lambda backend, deadline: {"edges": 100})
    gpu._measure_throughput(run, None)
    gpu._measure_rivals(run)
    gpu._measure_scaling(run)
    run.write()
    written = json.loads(run.file.read_text())
    assert len(written["throughput"]) == len(list(throughput.cases()))
    assert {row["name"] for row in written["rivals"]} >= {*BACKENDS, "e3nn"}
    assert written["scaling"] == sweeps["edges"] and sweeps["degrees"][0] in written["not measured"]
    assert [row["backend"] for row in written["largest graph"]] == list(reversed(BACKENDS))
    assert {file.suffix for file in results.iterdir()} == {".json", ".png"}


PEAK = {"peak_MiB": 1.0, "difference": 0.0}


def test_gpu_command_lists_what_time_did_not_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    run = gpu.Run(0.0)
    run.begin("throughput")
    gpu._measure_throughput(run, None)
    gpu._measure_models(run)
    reasons = {row["reason"] for row in run.results["not measured"]}
    assert reasons == {"out of time"} and not run.results["throughput"] and not run.results["models"]
    num_assemblies, num_launch_counts = 1, 2 * len(SIZES)
    num_rows = num_assemblies + len(list(throughput.cases())) + num_launch_counts + len(list(gpu._models()))
    assert len(run.results["not measured"]) == num_rows
