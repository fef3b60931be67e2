"""The published program beside ours, on the CPU: ``python -m bench.published FOLDER``.

FOLDER holds ``se3_transformer``, NVIDIA's SE(3)-Transformer as it was published (NVIDIA/DeepLearningExamples,
DGLPyTorch/DrugDiscovery/SE3Transformer); it needs e3nn, and takes DGL if that is installed. ``--before`` names another checkout of
this project, with its C++ operations built, that is measured too.

Every contestant lives in a process of its own. All have the same parameters and the same batch, in float32; what they compute,
gradients included, is compared before anything is timed. Then they take turns, round by round. The published program makes its bases
in every pass, as ours makes its edge frames. The tuned allocator is the C library told to keep what is freed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.children import CallFailed, Child
from bench.published import tables

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]

WORKLOADS = ("qm9:1", "qm9:16", "qm9:32", "protein_refine:150", "protein_wide:150")
"""Workloads and sizes of :mod:`bench.workloads`, molecules of a batch or residues."""

ALLOCATORS = ("default", "tuned")
PASSES = ("forward", "forward+backward")
ROUNDS = 7
SECONDS_OF_TURN = 0.25
SECONDS_OF_CALL = 600.0
CONTESTANT = "bench.published.contestant"


@dataclass(frozen=True)
class Contestant:
    """Who is measured.

    Attributes:
        name: ``published``, ``ours`` or ``before``.
        folder: that its package is imported from.
    """

    name: str
    folder: Path

    @property
    def kind(self) -> str:
        """What its functions of :mod:`bench.published.contestant` are called after."""
        return "published" if self.name == "published" else "ours"


class Started:
    """A contestant in its process.

    Args:
        contestant: who.
        threads: that compute.
        allocator: one of :data:`ALLOCATORS`.
    """

    def __init__(self, contestant: Contestant, threads: int, allocator: str) -> None:
        self.contestant = contestant
        self.child = Child(preload=())
        folder = str(contestant.folder.resolve())
        self.child.call("bench.published.process:enter", {"folders": [folder], "threads": threads}, SECONDS_OF_CALL)
        setting = {"folder": folder, "threads": threads, "keeps_freed_memory": allocator == "tuned"}
        self.details = self.call(f"start_{contestant.kind}", **setting)

    def call(self, function: str, **arguments: Any) -> Any:
        """What a function of :mod:`bench.published.contestant` returns.

        Raises:
            CallFailed: with the contestant's name.
        """
        try:
            return self.child.call(f"{CONTESTANT}:{function}", arguments, SECONDS_OF_CALL)
        except CallFailed as error:
            raise CallFailed(error.kind, f"{self.contestant.name}: {error}") from None

    def read(self, workload: str, path: Path) -> None:
        """Make its model of a workload."""
        self.call(f"read_{self.contestant.kind}", name=workload, path=str(path))

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.stop()


def measured(contestants: Sequence[Contestant], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare and time all; the content of the file."""
    load = os.getloadavg()[1]
    result: dict[str, Any] = {"rows": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for threads in arguments.threads:
            for allocator in arguments.allocator:
                with ExitStack() as stack:
                    started = [stack.enter_context(Started(each, threads, allocator)) for each in contestants]
                    result["contestants"] = {each.contestant.name: each.details for each in started}
                    for workload in arguments.workloads:
                        setting = {"threads": threads, "allocator": allocator}
                        result["rows"] += _show(_timed(started, workload, arguments.rounds, folder), setting)
        result["rows"] += _show(_peaks(contestants, arguments.workloads, folder), {})
    result["environment"] = result["contestants"]["ours"]["environment"] | {"load_average": [load, os.getloadavg()[1]]}
    for details in result["contestants"].values():
        details.pop("environment", None)
    result["clock"] = "processor time with one thread, otherwise wall time"
    return result


def _show(rows: Sequence[Row], setting: dict[str, Any]) -> list[Row]:
    for row in rows:
        row |= setting
        print(json.dumps(row), flush=True)
    return list(rows)


def _timed(started: Sequence[Started], workload: str, rounds: int, folder: Path) -> list[Row]:
    """Rows of every pass and contestant; the first of ``started`` is ours."""
    found = _given(started, workload, folder)
    differences = _differences(started, folder)
    rows = []
    for direction in PASSES:
        times: dict[str, list[float]] = {each.contestant.name: [] for each in started}
        for number in range(rounds + 1):
            for each in started if number % 2 else reversed(started):
                seconds = each.call("seconds_of", direction=direction, at_least=SECONDS_OF_TURN)
                if number > 0:  # the first round warms up
                    times[each.contestant.name] += seconds
        for name, seconds in times.items():
            row = {"workload": workload, **found, "pass": direction, "contestant": name, "difference": differences[name]}
            rows.append(row | {"median_ms": 1e3 * median(seconds), "least_ms": 1e3 * min(seconds), "steps": len(seconds)})
    return rows


def _given(started: Sequence[Started], workload: str, folder: Path) -> dict[str, int]:
    """Give all the parameters and the batch of a workload; its nodes and edges."""
    name, _, size = workload.partition(":")
    path = folder / "workload.pt"
    found = started[0].call("write_workload", name=name, size=int(size), path=str(path))
    for each in started:
        each.read(name, path)
    return found


def _differences(started: Sequence[Started], folder: Path) -> dict[str, float]:
    """How far what each computes is from ours."""
    for each in started:
        each.call("write_values", path=str(folder / f"{each.contestant.name}.pt"))
    ours = started[0]
    paths = {each.contestant.name: str(folder / f"{each.contestant.name}.pt") for each in started}
    return {name: ours.call("difference", path=path, path_of_ours=paths["ours"]) for name, path in paths.items()}


def _peaks(contestants: Sequence[Contestant], workloads: Sequence[str], folder: Path) -> list[Row]:
    """Rows of the memory of a training step, each measured in a new process, with one thread."""
    rows = []
    for workload in workloads:
        for contestant in contestants:
            with Started(contestants[0], 1, "default") as ours, Started(contestant, 1, "default") as started:
                found = _given([ours, started], workload, folder)
                peak = started.call("peak_bytes") / 2**20
            rows.append({"workload": workload, **found, "pass": "memory", "contestant": contestant.name, "peak_MiB": peak})
    return rows


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.published", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds se3_transformer, as it was published")
    parser.add_argument("--before", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="in which every contestant has its turn")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--allocator", nargs="+", choices=ALLOCATORS, default=ALLOCATORS)
    parser.add_argument("--workloads", nargs="+", default=WORKLOADS, metavar="NAME:SIZE", help=" ".join(WORKLOADS))
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--pages", action="store_true", help="bring the tables of README.md and docs up to date with this run")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    arguments = parse(words)
    contestants = [Contestant("ours", ROOT), Contestant("published", arguments.folder)]
    if arguments.before:
        contestants.append(Contestant("before", arguments.before))
    try:
        result = measured(contestants, arguments)
    except CallFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(tables.full_table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.pages:
        tables.write_pages(result, ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
