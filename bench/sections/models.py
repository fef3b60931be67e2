"""Whole models: time with launches, peak memory, and the launches of a training step as the profiler sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch

import se3_fast
from bench import launches
from bench.peak_memory import measure_in_new_process
from bench.sections import Files, Row
from bench.sections.operations import add_ratios, table
from bench.timing import cold_time
from bench.workloads import BACKENDS, DEVICE, SIZES, Workload, build

PASSES: dict[str, Callable[[Workload], None]] = {
    "forward": Workload.forward_only,
    "forward+backward": Workload.forward_backward,
}
ROUNDS = 9
PRECISIONS = ("amp", "float32")


def rows() -> Iterator[Row]:
    """Ours before the others, mixed precision first; then the launches."""
    for backend, precision, workload, passes in product(reversed(BACKENDS), PRECISIONS, SIZES, reversed(PASSES)):
        yield {"workload": workload, "precision": precision, "pass": passes, "backend": backend}
    for precision, workload in product(PRECISIONS, SIZES):
        yield {"workload": workload, "precision": precision, "pass": "launches", "backend": BACKENDS[-1]}


def measure(files: Files, **row: str) -> Row:
    """Milliseconds, and of a float32 training step ``peak_MiB``; or launches by name."""
    workload, is_amp = build(row["workload"]), row["precision"] == "amp"
    if row["pass"] == "launches":
        with se3_fast.backend(row["backend"]):
            counts = launches.count(workload, is_amp).counts
        return {"launches": counts.total(), "by_name": {kernel: number for (_, kernel), number in counts.most_common()}}
    with se3_fast.backend(row["backend"]), torch.autocast(DEVICE.type, torch.float16, enabled=is_amp):
        timing = cold_time(lambda: PASSES[row["pass"]](workload), ROUNDS, with_launches=True)
    result = {"size": SIZES[row["workload"]], "nodes": workload.graph.num_nodes(), "edges": workload.graph.num_edges()}
    if row["pass"] == "forward+backward" and not is_amp:
        result["peak_MiB"] = measure_in_new_process(row["workload"], row["backend"]) / 2**20
    return result | {"ms": timing.milliseconds}


def summarise(files: Files, results: Sequence[Row]) -> Row:
    """A line for every row; ratios are added to the rows."""
    return {"text": table(add_ratios([row for row in results if "ms" in row])), "rows": list(results)}
