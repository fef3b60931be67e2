"""The head of the pooled model: a perceptron of two layers on one feature vector per graph."""

from __future__ import annotations

import torch

from bench.problem import Problem, leaf
from bench.workloads import build
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
