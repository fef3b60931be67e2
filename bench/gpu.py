"""Everything that wants a GPU, in one command: ``python -m bench.gpu`` (or ``make gpu``).

Tests first (numerics, gradients, equivariance, reproducibility, 64-bit addressing), then the rates of the device; batch assembly,
training and inference throughput in the published layout (:mod:`bench.throughput`); launches of a step (:mod:`bench.launches`);
whole models with their peak memory; the convolution by others (:mod:`bench.rivals`); its cost over sizes and the largest graph that
fits (:mod:`bench.scaling`); and every operation of :mod:`bench.registry` at every workload (graph replay, cold caches).
Written to ``bench/results/<device>.json`` after every step, so that a run that is cut short keeps what it has; what the time did
not allow is listed as not measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

import se3_fast
from bench import data_assembly, launches, plots, rivals, scaling, throughput
from bench.__main__ import RESULTS, device_name, environment, plot_scaling, rivals_title
from bench.peak_memory import measure_in_new_process
from bench.registry import BENCHMARKS, DTYPES
from bench.timing import Rates, cold_time, measured_rates
from bench.workloads import BACKENDS, SIZES, Workload, build

TESTS = ["tests/gpu", *(f"tests/backends/triton/test_{name}.py" for name in BENCHMARKS), "tests/model/test_equivariance.py"]
PASSES: dict[str, Callable[[Workload], None]] = {
    "forward": Workload.forward_only,
    "forward+backward": Workload.forward_backward,
}


SECTIONS = ("throughput", "models", "rivals", "scaling", "operations")
"""What is measured, in this order."""

SHARES = {"throughput": 0.4, "models": 0.6, "rivals": 0.65, "scaling": 0.8, "operations": 1.0}
"""The part of the time that has passed when a section ends at the latest, so that every section has its turn."""


class Run:
    """The results so far, and the time that is left."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds
        self.deadline = self.start + seconds
        self.file = RESULTS / f"{device_name()}.json"
        self.results: dict[str, Any] = {"environment": environment(), "not measured": []}
        self.results |= {section: [] for section in (*SECTIONS, "batch assembly", "launches", "largest graph")}

    def begin(self, section: str) -> None:
        """From now on the time that is left is that of a section."""
        self.deadline = self.start + SHARES[section] * self.seconds

    def write(self) -> None:
        """Write everything so far."""
        RESULTS.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(self.results, indent=1) + "\n")

    def attempt(self, section: str, row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Add a row with what ``measure`` returns; or say why there is nothing: no time, no memory, an error."""
        if time.monotonic() > self.deadline:
            self.results["not measured"].append({**row, "reason": "out of time"})
            return
        try:
            row = row | measure()
        except Exception as error:
            self.results["not measured"].append({**row, "reason": _one_line(error)})
        else:
            self.results[section].append(row)
            print(json.dumps(row), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        self.write()


def main() -> int:
    """Run all; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=450.0, help="stop measuring after this time; tests are not cut short")
    parser.add_argument("--no_tests", action="store_true", help="only measure")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="what is measured")
    parser.add_argument("--data_dir", type=Path, help="folder of qm9_edge.npz; without it the sample is repeated to its size")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("expected a CUDA device, got none")
    run = Run(arguments.seconds)
    code = 0
    if not arguments.no_tests:
        run.results["tests"] = _tested()
        code = run.results["tests"]["exit_code"]
        run.write()
        run.seconds -= min(run.seconds, time.monotonic() - run.start)
        run.start = time.monotonic()
    rates = measured_rates()
    run.results["rates"] = {"flop_per_second": rates.flop_per_second, "bytes_per_second": rates.bytes_per_second}
    measurements = {
        "throughput": lambda: _measure_throughput(run, arguments.data_dir),
        "models": lambda: _measure_models(run),
        "rivals": lambda: _measure_rivals(run),
        "scaling": lambda: _measure_scaling(run),
        "operations": lambda: _measure_operations(run, rates),
    }
    for section in arguments.only:
        run.begin(section)
        measurements[section]()
        run.write()
    print(_table(run.results))
    print(f"{run.file}; tests {'not run' if arguments.no_tests else run.results['tests']['summary']}")
    return code


def _measure_throughput(run: Run, data_dir: Path | None) -> None:
    run.attempt("batch assembly", {}, lambda: data_assembly.measure(data_dir))
    with throughput.data_set(data_dir) as data:
        for row in throughput.cases():
            run.attempt("throughput", row, lambda row=row: throughput.measure(data, **row))
    print(throughput.tables(run.results["throughput"]))


def _measure_models(run: Run) -> None:
    for name, is_amp in product(SIZES, (False, True)):
        row = {"workload": name, "precision": "amp" if is_amp else "float32"}
        run.attempt("launches", row, lambda name=name, is_amp=is_amp: _launches(name, is_amp))
    for row in _models():
        run.attempt("models", row, lambda row=row: _model_time(**row))
    _add_ratios(run.results["models"])


def _launches(name: str, is_amp: bool) -> dict[str, Any]:
    """Launches of a training step by name, as the profiler saw them."""
    with se3_fast.backend("triton"):
        counts = launches.count(build(name), is_amp).counts
    return {"launches": counts.total(), "by_name": {kernel: number for (_, kernel), number in counts.most_common()}}


