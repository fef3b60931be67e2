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
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import plots, rivals, scaling, throughput
from bench.workloads import BACKENDS, DEVICE

RESULTS = Path(__file__).parent / "results"


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
    plots.plot_rivals(rows, rivals_title(), RESULTS / f"rivals_{device_name()}.png")
    return {"rows": rows}


def _scaling(_: argparse.Namespace) -> dict[str, Any]:
    limits = scaling.Limits()
    rows = scaling.sweep_edges(limits) + scaling.sweep_degrees(limits)
    fits = scaling.fits(rows)
    print(scaling.table(rows, fits))
    plot_scaling(rows, fits)
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


def rivals_title() -> str:
    """Title of the plot of the rivals."""
    return f"One convolution, degrees 0 to 3, 32 channels, {rivals.NUM_EDGES:,} edges, float32, {_short_device()}"


def plot_scaling(rows: Sequence[dict[str, Any]], fits: Sequence[dict[str, Any]]) -> None:
    """A plot for each sweep of :mod:`bench.scaling` that has a figure."""
    fixed = {
        "edges": f"degrees 0 to {scaling.MAX_DEGREE}",
        "degrees": f"{scaling.EDGES_OF_DEGREES:,} edges",
    }
    for sweep in dict.fromkeys(fit["sweep"] for fit in fits):
        title = f"One convolution, {fixed[sweep]}, 32 channels, float32, {_short_device()}"
        plots.plot_scaling(rows, fits, sweep, title, RESULTS / f"scaling_{sweep}_{device_name()}.png")


def _short_device() -> str:
    threads = torch.get_num_threads()
    return device_name().replace("_", " ") if DEVICE.type == "cuda" else f"CPU, {threads} thread{'s' if threads > 1 else ''}"


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


def device_name() -> str:
    """Name of the device that the benchmarks run on, as part of a file name."""
    return torch.cuda.get_device_name().replace(" ", "_") if DEVICE.type == "cuda" else "cpu"


def environment() -> dict[str, Any]:
    """Date, commit, device and versions."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "device": device_name() if DEVICE.type == "cuda" else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton") if DEVICE.type == "cuda" else None,
    }


if __name__ == "__main__":
    sys.exit(main())
