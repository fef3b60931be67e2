"""The depthwise convolution of a force field."""

from __future__ import annotations

import torch

from bench.problem import Problem, leaf
from bench.workloads import build
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.kernels.depthwise_conv import cost
from se3_fast.ops.depthwise_conv import depthwise_conv

PLAN = DepthwisePlan(1, 1, 2)
CHANNELS, KNOTS = 64, 32


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The convolution of a hidden layer of the force field, on a workload's graph."""
    graph = build(name).graph
    rows = [
        leaf(graph.num_nodes(), PLAN.components_in, CHANNELS, dtype=dtype),
        leaf(graph.num_edges(), PLAN.num_harmonics, dtype=dtype),
        leaf(graph.num_edges(), dtype=dtype),
    ]
    table = leaf(KNOTS, len(PLAN.paths) * CHANNELS, dtype=dtype)

    def forward() -> list[torch.Tensor]:
        return [depthwise_conv(PLAN, graph, *rows, table)]

    paths, pairs = len(PLAN.paths), sum(len(run.pairs) for run in PLAN.runs())
    work = cost((graph.num_nodes(), graph.num_edges()), (CHANNELS, KNOTS), (paths, pairs), rows[0].element_size())
    return Problem(forward, [*rows, table], work)
