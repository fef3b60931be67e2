"""Which implementation of an operation runs, and why not another.

Backends:
    dense: the published formula in plain PyTorch, everything materialised. The ground truth; any dtype.
    torch: edge-aligned frames, chunked, in plain PyTorch (DESIGN 1.1 and 1.3). Any device.
    cpp: the compiled operations of ``csrc/`` where an operation has one, else as ``torch``. CPU.
    triton: the Triton kernels of ``se3_fast.kernels`` where an operation has one, else as ``torch``. CUDA devices; on the CPU only
        in Triton's interpreter (``TRITON_INTERPRET=1``), which is for tests.
    cuda: the CUDA kernels of ``csrc/`` where an operation has one, else as ``torch``. For compute capability 7.0 and 7.5, whose
        tensor cores Triton does not use.

``auto`` takes the fastest that is there for the device. Set the environment variable ``SE3_FAST_BACKEND`` for a whole process,
or use the context manager :func:`backend` for a block of code (the context manager wins). It holds for the thread, or task, that
enters it: a thread that is started inside the block begins with the choice of the process, unless it is run in a copy of the
block's context (``contextvars.copy_context().run``, which ``asyncio.to_thread`` does).

An operation that the selected backend lacks, or does not support as it is asked for, runs as ``torch``, or else as ``dense``; why
is logged once, at level INFO, by the logger ``se3_fast.backends.choice``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

from se3_fast import backends
from se3_fast.autograd.modes import known_when_compiled
from se3_fast.backends import registry

BACKENDS = ("dense", "torch", "cpp", "triton", "cuda")
_NAMES = ("auto", *BACKENDS)
FALLBACKS = ("torch", "dense")
"""Where an operation runs that the selected backend lacks."""

ENVIRONMENT_VARIABLE = "SE3_FAST_BACKEND"

_chosen: ContextVar[str | None] = ContextVar("se3_fast_backend", default=None)
_log = logging.getLogger(__name__)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the operations inside the ``with`` block (forward; the backward follows it) on backend ``name``.

    Threads started inside do not inherit it.

    Args:
        name: one of ``auto``, ``dense``, ``torch``, ``cpp``, ``triton``, ``cuda``.

    Raises:
        ValueError: for any other name.
    """
    token = _chosen.set(_checked(name, "name"))
    try:
        yield
    finally:
        _chosen.reset(token)


def by_formula() -> Any:
    """A context in which operations run as their formula, which autograd can follow any number of times."""
    return backend("dense")


def implementation(operation: str, device: torch.device, *details: Hashable) -> Any:
    """The implementation of an operation that is called now: what :mod:`se3_fast.backends.protocol` says under its name.

    Args:
        operation: its name.
        device: that of the tensors.
        *details: of the call, as the ``support`` of the operation's implementations takes them.

    Raises:
        ValueError: as :func:`selected_backend`.
    """
    if torch.compiler.is_compiling():
        return _traced(operation, _name_running(operation, device, details))
    return _of_backend(operation, selected_backend(device), False, details)


def formula(operation: str) -> Any:
    """The implementation of an operation by its formula."""
    if torch.compiler.is_compiling():
        return _traced(operation, _name_of_formula(operation))
    return registry.implementation(operation, FALLBACKS[-1])


def own_implementation(operation: str, device: torch.device, *details: Hashable) -> Any | None:
    """As :func:`implementation`, of the selected backend itself; None where it has none that serves, and in compiled graphs."""
    return None if torch.compiler.is_compiling() else _own(operation, selected_backend(device), details)


@cache
def _own(operation: str, name: str, details: tuple[Hashable, ...]) -> Any | None:
    module = registry.implementation(operation, name)
    return module if module is not None and registry.support(module, False, details).is_supported else None


def _traced(operation: str, name: str) -> Any:
    """A module that is loaded, as ``torch.compile`` can follow it: an attribute of the package."""
    return getattr(getattr(backends, name), operation)


@known_when_compiled
def _name_running(operation: str, device: torch.device, details: tuple[Hashable, ...]) -> str:
    """The backend that runs an operation in compiled code; loads its module."""
    return str(_of_backend(operation, selected_backend(device), True, details).__name__.split(".")[-2])


