"""The norm-based nonlinearity."""

from __future__ import annotations

import torch

from bench.problem import Problem, leaf
from bench.workloads import build
from se3_fast.kernels.equivariant_norm import cost


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """A norm between the hidden layers of a workload."""
    workload = build(name)
    norm = workload.norm.to(dtype)
    features = {
        str(degree): leaf(workload.graph.num_nodes(), channels, 2 * degree + 1, dtype=dtype) for degree, channels in norm.fiber
    }

    def forward() -> list[torch.Tensor]:
        return list(norm(features).values())

    costs = cost(workload.graph.num_nodes(), norm.fiber.channels[0], norm.fiber.degrees, features["0"].element_size())
    return Problem(forward, [*features.values(), *norm.parameters()], costs)
