"""What must be known of ``torch.func`` transforms (``grad``, ``vmap``, ``jacrev``, ...): within them tensors stand for others.

A tensor there is a wrapper with no values of its own to point at; so is every tensor made there, even of constants.

Where autograd itself runs a backward pass for a batch of gradients at once (``is_grads_batched``, ``vectorize=True``) it takes an
older ``vmap``, of which a :class:`torch.autograd.Function` is told nothing: ``apply_in_backward`` in ``operation.py`` is for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether a transform is at work: there are no hooks on saved tensors there."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_forward() -> bool:
    """Whether derivatives are followed in forward mode (``jvp``, ``jacfwd``, ``dual_level``)."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0


def is_recording() -> bool:
    """Whether derivatives, of any mode, may be asked for of what is computed now."""
    return torch.is_grad_enabled() or is_transformed() or is_forward()


def untransformed() -> AbstractContextManager[object]:
    """Within it no transform is at work: what is made of tensors that are no wrappers is none either, and may be kept."""
    return temporarily_clear_interpreter_stack() if is_transformed() else nullcontext()


def any_wrapped(tensors: Iterable[Tensor]) -> bool:
    """Whether one of the tensors stands for another, be it one that was left behind by a transform."""
    return any(map(_functorch.is_functorch_wrapped_tensor, tensors))


def are_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether all are float32, or all float64, on one device, and none stands for another."""
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    return len(kinds) == 1 and tensors[0].dtype in (torch.float32, torch.float64) and not any_wrapped(tensors)


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for one entry of a batch, within ``vmap``."""
    while is_transformed() and _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def is_followed(tensor: Tensor) -> bool:
    """Whether derivatives with respect to a tensor may be asked for; within a ``vmap`` and in forward mode they always may."""
    return is_forward() or (torch.is_grad_enabled() and (tensor.requires_grad or is_batched(tensor)))


def is_variable(tensor: Tensor) -> bool:
    """As :func:`is_followed`, whatever the grad mode is now."""
    return is_forward() or tensor.requires_grad or is_batched(tensor)


def values(tensor: Tensor) -> Tensor:
    """The values behind a tensor: of all entries, on axes in front, within ``vmap``; otherwise the tensor, or what it wraps."""
    num_batches = 0
    while not torch.compiler.is_compiling() and _functorch.is_functorch_wrapped_tensor(tensor):
        axis = _functorch.maybe_get_bdim(tensor) if _functorch.is_batchedtensor(tensor) else None
        tensor = _functorch.get_unwrapped(tensor)
        if axis is not None:
            tensor, num_batches = tensor.movedim(axis + num_batches, 0), num_batches + 1
    return tensor


def asked_for(ctx: Any, are_tensors: Sequence[bool]) -> tuple[bool, ...]:
    """Which inputs of a function the backward pass that is running wants gradients of.

    ``ctx.needs_input_grad`` says which require one. Of these ``torch.autograd.grad`` may want a part: forces are gradients of the
    positions alone, though all parameters require one too.

    Args:
        ctx: of the function, in its backward.
        are_tensors: which of its inputs are tensors.
    """
    if torch.compiler.is_compiling() or is_transformed():
        return ctx.needs_input_grad
    nodes = (node for node, _ in ctx.next_functions)  # of the tensors alone
    reached = (next(nodes) if is_tensor else None for is_tensor in are_tensors)
    return tuple(needs and _is_reached(node) for needs, node in zip(ctx.needs_input_grad, reached, strict=True))


def _is_reached(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that autograd.grad was given itself
        return True
