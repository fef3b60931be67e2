"""Run the model benchmarks and print the ratios between backends: ``python -m bench [more pytest arguments]``.

The figures are written to ``bench/results/<device>.json``, with versions, date and commit.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.workloads import BACKENDS, DEVICE

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run, print, write; the exit code is pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        arguments = [str(Path(__file__).parent / "bench_models.py"), "-q", f"--benchmark-json={raw}", "--benchmark-quiet"]
        code = pytest.main([*arguments, "-o", "python_files=bench_*.py", *sys.argv[1:]])
        if code != 0:
            return int(code)
        rows = _rows(json.loads(raw.read_text())["benchmarks"])
    print(_table(rows))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{device_name()}.json").write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    return 0


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
    return torch.cuda.getdevice_name().replace(" ", "_") if DEVICE.type == "cuda" else "cpu"


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
