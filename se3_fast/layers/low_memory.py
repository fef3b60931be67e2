"""Recomputation in the backward pass, for the layers' ``low_memory``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from se3_fast.ops.backend import backend, chosen_backend
from se3_fast.transforms import is_transformed

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def recompute_in_backward(
    function: Callable[Parameters, Result], is_random: bool, *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """Call ``function`` keeping only its arguments; what it computed is computed again in the backward pass.

    With ``is_random`` it draws the same random numbers again there. The recomputation runs on the backend of the first call,
    wherever the backward pass is started from. Without grad mode this is a plain call, and within ``torch.func`` transforms, which
    know no recomputation.
    """
    if not torch.is_grad_enabled() or is_transformed():
        return function(*args, **kwargs)
    if torch.compiler.is_compiling():  # the backend is fixed while tracing
        return checkpoint(partial(function, **kwargs), *args, use_reentrant=False, preserve_rng_state=is_random)
    name = chosen_backend()

    def on_same_backend(*inner: Any) -> Result:
        with backend(name):
            return function(*inner, **kwargs)

    return checkpoint(on_same_backend, *args, use_reentrant=False, preserve_rng_state=is_random)
