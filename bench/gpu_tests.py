"""The tests that run on a GPU, in processes that may crash or hang: what is not known when time is up is said to be open."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.children import run_command

TESTS = Path(__file__).parents[1] / "tests"
FOLDERS = ("gpu", "backends/triton", "backends/cuda")
MARKS = ("TRITON_DEVICE", "device_of")
"""What a test names one of that runs kernels where there is a GPU (tests/support.py)."""

LOG, SECONDS, BEGUN = "SE3_FAST_TEST_LOG", "SE3_FAST_TEST_SECONDS", "SE3_FAST_TESTS_BEGUN"
"""Variables that tell :mod:`bench.pytest_guard` where outcomes go, what a test may take, and which file lists those that
have begun before. The list stays what it was when pytest started: all processes of pytest-xdist have to collect the same tests.
"""

NOT_RUN: dict[str, Any] = {"open": ["all"], "seconds": 0.0}
"""What tests came to that could not be started."""

MOST_PROCESSES = 8
OUTCOMES = ("passed", "skipped", "failed")


def files() -> list[str]:
    """The files of the tests that run on a GPU where there is one, those that only a GPU can run first."""
    folders = [path for folder in FOLDERS for path in sorted((TESTS / folder).glob("test_*.py"))]
    others = [path for path in sorted(TESTS.rglob("test_*.py")) if path not in folders and _runs_kernels(path)]
    return [str(path.relative_to(TESTS.parent)) for path in (*folders, *others)]


def _runs_kernels(path: Path) -> bool:
    text = path.read_text()
    return any(mark in text for mark in MARKS)


def run(tests: Sequence[str], out: Path, seconds: float, test_seconds: float) -> dict[str, Any]:
    """Run tests; what they came to.

    ``out`` has the outcomes as they become known (``tests.jsonl``), where a test stood that took too long (``tests.stacks``), and
    what pytest says in JUnit's format (``tests_<n>.xml``: it is started again where it was ended by a test).

    Args:
        tests: their files.
        out: folder for what is written.
        seconds: for all of them.
        test_seconds: for each.
    """
    start = time.monotonic()
    if find_spec("pytest") is None:
        return {"open": ["all: pytest is not installed"], "seconds": 0.0}
    log = out / "tests.jsonl"
    for old in (log, log.with_suffix(".stacks"), *out.glob("tests_*.xml")):
        old.unlink(missing_ok=True)
    code: int | None = None
    for number in range(1, 1000):
        begun = [entry["begun"] for entry in entries(log, "begun")]
        left = seconds - (time.monotonic() - start)
        variables = {LOG: str(log), SECONDS: str(test_seconds), BEGUN: str(out / "tests.begun")}
        (out / "tests.begun").write_text("\n".join(begun))
        code = run_command([*_pytest(), f"--junitxml={out}/tests_{number}.xml", *tests], left, variables)
        if code is None or entries(log, "finished") or len(entries(log, "begun")) == len(begun):
            break
    return {**_outcomes(log), "exit_code": code, "seconds": round(time.monotonic() - start, 1)}


def passed(result: dict[str, Any]) -> bool:
    """Whether every test came to an end, and none failed."""
    return not result["open"] and not result.get("failed") and result.get("exit_code") == 0


def summary(result: dict[str, Any]) -> str:
    """The outcome on one line."""
    counts = [f"{len(names) if isinstance(names, list) else names} {name}" for name, names in result.items() if name != "exit_code"]
    return f"tests: {', '.join(counts)}"


def entries(log: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a log that are of a kind; a process that was ended may have left a part of one."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        with suppress(json.JSONDecodeError):
            entry = json.loads(line)
            found += [entry] if kind in entry else []
    return found


def _pytest() -> list[str]:
    """Several processes where pytest-xdist is installed."""
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    spread = ["-n", str(processes), "--max-worker-restart=1000"] if find_spec("xdist") else []
    options = ["-q", "--tb=short", "-p", "bench.pytest_guard", "--continue-on-collection-errors"]
    return [sys.executable, "-m", "pytest", *options, *spread]


def _outcomes(log: Path) -> dict[str, Any]:
    """Numbers of those that passed and were skipped, names of the others; open are those that did not come to an end."""
    ended = {entry["ended"]: entry for entry in entries(log, "ended")}
    named = {outcome: [name for name, entry in ended.items() if entry["outcome"] == outcome] for outcome in OUTCOMES}
    begun = [entry["begun"] for entry in entries(log, "begun")]
    return {
        "passed": len(named["passed"]),
        "skipped": len(named["skipped"]),
        "failed": named["failed"],
        "open": [name for name in begun if name not in ended],
    }
