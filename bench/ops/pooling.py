"""The maximum over the nodes of each graph."""

from __future__ import annotations

import torch

from bench.problem import Problem, leaf
from bench.workloads import build
from se3_fast.kernels.pooling import cost
from se3_fast.ops.pooling import pooling

CHANNELS = 128  # of the published model; graphs that are not pooled there, of proteins, take as many


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The pooling of a workload's graph."""
    graph = build(name).graph
    feature, sizes = leaf(graph.num_nodes(), CHANNELS, 1, dtype=dtype), graph.batch_num_nodes()

    def forward() -> list[torch.Tensor]:
        return [pooling(feature, sizes, "max")]

    return Problem(forward, [feature], cost(graph.num_nodes(), len(sizes), CHANNELS, feature.element_size(), is_max=True))
