"""What a model or layer is given, checked at its entry: which dtype and device, not which values; and counts that it is made of."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

import torch
from torch import nn

from se3_fast.fiber import Features
from se3_fast.graph import Graph


def check_kinds(module: nn.Module, graph: Graph, given: Mapping[str, Features]) -> None:
    """Check that tensors lie where the graph does, and are float64 where the parameters are, and nowhere else.

    Other dtypes may differ, as autocast and mixed precision want it.

    Args:
        module: whose parameters they meet.
        graph: the edges.
        given: dicts of tensors, by their names in messages.

    Raises:
        ValueError: for the first that does not fit.
    """
    parameter = _first_parameter(module)
    dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else None
    device = graph.device
    for name, tensors in given.items():
        for key, tensor in tensors.items():
            if tensor.device != device:
                raise ValueError(f"{name}['{key}']: expected a tensor on {device} as the graph, got one on {tensor.device}")
            if dtype is not None and (tensor.dtype == torch.float64) != (dtype == torch.float64):
                raise ValueError(f"{name}['{key}']: expected {dtype} as the parameters have, got {tensor.dtype}")


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


def check_whole(name: str, number: object, least: int) -> None:
    """Check an argument of a layer that counts something.

    Raises:
        ValueError: It is no whole number, or less than the least.
    """
    try:
        is_right = operator.index(number) >= least  # type: ignore[arg-type]
    except TypeError:
        is_right = False
    if not is_right:
        raise ValueError(f"{name}: expected a whole number, {least} or more, got {number!r:.50}")


def check_number(name: str, number: object, expected: str, is_zero_allowed: bool = False) -> None:
    """Check an argument that is a finite number above 0, or 0 too.

    Args:
        name: of the argument.
        number: what came.
        expected: what should, for the message.
        is_zero_allowed: whether it may be 0.

    Raises:
        ValueError: It is something else.
    """
    try:
        is_right = 0 < number < math.inf or (is_zero_allowed and number == 0)  # type: ignore[operator]
    except (TypeError, ValueError, RuntimeError):  # of arrays and tensors with several numbers
        is_right = False
    if not is_right:
        raise ValueError(f"{name}: expected {expected}, got {number!r:.50}")
