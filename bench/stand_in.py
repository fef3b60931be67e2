"""What :mod:`bench.sections` is to :mod:`bench.gpu`, for its rehearsal: tiny sizes, a clock for a device, and rows that fail.

Imported in the processes of a rehearsal alone, whose modules it changes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import workloads

workloads.BACKENDS = ("dense", "torch", "triton")  # before others take them over
workloads.SIZES.clear()
workloads.SIZES |= {"protein_full": 3}

from bench import rivals, scaling, sections, throughput, timing  # noqa: E402
from bench.problem import Problem  # noqa: E402
from bench.registry import BENCHMARKS, Benchmark  # noqa: E402
from bench.sections import models  # noqa: E402
from se3_fast.data.qm9 import SAMPLE_PATH  # noqa: E402

SMALL_MODEL = ["--num_layers", "1", "--num_degrees", "2", "--num_channels", "4", "--num_heads", "2"]
MOLECULES = 20

timing.FLUSHED_BYTES, timing.MATRIX_SIZE, timing.COPIED_BYTES = 1 << 10, 64, 1 << 10
throughput.MODEL += SMALL_MODEL
throughput.BATCHES = {"training": (8,), "inference": (6,)}
throughput.COMPARED, throughput.STEPS = ("dense", "torch"), {"dense": 1, "torch": 1}  # the interpreter takes a minute for a step
models.ROUNDS = 1
scaling.EDGES, scaling.DEGREES, scaling.EDGES_OF_DEGREES, scaling.ROUNDS = [4, 8], range(1, 2), 4, 1


def few_molecules(folder: Path) -> throughput.Data:
    """In place of ``throughput.repeated_sample``: the first of the sample."""
    of_rows = {"node_attr": "n_node", "node_pos": "n_node", "edge_attr": "n_edge", "src": "n_edge", "dst": "n_edge"}
    with np.load(SAMPLE_PATH, allow_pickle=False) as sample:
        rows = {name: int(sample[name][:MOLECULES].sum()) for name in ("n_node", "n_edge")}
        arrays = {name: sample[name][: rows[of_rows[name]] if name in of_rows else MOLECULES] for name in sample}
    np.savez(folder / "qm9_edge.npz", **arrays)
    return throughput.Data("few molecules", ["--dataset", "qm9", "--data_dir", str(folder)])


throughput.repeated_sample = few_molecules


class Event:
    """In place of ``torch.cuda.Event``: the time of the host."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.time = 0.0

    def record(self) -> None:
        """Now."""
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is under way."""

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds to another event."""
        return 1e3 * (other.time - self.time)


class Graph:
    """In place of ``torch.cuda.CUDAGraph``."""

    is_capturing = False

    def replay(self) -> None:
        """Nothing was recorded."""


@contextmanager
def capture(graph: Graph) -> Iterator[None]:
    """In place of ``torch.cuda.graph``: what waits for the device cannot be captured."""
    Graph.is_capturing = True
    yield
    Graph.is_capturing = False


def synchronize() -> None:
    """In place of ``torch.cuda.synchronize``; as there, what is being captured stays broken."""
    if Graph.is_capturing:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


torch.cuda.Event, torch.cuda.CUDAGraph, torch.cuda.graph, torch.cuda.synchronize = Event, Graph, capture, synchronize


def waiting_problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """An operation that waits for the device, which nobody knew."""

    def forward() -> list[torch.Tensor]:
        torch.cuda.synchronize()
        return []

    return Problem(forward)


BENCHMARKS["waiting"] = Benchmark(waiting_problem, ("triton",), ("float32",), ("forward",))

start, summarise = sections.start, sections.summarise

FAULTS = {"throughput": "crash", "models": "error", "rivals": "hang"}
CHOSEN = {
    "throughput": [{"backend": "torch"}],
    "operations": [{"operation": "rates"}, {"operation": "waiting"}, {"operation": "pooling", "precision": "float32"}],
    "models": [{"backend": "triton", "precision": "float32", "pass": "forward"}],
    "memory": [{"sweep": "edges", "backend": "torch"}, {"sweep": "degrees", "backend": "torch"}],
    "rivals": [{"name": name} for name in rivals.compared() if rivals.missing(name)][:1],
}
"""By section: what its rows have that are rehearsed."""


def rows(section: str) -> list[dict[str, Any]]:
    """One that fails, then some of those that there are."""
    faults = [{"fault": FAULTS[section]}] if section in FAULTS else []
    chosen = CHOSEN.get(section, [{}])
    return faults + [row for row in sections.rows(section) if any(row.items() >= choice.items() for choice in chosen)]


def measure(section: str, row: dict[str, Any], files: dict[str, Path | None]) -> dict[str, Any]:
    """A row's figures, if it has any."""
    match row.get("fault"):
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(1e6)
        case "error":
            raise torch.OutOfMemoryError("CUDA out of memory")
    return sections.measure(section, row, files)
