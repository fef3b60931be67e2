"""The frames of all edges in the form that a backend reads: Wigner blocks, or the four values of two angles."""

from __future__ import annotations

import torch

from bench.problem import Problem
from bench.workloads import build
from se3_fast import EdgeGeometry
from se3_fast.backends.choice import selected_backend
from se3_fast.kernels.edge_frames import cost


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The geometry of a workload; positions are float32 whatever the features are."""
    workload = build(name)
    rel_pos = workload.graph.edata["rel_pos"]
    max_degree = workload.block.to_key_value.max_degree

    def forward() -> list[torch.Tensor]:
        geometry = EdgeGeometry(rel_pos, max_degree)
        return [geometry.angles if selected_backend(rel_pos.device) == "triton" else geometry.wigner]

    return Problem(forward, costs=(cost(workload.graph.num_edges(), rel_pos.element_size()),))
