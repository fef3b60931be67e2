"""Benchmarks side by side: ``python -m bench`` prints tables and writes ``bench/results/<device>.json`` and plots.

Whole models by all backends (:mod:`bench.test_models`), the convolution by others (:mod:`bench.rivals`), its cost over sizes
(:mod:`bench.scaling`), training and inference throughput (:mod:`bench.throughput`); and where ``--only`` asks for them, the single
operations of :mod:`bench.registry` (:mod:`bench.test_operations`). ``--only`` chooses; what the file holds of the others stays.
Further options are pytest's, for the models and the operations (``--only operations -k "tfn_conv and qm9"``). Everything on a GPU,
in one command: :mod:`bench.gpu`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import rivals, scaling, throughput
from bench.environment import RESULTS, device_name, environment
from bench.workloads import BACKENDS, DEVICE


class ComparisonsFailed(RuntimeError):
    """pytest ended a comparison with an exit code other than 0."""


def main() -> int:
    """Run, print, write; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=BY_DEFAULT, help="what is measured")
    parser.add_argument("--data_dir", type=Path, help="folder of qm9_edge.npz; without it the sample is used")
    arguments, for_pytest = parser.parse_known_args()
    arguments.pytest_arguments = for_pytest
    file = RESULTS / f"{device_name()}.json"
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.only:
        try:
            found = SECTIONS[name](arguments)
        except ComparisonsFailed as error:
            return int(str(error))
        results = json.loads(file.read_text()) if file.exists() else {}
        results |= {"environment": environment(), **found} if name == "models" else {name: {**_environment_of_section(), **found}}
        file.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def _environment_of_section() -> dict[str, Any]:
    """That of all sections but the models', which find the C library as it is."""
    allocator = {"allocator": "keeps freed memory"} if DEVICE.type == "cpu" else {}  # bench.timing.keep_freed_memory
    return {"environment": environment() | allocator}


def _compared(file: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The comparisons of a file by pytest-benchmark, as that writes them."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        options = [str(Path(__file__).parent / file), "-q", f"--benchmark-json={raw}", "--benchmark-quiet"]
        code = pytest.main([*options, *arguments.pytest_arguments])
        if code != 0:
            raise ComparisonsFailed(int(code))
        return json.loads(raw.read_text())["benchmarks"]


def _models(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = _rows(_compared("test_models.py", arguments))
    print(_table(rows))
    return {"rows": rows}


def _operations(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for entry in _compared("test_operations.py", arguments):
        operation, workload = entry["group"].split()
        row = {"operation": operation, "workload": workload, "backend": entry["extra_info"]["backend"]}
        rows.append(row | {"median_ms": 1e3 * entry["stats"]["median"]})
        print("{operation:17} {workload:15} {backend:15} {median_ms:10.2f} ms".format(**rows[-1]))
    return {"rows": rows}


def _rivals(_: argparse.Namespace) -> dict[str, Any]:
    rows = list(rivals.rows())
    print(rivals.table(rows))
    rivals.plot(rows, RESULTS)
    return {"rows": rows}


def _scaling(_: argparse.Namespace) -> dict[str, Any]:
    limits = scaling.Limits()
    rows = scaling.sweep_edges(limits) + scaling.sweep_degrees(limits)
    fits = scaling.fits(rows)
    print(scaling.table(rows, fits))
    scaling.plot(rows, fits, RESULTS)
    return {"rows": rows, "fits": fits}


def _throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    with throughput.data_set(arguments.data_dir) as data:
        rows = [case | throughput.measure(data, **case) for case in throughput.cases()]
    print(throughput.tables(rows))
    return {"rows": rows}


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "models": _models,
    "rivals": _rivals,
    "scaling": _scaling,
    "throughput": _throughput,
    "operations": _operations,
}

BY_DEFAULT = ("models", "rivals", "scaling", "throughput")
"""What is measured without ``--only``."""


def _rows(benchmarks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per workload, direction and backend: median, ratio to the first backend, peak memory."""
    rows = []
    first: dict[str, Any] = {}
    for entry in benchmarks:
        info = entry["extra_info"]
        row = {"workload": entry["group"], "nodes": info["nodes"], "edges": info["edges"], "backend": info["backend"]}
        row["median_ms"] = 1e3 * entry["stats"]["median"]
        row["peak_MiB"] = info["peak_bytes"] / 2**20 if "peak_bytes" in info else None
        if row["backend"] == BACKENDS[0]:
            first = row
        row["speed_up"] = first["median_ms"] / row["median_ms"]
        row["memory_ratio"] = first["peak_MiB"] / row["peak_MiB"] if row["peak_MiB"] else None
        rows.append(row)
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| workload | nodes | edges | backend | ms | speed-up over {BACKENDS[0]} | peak MiB | times less memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = ["", ""] if row["peak_MiB"] is None else [f"{row['peak_MiB']:.0f}", f"{row['memory_ratio']:.1f}"]
        cells = [row["workload"], str(row["nodes"]), str(row["edges"]), row["backend"]]
        cells += [f"{row['median_ms']:.1f}", f"{row['speed_up']:.2f}", *memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
