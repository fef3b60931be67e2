"""The bases of the published interface: all pairs, all fused ones, and the gradient to the positions."""

from __future__ import annotations

import torch

from bench.problem import Problem
from bench.workloads import build
from se3_fast import get_basis, update_basis_with_fused
from se3_fast.kernels.basis import cost


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The bases up to the largest degree of a workload; positions are float32 whatever the features are."""
    workload = build(name)
    rel_pos = workload.graph.edata["rel_pos"].clone().requires_grad_()
    max_degree = workload.block.to_key_value.max_degree

    def forward() -> list[torch.Tensor]:
        bases = get_basis(rel_pos, max_degree, compute_gradients=True)
        return list(update_basis_with_fused(bases, max_degree, use_pad_trick=False, fully_fused=True).values())

    return Problem(forward, [rel_pos], cost(max_degree, len(rel_pos), rel_pos.element_size()))
