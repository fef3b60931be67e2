"""The last radial weights of all layers of a model, aligned at once."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.problem import Problem
from bench.workloads import build
from se3_fast import ConvSE3
from se3_fast.backends.triton.aligned_weights import aligned_weights
from se3_fast.kernels.aligned_weights import cost

ENTRIES = 2.0
"""Mean entries of the map for each aligned weight, at 4 degrees."""


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The weights of a workload's model; float32 in the model, aligned to the dtype asked for."""
    convolutions = [module for module in build(name).model.modules() if isinstance(module, ConvSE3)]
    plans, weights = [module.plan for module in convolutions], [module.last_weights() for module in convolutions]
    operands = [weight for of_one in weights for weight in of_one]
    num_weights = sum(weight.numel() for weight in operands)

    def forward() -> list[Tensor]:
        return [result.values for result in aligned_weights(plans, weights, dtype)]

    return Problem(forward, operands, cost(num_weights, ENTRIES, operands[0].element_size(), dtype.itemsize))