@known_when_compiled
def _name_of_formula(operation: str) -> str:
    registry.implementation(operation, FALLBACKS[-1])
    return FALLBACKS[-1]


@cache
def _of_backend(operation: str, name: str, is_compiled: bool, details: tuple[Hashable, ...]) -> Any:
    for candidate in dict.fromkeys((name, *FALLBACKS)):
        module = registry.implementation(operation, candidate)
        if module is None:
            continue
        support = registry.support(module, is_compiled, details)
        if support.is_supported:
            return module
        _say_why_not(operation, candidate, support.reason)
    raise LookupError(f"{operation}: expected an implementation of backend {FALLBACKS[-1]}, got none")


@cache
def _say_why_not(operation: str, name: str, reason: str) -> None:
    _log.info("%s does not run on backend %s: %s", operation, name, reason)


@known_when_compiled
def selected_backend(device: torch.device) -> str:
    """The backend that an operation called now with tensors on ``device`` runs on. In compiled code: called while it is traced.

    Raises:
        ValueError: if the environment variable names no backend, or the one chosen does not run on the device.
    """
    name = chosen_backend()
    if name == "auto":
        return automatic_backend(device)
    if name == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend triton: expected tensors on a CUDA device, got {device} (on the CPU it needs TRITON_INTERPRET=1)"
        )
    if name == "triton" and not _is_there("triton"):
        raise ValueError(f"backend triton: expected a Triton to compile its kernels, {registry.availability('triton').reason}")
    if name == "cpp" and device.type != "cpu":
        raise ValueError(f"backend cpp: expected tensors on the CPU, got {device}")
    if name == "cpp" and not _is_there("cpp"):
        raise ValueError(f"backend cpp: expected the compiled operations, {registry.availability('cpp').reason}")
    if name == "cuda" and device.type != "cuda":
        raise ValueError(f"backend cuda: expected tensors on a CUDA device, got {device}")
    return name


def automatic_backend(device: torch.device) -> str:
    """What ``auto`` means for tensors on ``device``.

    On the CPU ``cpp`` where it was built; on CUDA devices ``triton`` from compute capability 8.0 on and ``cuda`` on 7.x, where what
    they need is installed. Otherwise ``torch``.
    """
    if device.type == "cpu":
        if _is_there("cpp"):
            return "cpp"
        _say_once_how_to_get_cpp()
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8 and _is_there("triton"):
            return "triton"
        if major == 7 and _is_there("cuda"):
            return "cuda"
    return "torch"


def described_choice(device: torch.device) -> str:
    """The backend for tensors on ``device``, and why it is that one, for people.

    Raises:
        ValueError: as :func:`selected_backend`.
    """
    name = selected_backend(device)
    if chosen_backend() != "auto":
        return f"{name} (asked for {'by the program' if _chosen.get() else f'by {ENVIRONMENT_VARIABLE}'})"
    faster = {"cpu": "cpp", "cuda": "triton"}.get(device.type)
    if name in FALLBACKS and faster is not None and not _is_there(faster):
        return f"{name} ({faster} is not there)"
    return f"{name} (the fastest that is there)"


def chosen_backend() -> str:
    """The name chosen for this context, ``auto`` included: what :func:`backend` takes to choose the same again.

    Raises:
        ValueError: if the environment variable names no backend.
    """
    return _chosen.get() or _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


@cache
def _is_there(name: str) -> bool:
    support = registry.availability(name)
    if not support.is_supported:
        _log.info("backend %s is not there: %s", name, support.reason)
    return support.is_supported


@cache
def _say_once_how_to_get_cpp() -> None:
    reason = registry.availability("cpp").reason
    warnings.warn(f"se3_fast runs on backend torch, slower than its compiled operations: {reason}", stacklevel=2)


def _checked(name: str, argument: str) -> str:
    if name not in _NAMES:
        raise ValueError(f"{argument}: expected one of {', '.join(_NAMES)}, got {name!r}")
    return name
