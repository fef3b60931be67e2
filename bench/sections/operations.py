"""Every operation of :mod:`bench.registry` at every workload, with cold caches, against what the device could do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import se3_fast
from bench.registry import BENCHMARKS, DTYPES
from bench.sections import Files, Row
from bench.timing import Rates, cold_time, measured_rates
from bench.workloads import BACKENDS, SIZES
from se3_fast.kernels.cost import Cost

OURS = BACKENDS[-1]


def rows() -> Iterator[Row]:
    """The rates of the device; then ours before the others, half precision first."""
    yield {"operation": "rates"}
    every = [{"operation": operation, **row} for operation, benchmark in BENCHMARKS.items() for row in benchmark.rows()]
    ranks = {backend: rank for rank, backend in enumerate(reversed(BACKENDS))}
    precisions, workloads = list(reversed(DTYPES)), list(SIZES)

    def worth(row: Row) -> tuple[int, ...]:
        return ranks.get(row["backend"], 0), precisions.index(row["precision"]), workloads.index(row["workload"])

    yield from sorted(every, key=worth)


def measure(files: Files, operation: str, is_captured: bool = True, **row: str) -> Row:
    """Milliseconds, without launches where the work can be captured: what is not ours waits for the host, and some of ours."""
    if operation == "rates":
        rates = measured_rates()
        return {"flop_per_second": rates.flop_per_second, "bytes_per_second": rates.bytes_per_second}
    problem = BENCHMARKS[operation].problem(row["workload"], DTYPES[row["precision"]])
    is_captured = is_captured and row["backend"] == OURS and not problem.waits
    with se3_fast.backend(row["backend"]):
        timing = cold_time(problem.passes()[row["pass"]], with_launches=not is_captured)
    result = {"ms": timing.milliseconds, "is_captured": timing.is_captured}
    cost = problem.cost_of(row["pass"]) if row["backend"] == OURS else None
    return result if cost is None else result | {"cost": cost._asdict()}


def summarise(files: Files, results: Sequence[Row]) -> Row:
    """A line for every row; ratios and shares of the roofline are added to the rows."""
    rates = [Rates(row["flop_per_second"], row["bytes_per_second"]) for row in results if row["operation"] == "rates"]
    timed = [row for row in results if "ms" in row]
    for row in timed:
        if rates and "cost" in row:
            row["roofline_fraction"] = rates[-1].roofline_milliseconds(row["precision"], Cost(**row["cost"])) / row["ms"]
    return {"text": table(add_ratios(timed)), "rows": list(results)}


def add_ratios(timed: Sequence[Row]) -> Sequence[Row]:
    """Add how many times faster, and smaller, than the first backend each row is."""
    keys = ("operation", "workload", "precision", "pass")
    first = {tuple(row.get(key) for key in keys): row for row in timed if row["backend"] == BACKENDS[0]}
    for row in timed:
        base = first.get(tuple(row.get(key) for key in keys))
        row["speed_up"] = base["ms"] / row["ms"] if base else None
        if base and "peak_MiB" in row and "peak_MiB" in base:
            row["memory_ratio"] = base["peak_MiB"] / row["peak_MiB"]
    return timed


def table(timed: Sequence[Row]) -> str:
    """A line for every row."""
    lines = []
    for row in timed:
        name = f"{row.get('operation', 'model')} {row['workload']} {row['precision']} {row['pass']}"
        figures = [f"{row['ms']:.3f} ms"]
        figures += [f"{row[key]:.2f} {key}" for key in ("speed_up", "memory_ratio", "roofline_fraction") if row.get(key)]
        lines.append(f"{name:64} {row['backend']:7} {'  '.join(figures)}")
    return "\n".join(lines)
