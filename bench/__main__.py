"""Run the model benchmarks and print the ratios between backends: ``python -m bench [more pytest arguments]``.

The figures are written to ``bench/results/cpu.json``, with versions, date and commit.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

RESULTS = Path(__file__).parent / "results" / "cpu.json"


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
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"environment": _environment(), "rows": rows}, indent=1) + "\n")
    return 0


def _rows(benchmarks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per workload and direction, with the medians of both backends and their ratio."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in benchmarks:
        groups.setdefault(entry["group"], {})[entry["extra_info"]["backend"]] = entry
    rows = []
    for group, entries in groups.items():
        medians = {backend: 1e3 * entry["stats"]["median"] for backend, entry in entries.items()}
        info = {backend: entry["extra_info"] for backend, entry in entries.items()}
        row: dict[str, Any] = {"workload": group, "nodes": info["torch"]["nodes"], "edges": info["torch"]["edges"]}
        row |= {"dense_ms": medians["dense"], "torch_ms": medians["torch"], "speed_up": medians["dense"] / medians["torch"]}
        if "peak_bytes" in info["torch"]:
            peaks = {backend: info[backend]["peak_bytes"] / 2**20 for backend in info}
            row |= {"dense_peak_MiB": peaks["dense"], "torch_peak_MiB": peaks["torch"]}
            row["memory_ratio"] = peaks["dense"] / peaks["torch"]
        rows.append(row)
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| workload | nodes | edges | dense ms | torch ms | speed-up | dense peak MiB | torch peak MiB | memory ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = ["", "", ""]
        if "memory_ratio" in row:
            memory = [f"{row['dense_peak_MiB']:.0f}", f"{row['torch_peak_MiB']:.0f}", f"{row['memory_ratio']:.1f}"]
        times = [f"{row['dense_ms']:.1f}", f"{row['torch_ms']:.1f}", f"{row['speed_up']:.2f}"]
        lines.append("| " + " | ".join([row["workload"], str(row["nodes"]), str(row["edges"]), *times, *memory]) + " |")
    return "\n".join(lines)


def _environment() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
