"""The hidden layers of all radial profiles of a convolution."""

from __future__ import annotations

import torch

from bench.problem import Problem, leaf
from bench.workloads import build
from se3_fast.kernels.radial import cost
from se3_fast.layers.convolution import RADIAL_WIDTH
from se3_fast.ops.radial import radial


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The profiles of a hidden convolution of a workload."""
    workload = build(name)
    convolution = workload.block.to_key_value.to(dtype)
    invariants = leaf(workload.graph.num_edges(), convolution.fiber_edge[0] + 1, dtype=dtype)
    profiles = [profile.hidden_layers() for profile in convolution.radial_profiles]
    parameters = [tensor for layers in profiles for layer in layers for tensor in layer if tensor is not None]

    def forward() -> list[torch.Tensor]:
        return list(radial(invariants, profiles))

    sizes = (len(profiles), *invariants.shape, RADIAL_WIDTH, invariants.element_size())
    return Problem(forward, [invariants, *parameters], cost(*sizes, with_invariants=True))
