"""The tests of ``make gpu``: which they are, and what is known of them after crashes, hangs and a lost device."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import gpu_tests

ROOT = Path(__file__).parents[2]


def test_files_come_from_the_tree() -> None:
    """What only a GPU can run first; every test of the Triton kernels; those on all backends that go to the GPU."""
    files = gpu_tests.files()
    assert files[0].startswith("tests/gpu/") and len(files) == len(set(files))
    assert {f"tests/backends/triton/{path.name}" for path in (ROOT / "tests/backends/triton").glob("test_*.py")} <= set(files)
    assert {"tests/ops/test_edge_attention_in_frames.py", "tests/model/test_equivariance.py", "tests/ops/test_tfn_conv.py"} <= set(
        files
    )
    assert not [name for name in files if "cpp" in name or "bench" in name]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tests" / "gpu").glob("test_*.py")))
def test_what_only_a_gpu_runs_can_be_imported(name: str) -> None:
    """Of what it imports everything is there, though nothing is collected without a GPU."""
    module = importlib.import_module(f"tests.gpu.{name}")
    assert 'match="' not in Path(module.__file__).read_text(), "messages are constants of the code, so that they cannot part"


FAULTS = """
import os, signal, sys, time
from types import SimpleNamespace

def test_passes(): pass
def test_fails(): assert 1 == 2, "expected"
def test_crashes(): os.kill(os.getpid(), signal.SIGSEGV)
def test_goes_on(): pass
def test_hangs(): time.sleep(60)

def test_loses_the_device():
    def synchronize(): raise RuntimeError("an illegal memory access was encountered")
    sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize))
    synchronize()

def test_has_a_device(): assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("has_xdist", [True, False])
def test_outcomes_survive(has_xdist: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = tmp_path / "test_faults.py"
    tests.write_text(FAULTS)
    monkeypatch.setattr(gpu_tests, "find_spec", lambda name: name == "pytest" or has_xdist)
    monkeypatch.setattr(gpu_tests, "MOST_PROCESSES", 1)
    result = gpu_tests.run([str(tests)], tmp_path, 240.0, 6.0)
    named = {outcome: sorted(name.partition("::")[2] for name in result[outcome]) for outcome in ("failed", "open")}
    assert named == {"failed": ["test_fails", "test_loses_the_device"], "open": ["test_crashes", "test_hangs"]}
    assert result["passed"] == 3 and not gpu_tests.passed(result)
    assert gpu_tests.summary(result).startswith("tests: 3 passed, 0 skipped, 2 failed, 2 open, ")
    assert "test_hangs" in (tmp_path / "tests.stacks").read_text()
    failure = next(entry for entry in map(json.loads, (tmp_path / "tests.jsonl").read_text().splitlines()) if "text" in entry)
    assert "AssertionError: expected" in failure["text"]
    reports = sorted(tmp_path.glob("tests_*.xml"))
    assert len(reports) == 1 and ElementTree.parse(reports[0]).getroot().tag == "testsuites"


def test_time_that_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun is open, what came before is known."""
    monkeypatch.setattr(gpu_tests, "find_spec", lambda name: name == "pytest")
    tests = tmp_path / "test_slow.py"
    tests.write_text("import time\ndef test_first(): pass\ndef test_second(): time.sleep(60)\n")
    result = gpu_tests.run([str(tests)], tmp_path, 15.0, 60.0)
    assert result["passed"] == 1 and [name.partition("::")[2] for name in result["open"]] == ["test_second"]
    assert result["exit_code"] is None and not gpu_tests.passed(result)


def test_without_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tests, "find_spec", lambda name: None)
    result = gpu_tests.run([], tmp_path, 1.0, 1.0)
    assert result["open"] == ["all: pytest is not installed"] and not gpu_tests.passed(result)