def _measure_rivals(run: Run) -> None:
    for name in rivals.compared():
        if reason := rivals.missing(name):
            run.results["not measured"].append({"name": name, "reason": reason})
        else:
            run.attempt("rivals", {"name": name}, lambda name=name: rivals.measure(name))
    rows = run.results["rivals"]
    print(rivals.table([*rows, *(row for row in run.results["not measured"] if "name" in row)]))
    if rows:
        plots.plot_rivals(rows, rivals_title(), RESULTS / f"rivals_{device_name()}.png")


def _measure_scaling(run: Run) -> None:
    limits = scaling.Limits(deadline=run.deadline)
    for sweep in (scaling.sweep_edges, scaling.sweep_degrees):
        for row in sweep(limits):
            run.results["scaling" if "step_ms" in row else "not measured"].append(row)
        run.write()
    rows = run.results["scaling"]
    run.results["scaling exponents"] = fits = scaling.fits(rows)
    for backend in reversed(BACKENDS):  # the fastest first
        run.attempt("largest graph", {"backend": backend}, lambda name=backend: scaling.largest_graph(name, run.deadline))
    print(scaling.table(rows, fits))
    plot_scaling(rows, fits)


def _measure_operations(run: Run, rates: Rates) -> None:
    for row in _operations():
        run.attempt("operations", row, lambda row=row: _operation_time(rates, **row))
    _add_ratios(run.results["operations"])


def _tested() -> dict[str, Any]:
    """Run the GPU's tests in a process of their own, several at a time (compilation of kernels is what takes time)."""
    workers = ["-n", str(min(8, os.cpu_count() or 1))]
    command = [sys.executable, "-m", "pytest", "-q", *workers, *TESTS]
    start = time.monotonic()
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    print(finished.stdout[-6000:], finished.stderr[-2000:], flush=True)
    summary = finished.stdout.strip().splitlines()[-1] if finished.stdout.strip() else "no output"
    return {"exit_code": finished.returncode, "summary": summary, "seconds": round(time.monotonic() - start, 1)}


def _models() -> Iterator[dict[str, Any]]:
    for name, precision, passes, backend in product(SIZES, ("float32", "amp"), PASSES, BACKENDS):
        yield {"workload": name, "precision": precision, "pass": passes, "backend": backend}


def _operations() -> Iterator[dict[str, Any]]:
    for operation, benchmark in BENCHMARKS.items():
        for row in benchmark.rows():
            yield {"operation": operation, **row}


def _model_time(**row: str) -> dict[str, Any]:
    workload = build(row["workload"])
    result: dict[str, Any] = {
        "size": SIZES[row["workload"]],
        "nodes": workload.graph.num_nodes(),
        "edges": workload.graph.num_edges(),
    }
    is_amp = row["precision"] == "amp"
    with se3_fast.backend(row["backend"]), torch.autocast("cuda", enabled=is_amp):
        timing = cold_time(lambda: PASSES[row["pass"]](workload), 9, with_launches=True)
    if row["pass"] == "forward+backward" and not is_amp:
        result["peak_MiB"] = measure_in_new_process(row["workload"], row["backend"]) / 2**20
    return result | {"ms": timing.milliseconds}


def _operation_time(rates: Rates, **row: str) -> dict[str, Any]:
    problem = BENCHMARKS[row["operation"]].problem(row["workload"], DTYPES[row["precision"]])
    with se3_fast.backend(row["backend"]):
        timing = cold_time(problem.passes()[row["pass"]])
    result: dict[str, Any] = {"ms": timing.milliseconds, "is_captured": timing.is_captured}
    cost = problem.cost_of(row["pass"])
    if cost is not None and row["backend"] == "triton":
        least = rates.roofline_milliseconds(row["precision"], cost)
        result |= {"flop": cost.flop, "bytes": cost.bytes, "roofline_fraction": least / timing.milliseconds}
    return result


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    """How many times faster, and smaller, than the first backend each row is."""
    keys = ("operation", "workload", "precision", "pass")
    first = {tuple(row.get(key) for key in keys): row for row in rows if row["backend"] == BACKENDS[0]}
    for row in rows:
        base = first.get(tuple(row.get(key) for key in keys))
        row["speed_up"] = base["ms"] / row["ms"] if base else None
        if base and "peak_MiB" in row and "peak_MiB" in base:
            row["memory_ratio"] = base["peak_MiB"] / row["peak_MiB"]


def _table(results: dict[str, Any]) -> str:
    lines = []
    for row in (*results["models"], *results["operations"]):
        name = f"{row.get('operation', 'model')} {row['workload']} {row['precision']} {row['pass']}"
        figures = [f"{row['ms']:.3f} ms"]
        figures += [f"{row[key]:.2f} {key}" for key in ("speed_up", "memory_ratio", "roofline_fraction") if row.get(key)]
        lines.append(f"{name:64} {row['backend']:7} {'  '.join(figures)}")
    return "\n".join([*lines, f"not measured: {len(results['not measured'])}"])


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    sys.exit(main())
