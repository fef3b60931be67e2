"""The published program beside ours, on the CPU: ``python -m bench.published FOLDER``.

FOLDER holds ``se3_transformer``, NVIDIA's SE(3)-Transformer as it was published (NVIDIA/DeepLearningExamples,
DGLPyTorch/DrugDiscovery/SE3Transformer); it needs e3nn, and takes DGL if that is installed. ``--before`` names another checkout of
this project, with its C++ operations built, that is measured too.

Every contestant lives in a process of its own. All have the same parameters and the same batch, in float32; what they compute,
gradients included, is compared before anything is timed. Then they take turns, round by round. The published program makes its
bases in every pass, as ours makes its edge frames. The tuned allocator is the C library told to keep what is freed.
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
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from bench.arguments import at_least_one, folder_with, named_size, new_file
from bench.children import CallFailed, Child
from bench.published import tables

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]

WORKLOADS = ("qm9:1", "qm9:16", "qm9:32", "protein_refine:150", "protein_wide:150")
"""Workloads and sizes of :mod:`bench.workloads`, molecules of a batch or residues."""

NAMES = ("qm9", "qm9_complete", "protein_full", "protein_refine", "protein_wide")
"""All that there are."""

SMALL = "protein_refine:3"
"""What is run before memory is measured."""

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
        self.child = Child(preload=("torch",))
        folder = str(contestant.folder.resolve())
        self.child.call("bench.published.process:enter", {"folders": [folder], "threads": threads}, SECONDS_OF_CALL)
        setting = {"folder": folder, "threads": threads, "keeps_freed_memory": allocator == "tuned"}
        self.details = self.call(f"start_{contestant.kind}", **setting)

    def call(self, function: str, module: str = CONTESTANT, **arguments: Any) -> Any:
        """What a function of :mod:`bench.published.contestant`, or of another module, returns.

        Raises:
            CallFailed: with the contestant's name.
        """
        try:
            return self.child.call(f"{module}:{function}", arguments, SECONDS_OF_CALL)
        except CallFailed as error:
            raise CallFailed(error.kind, f"{self.contestant.name}: {error}") from None

    def read(self, inputs: Inputs) -> None:
        """Make its model of a workload."""
        self.call(f"read_{self.contestant.kind}", name=inputs.name, path=str(inputs.path))

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.stop()


def measured(contestants: Sequence[Contestant], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare and time all; the content of the file.

    Args:
        contestants: the first is ours.
        arguments: of the command line.

    Raises:
        CallFailed: one does not start, does not end, or computes something else.
    """
    load = os.getloadavg()[1]
    rows: list[Row] = []
    details = {}
    with tempfile.TemporaryDirectory() as name:
        small, *inputs = _written(contestants[0], [SMALL, *arguments.workloads], Path(name))
        for threads, allocator in product(arguments.threads, arguments.allocator):
            with ExitStack() as stack:
                started = [stack.enter_context(Started(each, threads, allocator)) for each in contestants]
                details = {each.contestant.name: each.details for each in started}
                for found in inputs:
                    rows += _show(_timed(started, found, arguments.rounds), {"threads": threads, "allocator": allocator})
        for found in inputs:
            rows += _show([_peak(each, small, found) for each in contestants], {})
    where = details["ours"].pop("environment") | {"load_average": [load, os.getloadavg()[1]]}
    clock = "processor time with one thread, otherwise wall time"
    for other in details.values():
        other.pop("environment", None)
    return {"environment": where, "clock": clock, "contestants": details, "rows": rows}


@dataclass(frozen=True)
class Inputs:
    """A workload that is written down.

    Attributes:
        workload: its name and size.
        path: file with the parameters and the batch.
        sizes: nodes and edges.
    """

    workload: str
    path: Path
    sizes: dict[str, int]

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.workload.partition(":")[0]

    def row(self, direction: str, contestant: Contestant) -> Row:
        """The beginning of a row."""
        return {"workload": self.workload, **self.sizes, "pass": direction, "contestant": contestant.name}


def _written(ours: Contestant, workloads: Sequence[str], folder: Path) -> list[Inputs]:
    """The inputs of all workloads, made by ours."""
    inputs = []
    with Started(ours, 1, "default") as started:
        for workload in workloads:
            name, _, size = workload.partition(":")
            path = folder / f"{name}_{size}.pt"
            inputs.append(Inputs(workload, path, started.call("write_workload", name=name, size=int(size), path=str(path))))
    return inputs


def _show(rows: Sequence[Row], setting: dict[str, Any]) -> list[Row]:
    shown = [row | setting for row in rows]
    for row in shown:
        print(json.dumps(row), flush=True)
    return shown


def _timed(started: Sequence[Started], inputs: Inputs, rounds: int) -> list[Row]:
    """Rows of every pass and contestant."""
    for each in started:
        each.read(inputs)
    differences = _differences(started, inputs.path.parent)
    rows = []
    for direction in PASSES:
        times: dict[str, list[float]] = {each.contestant.name: [] for each in started}
        for number in range(rounds + 1):
            for each in started if number % 2 else reversed(started):
                seconds = each.call("seconds_of", direction=direction, at_least=SECONDS_OF_TURN)
                if number > 0:  # the first round warms up
                    times[each.contestant.name] += seconds
        for each in started:
            seconds = times[each.contestant.name]
            row = inputs.row(direction, each.contestant) | {"difference": differences[each.contestant.name]}
            rows.append(row | {"median_ms": 1e3 * median(seconds), "least_ms": 1e3 * min(seconds), "steps": len(seconds)})
    return rows


def _differences(started: Sequence[Started], folder: Path) -> dict[str, float]:
    """How far what each computes is from what the first, ours, does."""
    paths = {each.contestant.name: str(folder / f"{each.contestant.name}.pt") for each in started}
    for each in started:
        each.call("write_values", path=paths[each.contestant.name])
    ours = started[0]
    return {
        name: ours.call("difference", path=path, path_of_ours=paths[ours.contestant.name], name=name)
        for name, path in paths.items()
    }


def _peak(contestant: Contestant, small: Inputs, inputs: Inputs) -> Row:
    """A row with the memory of a training step, in a new process, with one thread; a small one has loaded all libraries before."""
    with Started(contestant, 1, "default") as started:
        started.read(small)
        started.call("seconds_of", direction="forward+backward", at_least=0.0)
        started.read(inputs)
        return inputs.row("memory", contestant) | {"peak_MiB": started.call("peak_bytes") / 2**20}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.published", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=folder_with("se3_transformer"), help="holds se3_transformer, as it was published")
    parser.add_argument("--before", type=folder_with("se3_fast"), help="another checkout of this project")
    parser.add_argument("--rounds", type=at_least_one, default=ROUNDS, help="in which every contestant has its turn")
    parser.add_argument("--threads", type=at_least_one, nargs="+", default=[1, 2])
    parser.add_argument("--allocator", nargs="+", choices=ALLOCATORS, default=ALLOCATORS)
    parser.add_argument(
        "--workloads", type=named_size(NAMES), nargs="+", default=WORKLOADS, metavar="NAME:SIZE", help=" ".join(WORKLOADS)
    )
    parser.add_argument("--json", type=new_file, help="file for the results")
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
