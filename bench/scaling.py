"""Cost of a training step of one convolution against the number of edges and against the degrees: ``python -m bench.scaling``.

Time and peak memory of forward and backward pass, all backends on the same inputs; exponents fitted to them in log-log scale;
memory per edge; on a GPU the largest graph that fits, by doubling. Memory is counted above the convolution's inputs, parameters and
their gradients, and above what depends on directions only (for ``dense`` its bases), which all layers of a model share.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import plots
from bench.environment import device_name, device_title
from bench.peak_memory import peak_of_step
from bench.rivals import peaks, workload_of
from bench.timing import change_slightly, keep_freed_memory, times_in_turns
from bench.workloads import BACKENDS, DEVICE

MAX_DEGREE = 3
"""Of the sweep over edges."""

EDGES = [2 * round(0.5 * 10 ** (step / 2)) for step in (range(8, 15) if DEVICE.type == "cuda" else range(4, 11))]
"""10^4 to 10^7 on a GPU, 10^2 to 10^5 on a CPU; in steps of the square root of 10."""

DEGREES = range(1, 7)
"""Largest degrees of the other sweep."""

EDGES_OF_DEGREES = 20_000 if DEVICE.type == "cuda" else 200
"""Edges of the other sweep: few enough for the materialised algorithm at most degrees."""

ROUNDS = 7 if DEVICE.type == "cuda" else 3
_LARGEST_DEVIATION = 0.1  # of a power law, as a share of the range of the logarithms
LARGEST = 2**27
"""Edges at which the search for the largest graph ends."""


@dataclass(frozen=True)
class Limits:
    """What ends a sweep early.

    Attributes:
        step_ms: a backend whose step took longer is not measured at larger sizes.
        deadline: time (:func:`time.monotonic`) after which nothing is begun.
    """

    step_ms: float = 1e3
    deadline: float = math.inf


def sweep_edges(limits: Limits, sizes: Sequence[int] = EDGES) -> list[dict[str, Any]]:
    """Rows over :data:`EDGES`."""
    return _sweep("edges", [(edges, MAX_DEGREE) for edges in sizes], limits)


def sweep_degrees(limits: Limits, degrees: Sequence[int] = DEGREES) -> list[dict[str, Any]]:
    """Rows over :data:`DEGREES`."""
    return _sweep("degrees", [(EDGES_OF_DEGREES, degree) for degree in degrees], limits)


def _sweep(name: str, points: Sequence[tuple[int, int]], limits: Limits) -> list[dict[str, Any]]:
    """A row for every backend and point: ``step_ms`` and ``peak_MiB``, or the ``reason`` why not."""
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    ended: dict[str, str] = {}
    for edges, degree in points:
        if time.monotonic() > limits.deadline:
            ended = dict.fromkeys(BACKENDS, "out of time") | ended
        timed = _timed(edges, degree, [backend for backend in BACKENDS if backend not in ended])
        for backend in BACKENDS:
            row = {"sweep": name, "backend": backend, "edges": edges, "max_degree": degree}
            found = {"reason": ended[backend]} if backend in ended else timed[backend]
            rows.append(row | found)
            if "reason" in found:
                ended.setdefault(backend, found["reason"])
            elif found["step_ms"] > limits.step_ms:
                ended[backend] = "the step before took too long"
    if DEVICE.type == "cpu":
        _add_peaks(rows)
    return rows


def _timed(edges: int, degree: int, backends: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of every backend ``step_ms``, or the ``reason`` why not.

    On a GPU one is there at a time, so that each has all the memory, and ``peak_MiB`` is measured as well.
    """
    found: dict[str, dict[str, Any]] = {}
    if DEVICE.type == "cuda":
        for backend in backends:
            found[backend] = _attempted(edges, degree, backend)
            gc.collect()
            torch.cuda.empty_cache()
        return found
    steps, parameters = {}, []
    for backend in backends:
        try:
            workload = workload_of(backend, edges, degree)
            parameters += workload.model.parameters()
            steps[backend] = workload.forward_backward
            steps[backend]()
        except Exception as error:
            found[backend] = {"reason": _one_line(error)}
            steps.pop(backend, None)
    times = times_in_turns(steps, ROUNDS, partial(change_slightly, parameters))
    return found | {backend: {"step_ms": milliseconds} for backend, milliseconds in times.items()}


def measured(edges: int, max_degree: int, backend: str) -> dict[str, Any]:
    """``step_ms`` and ``peak_MiB`` of a step on a GPU."""
    workload = workload_of(backend, edges, max_degree)
    times = times_in_turns({backend: workload.forward_backward}, ROUNDS)
    return {"step_ms": times[backend], "peak_MiB": peak_of_step(workload) / 2**20}


def _attempted(edges: int, degree: int, backend: str) -> dict[str, Any]:
    try:
        return measured(edges, degree, backend)
    except Exception as error:
        return {"reason": _one_line(error)}


