"""The norm-based nonlinearity."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.operations import Problem, compare, leaf
from bench.workloads import BACKENDS, SIZES, build


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """A norm between the hidden layers of a workload."""
    workload = build(name)
    norm = workload.norm.to(dtype)
    features = {
        str(degree): leaf(workload.graph.num_nodes(), channels, 2 * degree + 1, dtype=dtype) for degree, channels in norm.fiber
    }

    def forward() -> list[torch.Tensor]:
        return list(norm(features).values())

    return Problem(forward, [*features.values(), *norm.parameters()])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIZES)
def test_equivariant_norm(benchmark: BenchmarkFixture, name: str, backend: str) -> None:
    compare(benchmark, "equivariant_norm", name, problem(name), backend)
