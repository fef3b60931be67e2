"""``make gpu`` rehearsed: a row that crashes, one that hangs, one that runs out of memory, one that cannot be captured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the results of a rehearsal, which has gone well."""
    folder = tmp_path_factory.mktemp("rehearsal")
    command = [sys.executable, "-m", "bench.rehearsal", "--out", str(folder)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    assert re.search(r"\d passed in ", finished.stdout), "pytest's output is shown"
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "cpu.json").read_text())


def test_what_failed_is_said_with_its_reason(results: dict[str, Any]) -> None:
    reasons = {(row["section"], row.get("fault") or row.get("name")): row["reason"] for row in results["not measured"]}
    assert reasons == {
        ("throughput", "crash"): "the process ended by signal 11 (SIGSEGV)",
        ("models", "error"): "OutOfMemoryError: CUDA out of memory",
        ("rivals", "hang"): "stopped after 4 s",
        ("rivals", "cuEquivariance"): "LookupError: not installed",
        ("reproduce", None): "no qm9_edge.npz: --data_dir names its folder",
    }


def test_all_others_are_measured(results: dict[str, Any]) -> None:
    assert {row["mode"] for row in results["throughput"]} == {"training", "inference"}
    assert all(row["molecules_per_ms"] > 0 for row in results["throughput"])
    operations = {(row["operation"], row.get("pass"), row.get("backend")): row for row in results["operations"]}
    assert operations["rates", None, None]["bytes_per_second"] > 0
    assert not operations["waiting", "forward", "triton"]["is_captured"]
    for passes in ("forward", "forward+backward"):
        ours = operations["pooling", passes, "triton"]
        assert ours["is_captured"] and ours["roofline_fraction"] > 0 and ours["speed_up"] > 0
        assert not operations["pooling", passes, "torch"]["is_captured"]
    assert [row["pass"] for row in results["models"]] == ["forward"]
    assert [row["edges"] for row in results["memory"] if row["sweep"] == "edges"] == [4, 8]
    assert results["memory: fits"][0]["sweep"] == "edges"


def test_kernels_are_recorded_first(results: dict[str, Any]) -> None:
    (row,) = results["kernels"]
    assert row["launches"] == row["compiled"] > 20 and row["failures"] == []


def test_files(out: Path, results: dict[str, Any]) -> None:
    assert results["tests"]["passed"] > 5 and results["tests"]["failed"] == results["tests"]["open"] == []
    assert {"cpu.json", "tests.jsonl", "tests_1.xml"} <= {path.name for path in out.iterdir()}
    assert not [path for path in out.iterdir() if path.suffix == ".part"]
