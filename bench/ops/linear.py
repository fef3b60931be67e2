"""The linear map of a projection: the attended features beside the input of the block."""

from __future__ import annotations

import torch

from bench.problem import Problem, leaf
from bench.workloads import build
from se3_fast.kernels.linear import Shape, cost


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The projection of a workload's last attention block."""
    workload = build(name)
    block, num_nodes = workload.block, workload.graph.num_nodes()
    project = block.project.to(dtype)
    first, second = (
        {str(degree): leaf(num_nodes, fiber[degree], 2 * degree + 1, dtype=dtype) for degree in fiber.degrees}
        for fiber in (block.value_fiber, block.fiber_in)
    )

    def forward() -> list[torch.Tensor]:
        return list(project(first, beside=second).values())

    degrees = [int(degree) for degree in project.weights]
    shape = Shape(
        components=tuple(2 * degree + 1 for degree in degrees),
        channels_in=tuple(tuple(fiber[degree] for degree in degrees) for fiber in (block.value_fiber, block.fiber_in)),
        channels_out=tuple(len(weight) for weight in project.weights.values()),
        heads_in=(0, 0),
        heads_out=0,
        dtype=dtype,
    )
    operands = [*first.values(), *(second[key] for key in second if key in project.weights), *project.parameters()]
    return Problem(forward, operands, cost(num_nodes, shape))
