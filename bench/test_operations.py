"""Every operation of the registry on every workload: ``pytest bench/test_operations.py -k "tfn_conv and qm9"``."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import se3_fast
from bench.registry import BENCHMARKS, DTYPES
from bench.timing import change_slightly
from bench.workloads import DEVICE, SIZES

ROUNDS = 7

CASES = [
    (operation, workload, variant)
    for operation, benchmark in BENCHMARKS.items()
    for workload, variant in product(SIZES, benchmark.variants())
]


@pytest.mark.parametrize(("operation", "workload", "variant"), CASES)
def test_operation(benchmark: BenchmarkFixture, operation: str, workload: str, variant: str) -> None:
    """The longest of the passes, grouped by operation and workload."""
    backend, _, order = variant.partition(" by ")
    ordered = {"order": order} if order else {}
    compared = BENCHMARKS[operation]
    problem = compared.problem(workload, DTYPES["float32"], **ordered)
    step = problem.passes()[compared.passes[-1]]

    def finished_step() -> None:
        step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{operation} {workload}"
    benchmark.extra_info["backend"] = variant
    with se3_fast.backend(backend):
        benchmark.pedantic(finished_step, setup=partial(change_slightly, problem.operands), warmup_rounds=1, rounds=ROUNDS)
