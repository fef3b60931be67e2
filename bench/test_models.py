"""Whole models on every workload: forward and forward+backward, backends side by side."""

from __future__ import annotations

import time
from functools import cache, partial

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import se3_fast
from bench.peak_memory import measure_in_new_process
from bench.timing import change_slightly
from bench.workloads import BACKENDS, SIZES, Workload, build

ROUNDS, FEWEST_ROUNDS = 7, 2
SECONDS = 2.5
"""About what the rounds of one call may take: what is slow is measured less often."""

PASSES = {"forward": Workload.forward_only, "forward+backward": Workload.forward_backward}


@cache
def workload_of(name: str) -> Workload:
    return build(name)


@cache
def peak_memory_of(name: str, backend: str) -> int:
    return measure_in_new_process(name, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("name", SIZES)
def test_model(benchmark: BenchmarkFixture, name: str, direction: str, backend: str) -> None:
    workload = workload_of(name)
    benchmark.group = f"{name} (size {SIZES[name]}), {direction}"
    graph = workload.graph
    benchmark.extra_info |= {"nodes": graph.num_nodes(), "edges": graph.num_edges(), "backend": backend}
    if direction == "forward+backward":
        benchmark.extra_info["peak_bytes"] = peak_memory_of(name, backend)
    with se3_fast.backend(backend):
        start = time.perf_counter()
        PASSES[direction](workload)  # warms up
        rounds = min(ROUNDS, max(FEWEST_ROUNDS, int(SECONDS / (time.perf_counter() - start))))
        between = partial(change_slightly, list(workload.model.parameters())) if direction == "forward+backward" else None
        benchmark.pedantic(PASSES[direction], args=(workload,), setup=between, rounds=rounds)
