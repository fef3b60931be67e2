"""PyTorch's modes, and tensors that outlive them.

A tensor is of the mode that it was made in: in inference mode it can never be differentiated with, while something traces it has no
values, inside a transform of ``torch.func`` it ends with the call, on the default device it may be nowhere. What is made once and
kept must be none of that, whoever asks for it first. So tensors that are kept come about here only: constants of the process by
:func:`constant`, what is kept beside a tensor by :func:`made_beside`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def constant(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator for functions of hashable arguments that make tensors: made at the first call, outside of every mode, and kept.

    ``torch.compile`` takes the results as they are.
    """

    def make(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with _outside_of_modes():
            return function(*args, **kwargs)

    kept: Any = cache(make)

    @wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        result: Result = kept(*args, **kwargs)
        return result

    return call


def known_when_compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator for functions that ``torch.compile`` calls while it traces, and whose results it takes as constants.

    As ``torch.compiler.assume_constant_result``, which marks functions so, but imports the whole compiler for it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def made_beside(source: Tensor, make: Callable[[], Result], with_gradients: bool = False) -> Result:
    """What ``make`` makes of ``source``, to be kept as long as that; a constant, or whatever the mode now, with a graph."""
    if torch.compiler.is_compiling():
        with torch.set_grad_enabled(with_gradients):
            return make()
    if not _is_plain(source):  # of a mode itself, and ends with it
        with torch.inference_mode(False), torch.set_grad_enabled(with_gradients):
            return make()
    with _outside_of_modes(with_gradients):
        return make()


@contextmanager
def _outside_of_modes(with_gradients: bool = False) -> Iterator[None]:
    """Inside, tensors are what they are when no mode is on."""
    if not _is_any_mode_on():
        with torch.set_grad_enabled(with_gradients):
            yield
        return
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(with_gradients),
        temporarily_clear_interpreter_stack(),
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


def _is_any_mode_on() -> bool:
    return (
        torch.is_inference_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch.is_autocast_enabled("cpu")
    )


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Inside, tensors can be differentiated with later; gradients are followed if they were before."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def not_in_inference_mode() -> AbstractContextManager[object]:
    """Inside, changes of the tensors that are made are counted. To leave inference mode turns grad mode on."""
    is_left = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if is_left else nullcontext()


def is_of_inference_mode(tensor: Tensor) -> bool:
    """Whether the tensor was made in inference mode: it cannot be kept for a backward pass, and its changes are not counted."""
    return not torch.compiler.is_compiling() and tensor.is_inference()


def version_of(tensor: Tensor) -> int:
    """How often the tensor has been changed in place, as far as PyTorch counts: not in inference mode, nor while it compiles."""
    return 0 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version


def has_changed(tensor: Tensor, version: int) -> bool:
    """Whether the tensor has been changed in place since :func:`version_of` was asked; not seen while PyTorch compiles."""
    return not torch.compiler.is_compiling() and (0 if tensor.is_inference() else tensor._version) != version


def uncounted_values(tensor: Tensor) -> Tensor | None:
    """The values now of a tensor whose changes in place PyTorch does not count, to compare with later; None where it does, or where
    to compare would wait for a device."""
    return tensor.clone() if is_of_inference_mode(tensor) and is_readable(tensor) else None


def is_readable(tensor: Tensor) -> bool:
    """Whether values can be checked: without waiting for a device, and nothing traces or transforms the tensor."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    return _is_plain(tensor)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, torch.nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