def _add_peaks(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``peak_MiB``, measured in a process for every backend, to the rows that were timed."""
    for backend in BACKENDS:
        timed = [row for row in rows if row["backend"] == backend and "step_ms" in row]
        if not timed:
            continue
        try:
            found = peaks(backend, [(row["edges"], row["max_degree"]) for row in timed])
        except Exception as error:
            for row in timed:
                row["reason"] = f"peak memory: {_one_line(error)}"
            continue
        for row, peak in zip(timed, found, strict=True):
            row["peak_MiB"] = peak / 2**20


def largest_graph(backend: str, deadline: float = math.inf) -> dict[str, Any]:
    """The largest number of edges whose step fits in the GPU's memory, doubling from the smallest of :data:`EDGES`.

    Returns:
        ``edges`` and ``peak_MiB`` of the last that fitted, and what ended the search.
    """
    found: dict[str, Any] = {"backend": backend, "edges": None, "peak_MiB": None, "ended_by": "the limit of the search"}
    edges = EDGES[0]
    while edges <= LARGEST:
        if time.monotonic() > deadline:
            return found | {"ended_by": "out of time"}
        try:
            peak = peaks(backend, [(edges, MAX_DEGREE)])[0]
        except Exception as error:
            return found | {"ended_by": _one_line(error)}
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        found |= {"edges": edges, "peak_MiB": peak / 2**20}
        edges *= 2
    return found


def fits(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every sweep and backend the exponents of time and memory, and for that over edges the bytes of one edge more.

    The exponent is that of the number of edges, or of the number of degrees (largest degree + 1). It is fitted to the larger half
    of the sizes, at least three, where launches no longer count; None where there are fewer, or costs follow no power of the size.
    The bytes are those between the two largest sizes, divided by the edges between them.
    """
    result = []
    measured = [row for row in rows if "step_ms" in row]
    for sweep, backend in dict.fromkeys((row["sweep"], row["backend"]) for row in measured):
        chosen = [row for row in measured if (row["sweep"], row["backend"]) == (sweep, backend)]
        chosen = chosen[-max(3, math.ceil(len(chosen) / 2)) :]
        sizes = [row["edges"] if sweep == "edges" else row["max_degree"] + 1 for row in chosen]
        with_memory = all(row.get("peak_MiB", 0) > 0 for row in chosen)
        has_slope = with_memory and sweep == "edges" and len(chosen) > 1
        result.append(
            {
                "sweep": sweep,
                "backend": backend,
                "sizes": sizes,
                "time_exponent": fitted_exponent(sizes, [row["step_ms"] for row in chosen]),
                "memory_exponent": fitted_exponent(sizes, [row["peak_MiB"] for row in chosen]) if with_memory else None,
                "bytes_per_edge": _slope(*chosen[-2:]) if has_slope else None,
            }
        )
    return result


def _slope(smaller: dict[str, Any], larger: dict[str, Any]) -> float:
    return (larger["peak_MiB"] - smaller["peak_MiB"]) * 2**20 / (larger["edges"] - smaller["edges"])


def fitted_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The b of the least-squares line log cost = a + b log size; None for fewer than three points, or if they are on no line."""
    if len(sizes) < 3 or max(costs) == min(costs):
        return None
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    x_mean, y_mean = math.fsum(x) / len(x), math.fsum(y) / len(y)
    slope = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / math.fsum((a - x_mean) ** 2 for a in x)
    farthest = max(abs(b - y_mean - slope * (a - x_mean)) for a, b in zip(x, y, strict=True))
    return slope if farthest <= _LARGEST_DEVIATION * (max(y) - min(y)) else None


def table(rows: Sequence[dict[str, Any]], fitted: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for every size, a column for every backend; then the exponents."""
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    lines = []
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        lines += ["| edges | largest degree | " + " | ".join(f"{name}, ms (MiB)" for name in backends) + " |"]
        lines += ["|" + "---|" * (2 + len(backends))]
        chosen = [row for row in rows if row["sweep"] == sweep]
        for point in dict.fromkeys((row["edges"], row["max_degree"]) for row in chosen):
            found = {row["backend"]: _cell(row) for row in chosen if (row["edges"], row["max_degree"]) == point}
            cells = [f"{point[0]:,}", str(point[1]), *(found.get(name, "not measured") for name in backends)]
            lines.append("| " + " | ".join(cells) + " |")
        for fit in fitted:
            if fit["sweep"] == sweep:
                lines.append(f"{sweep}, {fit['backend']}: {_exponents(fit)}")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], fitted: Sequence[dict[str, Any]], folder: Path) -> None:
    """A plot for each sweep that has a figure, in this folder."""
    fixed = {"edges": f"degrees 0 to {MAX_DEGREE}", "degrees": f"{EDGES_OF_DEGREES:,} edges"}
    for sweep in dict.fromkeys(fit["sweep"] for fit in fitted):
        title = f"One convolution, {fixed[sweep]}, 32 channels, float32, {device_title()}"
        plots.plot_scaling(rows, fitted, sweep, title, folder / f"scaling_{sweep}_{device_name()}.png")


def _cell(row: dict[str, Any]) -> str:
    if "step_ms" not in row:
        return f"not measured ({row['reason'][:60]})"
    memory = f"{row['peak_MiB']:.1f}" if "peak_MiB" in row else "not measured"
    return f"{row['step_ms']:.2f} ({memory})"


def _exponents(fit: dict[str, Any]) -> str:
    parts = [f"{name} exponent {fit[f'{name}_exponent']:.2f}" for name in ("time", "memory") if fit[f"{name}_exponent"] is not None]
    if fit["bytes_per_edge"] is not None:
        parts.append(f"{fit['bytes_per_edge']:,.0f} bytes per edge")
    return ", ".join(parts) or "no exponent: too few sizes, or no power law"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def main() -> int:
    """Print both sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print rows and fits as JSON instead of tables")
    arguments = parser.parse_args()
    rows = sweep_edges(Limits()) + sweep_degrees(Limits())
    fitted = fits(rows)
    print(json.dumps({"rows": rows, "fits": fitted}, indent=1) if arguments.json else table(rows, fitted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
