"""The head of the pooled model: a perceptron of two layers on one feature vector per graph."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.operations import Problem, compare, leaf
from bench.workloads import BACKENDS, SIZES, build
from se3_fast.kernels.perceptron import Shape, cost
from se3_fast.ops.perceptron import perceptron

CHANNELS = 128  # of the published model, in which all hidden units and one output follow


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The published head on the pooled features of a workload's graphs."""
    num_graphs = len(build(name).graph.batch_num_nodes())
    shape = Shape(CHANNELS, CHANNELS, 1, dtype)
    x = leaf(num_graphs, shape.num_in, dtype=dtype)
    first = leaf(shape.num_hidden, shape.num_in, dtype=dtype), leaf(shape.num_hidden, dtype=dtype)
    second = leaf(shape.num_out, shape.num_hidden, dtype=dtype), leaf(shape.num_out, dtype=dtype)

    def forward() -> list[torch.Tensor]:
        return [perceptron(x, first, second)]

    return Problem(forward, [x, *first, *second], cost(num_graphs, shape))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIZES)
def test_perceptron(benchmark: BenchmarkFixture, name: str, backend: str) -> None:
    compare(benchmark, "perceptron", name, problem(name), backend)
