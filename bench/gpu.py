"""Everything that wants a GPU, in one command that ends in time whatever happens: ``python -m bench.gpu`` (or ``make gpu``).

Sections, in order of worth: kernels are compiled, in many processes; tests (numerics, gradients, equivariance, reproducibility,
64-bit addressing); throughput of the published model; operations against the roofline; whole models; memory over sizes; other
libraries; and, with what time is left, the published training run. Each has its time at most; what it leaves the next ones have.

This process opens no device and imports no package. What it starts may crash, hang, run out of memory or lose the device: that row
is listed as not measured, with the reason, and the next one starts in a new process. After every row the results are written to
``<out>/<device>.json``, whole or not at all. With ``--only`` the file keeps what it has of the other sections.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import gpu_tests
from bench.children import CallFailed, Child, one_line, run_command

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]

SECTIONS = ("kernels", "tests", "throughput", "operations", "models", "memory", "rivals", "reproduce")
"""In this order."""

CAPTURE_FAILED = "CaptureFailed"
"""Name of the exception of :mod:`bench.timing`: such a row is measured once more, launch by launch."""

SLOW_STEP_MS = 1e3
"""A sweep over sizes ends after a step that took longer."""

SECONDS_TO_START = 120.0
SECONDS_OF_ROW = 90.0
FEWEST_MINUTES = 2.0
"""Less is not worth a training run."""


@dataclass(frozen=True)
class Plan:
    """What is run, and how long it may take.

    Attributes:
        module: has ``start``, ``rows``, ``measure`` and ``summarise``, as :mod:`bench.sections`.
        refused_device: a device that is not meant.
        preload: what takes long to import and opens no device, once for all processes that measure.
        seconds: what sections may take at most; others take what is left.
        row_seconds: what a row of a section may take; 90 where none is said.
        test_seconds: what a test may take.
        tests: the files of the tests.
    """

    module: str = "bench.sections"
    refused_device: str = "cpu"
    preload: tuple[str, ...] = ("torch", "triton")
    seconds: dict[str, float] = field(
        default_factory=lambda: {"kernels": 90.0, "tests": 180.0, "throughput": 180.0, "operations": 120.0}
    )
    row_seconds: dict[str, float] = field(default_factory=dict)
    test_seconds: float = 60.0
    tests: Sequence[str] = ()


class Run:
    """The results so far, the time that is left, and the process that measures.

    Args:
        plan: what is run.
        seconds: for all of it.
        out: folder of the results.
        data_dir: folder of ``qm9_edge.npz``, if there is one.
        scratch: folder for what is made on the way.
    """

    def __init__(self, plan: Plan, seconds: float, out: Path, data_dir: Path | None, scratch: Path) -> None:
        self.plan, self.out, self.data_dir = plan, out, data_dir
        self.end = self.deadline = time.monotonic() + seconds
        self.files = {"data_dir": data_dir, "scratch": scratch, "out": out}
        self.child = Child(plan.preload)
        self.results: Row = {"not measured": []}
        self.path = out / "device.json"

    def open_device(self) -> None:
        """Find out what the device is, and take over what its file has.

        Raises:
            CallFailed: there is no device that answers.
        """
        found = self._call("start", {}, SECONDS_TO_START)
        if found["name"] == self.plan.refused_device:
            raise CallFailed("refused", f"expected a CUDA device, got {found['name']}")
        self.path = self.out / f"{found['name']}.json"
        if self.path.exists():
            self.results = json.loads(self.path.read_text())
        self.results["environment"] = found["environment"]

    def begin(self, section: str) -> None:
        """From now on the time that is left is that of a section; what an earlier run has of it is dropped."""
        self.deadline = min(self.end, time.monotonic() + self.plan.seconds.get(section, float("inf")))
        self.results[section] = []
        self.results["not measured"] = [row for row in self.results.get("not measured", []) if row.get("section") != section]

    def seconds_left(self) -> float:
        """Of the section."""
        return self.deadline - time.monotonic()

    def measure(self, section: str, row: Row, **options: Any) -> Row | None:
        """Add a row with its figures, or say why there are none: no time, no memory, an error."""
        seconds = min(self.plan.row_seconds.get(section, SECONDS_OF_ROW), self.seconds_left())
        if seconds <= 0:
            self.lack(section, row, "out of time")
            return None
        try:
            found = self._call("measure", {"section": section, "row": row | options, "files": self.files}, seconds)
        except CallFailed as error:
            if error.kind == CAPTURE_FAILED and not options:
                print(f"{section} {json.dumps(row)}: {error}; once more without a capture", flush=True)
                return self.measure(section, row, is_captured=False)
            self.lack(section, row, str(error))
            return None
        found = row | found
        self.results[section].append(found)
        print(section, json.dumps(found), flush=True)
        self.write()
        return found

    def lack(self, section: str, row: Row, reason: str) -> None:
        """Note what was not measured."""
        self.results["not measured"].append({"section": section, **row, "reason": reason})
        print(section, json.dumps(row), "not measured:", reason, flush=True)
        self.write()

    def rows(self, section: str) -> list[Row]:
        """What there is to measure in a section; nothing where that cannot be said."""
        try:
            return self._call("rows", {"section": section}, SECONDS_TO_START)
        except CallFailed as error:
            self.lack(section, {}, str(error))
            return []

    def summarise(self, section: str) -> None:
        """Print what a section found, and add what its rows say together."""
        if not self.results[section]:
            return
        arguments = {"section": section, "results": self.results[section], "files": self.files}
        try:
            found = self._call("summarise", arguments, SECONDS_TO_START)
        except CallFailed as error:
            self.lack(section, {"row": "summary"}, str(error))
            return
        print(found.pop("text"), flush=True)
        self.results[section] = found.pop("rows", self.results[section])
        self.results |= {f"{section}: {name}": value for name, value in found.items()}
        self.write()

    def write(self) -> None:
        """Write everything so far, whole or not at all."""
        partial = self.path.with_suffix(f".{os.getpid()}.part")
        partial.write_text(json.dumps(self.results, indent=1) + "\n")
        partial.replace(self.path)

    def _call(self, name: str, arguments: Row, seconds: float) -> Any:
        return self.child.call(f"{self.plan.module}:{name}", arguments, seconds)


def run_section(run: Run, section: str) -> None:
    """Do all that a section has, or as much as its time allows; whatever fails in it, the next one has its turn."""
    run.begin(section)
    try:
        _run_section(run, section)
    except Exception as error:
        traceback.print_exc()
        run.lack(section, {}, f"{type(error).__name__}: {one_line(error)}")


def _run_section(run: Run, section: str) -> None:
    if section == "tests":
        run.child.stop()  # the tests have the device for themselves
        run.results["tests"] = gpu_tests.run(run.plan.tests, run.out, run.seconds_left(), run.plan.test_seconds)
    elif section == "reproduce":
        _reproduce(run)
    else:
        _measure_rows(run, section)
        run.summarise(section)
    run.write()


def _measure_rows(run: Run, section: str) -> None:
    """Every row; of a sweep over sizes those that come before one that failed, or took long."""
    ended: dict[tuple[str, str], str] = {}
    for row in run.rows(section):
        sweep = (row.get("sweep", ""), row.get("backend", ""))
        if sweep in ended:
            run.lack(section, row, ended[sweep])
            continue
        found = run.measure(section, row)
        if sweep[0] and (found is None or found.get("step_ms", 0.0) > SLOW_STEP_MS):
            ended[sweep] = "the size before failed, or took too long"


def _reproduce(run: Run) -> None:
    """The published training run, on QM9, for as many epochs as the time allows."""
    run.child.stop()
    minutes = (run.seconds_left() - 30.0) / 60.0
    if run.data_dir is None or not (run.data_dir / "qm9_edge.npz").exists():
        run.lack("reproduce", {}, "no qm9_edge.npz: --data_dir names its folder")
    elif minutes < FEWEST_MINUTES:
        run.lack("reproduce", {}, "out of time")
    else:
        options = ["--minutes", f"{minutes:.2f}", "--data_dir", str(run.data_dir), "--out", str(run.out)]
        code = run_command([sys.executable, "-m", "bench.reproduce", *options], run.seconds_left())
        run.results["reproduce"] = [{"minutes": minutes, "exit_code": code}]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=570.0, help="end after this time (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="these sections")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the results")
    parser.add_argument("--data_dir", type=Path, help="folder of qm9_edge.npz; without it the sample is repeated to its size")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run all; 0 where the tests passed, or were not asked for."""
    arguments = parse(words)
    return run_plan(Plan(tests=gpu_tests.files()), arguments)


def run_plan(plan: Plan, arguments: argparse.Namespace) -> int:
    """Run the sections that were asked for."""
    signal.signal(signal.SIGTERM, _end)
    out, data_dir = arguments.out.resolve(), arguments.data_dir and arguments.data_dir.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(plan, arguments.seconds, out, data_dir, Path(scratch))
        with run.child:
            try:
                run.open_device()
            except CallFailed as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            for section in SECTIONS:
                if section in arguments.only:
                    run_section(run, section)
    print(f"{run.path}; not measured: {len(run.results['not measured'])}")
    if "tests" not in arguments.only:
        return 0
    tests = run.results["tests"] or gpu_tests.NOT_RUN
    print(gpu_tests.summary(tests))
    return 0 if gpu_tests.passed(tests) else 1


def _end(number: int, _: Any) -> None:
    """A signal to end ends the children too."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
