"""Recomputation in the backward pass, for the layers' ``low_memory``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from se3_fast.autograd.modes import version_of
from se3_fast.autograd.transforms import is_transformed
from se3_fast.backends.choice import backend, chosen_backend
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import Graph

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def recompute_in_backward(
    function: Callable[Parameters, Result], is_random: bool, *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Call ``function`` keeping only its arguments; what it computed is computed again in the backward pass.

    With ``is_random`` it draws the same random numbers again there. The recomputation runs on the backend of the first call,
    wherever the backward pass is started from. Without grad mode this is a plain call, and within ``torch.func`` transforms, which
    know no recomputation.

    Raises:
        RuntimeError: in the backward pass, if an argument, or a parameter of the layer that ``function`` is a method of, has been
            changed in place since: what is computed again would be something else.
    """
    if not torch.is_grad_enabled() or is_transformed():
        return function(*args, **kwargs)
    if torch.compiler.is_compiling():  # the backend is fixed while tracing
        return checkpoint(partial(function, **kwargs), *args, use_reentrant=False, preserve_rng_state=is_random)
    name = chosen_backend()
    layer = getattr(function, "__self__", None)
    read = [(tensor, version_of(tensor)) for tensor in _tensors_in([layer, *args, *kwargs.values()])]

    def on_same_backend(*inner: Any) -> Result:
        for tensor, version in read:
            if version_of(tensor) != version:
                shape = list(tensor.shape)
                raise RuntimeError(f"low_memory: expected the tensors of the forward pass, got {shape} changed in place since")
        with backend(name):
            return function(*inner, **kwargs)

    return checkpoint(on_same_backend, *args, use_reentrant=False, preserve_rng_state=is_random)


def _tensors_in(values: Iterable[object]) -> Iterator[Tensor]:
    """All tensors that are read of some arguments."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, nn.Module):
            yield from value.parameters()
        elif isinstance(value, Graph):
            yield from value.edges()
        elif isinstance(value, EdgeGeometry):
            yield value.rel_pos
        elif isinstance(value, Mapping):
            yield from _tensors_in(value.values())
        elif isinstance(value, (tuple, list)):
            yield from _tensors_in(value)
