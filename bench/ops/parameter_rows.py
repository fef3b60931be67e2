"""The parameters of all layers of a model in rows, and the sums of their gradients' parts."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.problem import Problem
from bench.workloads import build
from se3_fast import LinearSE3, NormSE3
from se3_fast.backends.operands import LayerParameters
from se3_fast.backends.triton.joint import gradient_parts, parameter_rows
from se3_fast.kernels.cost import Cost
from se3_fast.kernels.parameter_rows import cost


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """Linear maps and norms of a workload's model."""
    workload = build(name)
    layers = [
        LayerParameters(
            tensors, gradient_parts("equivariant_norm" if isinstance(module, NormSE3) else "linear", workload.graph.device)
        )
        for module in workload.model.to(dtype).modules()
        if isinstance(module, (LinearSE3, NormSE3)) and (tensors := module.row_parameters())
    ]
    operands = [tensor for layer in layers for tensor in layer.tensors]
    sizes = [(layer.parts, sum(tensor.numel() for tensor in layer.tensors)) for layer in layers]
    copied = 2 * sum(count for _, count in sizes) * dtype.itemsize

    def forward() -> list[Tensor]:
        return parameter_rows(layers)

    return Problem(forward, operands, (Cost(0, 0, copied), cost(sizes, dtype.itemsize)))
