"""Which implementation of an operation runs.

Backends:
    dense: the published formula in plain PyTorch, everything materialised. The ground truth; any dtype.
    torch: edge-aligned frames, chunked, in plain PyTorch (DESIGN 1.1 and 1.3). Any device.
    triton: the Triton kernels of ``se3_fast.kernels`` where an operation has one, else as ``torch``. CUDA devices; on the CPU only
        in Triton's interpreter (``TRITON_INTERPRET=1``), which is for tests.

``auto`` takes the fastest that is there for the device. Set the environment variable ``SE3_FAST_BACKEND`` for a whole process,
or use the context manager :func:`backend` for a block of code (the context manager wins).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

BACKENDS = ("dense", "torch", "triton")
ENVIRONMENT_VARIABLE = "SE3_FAST_BACKEND"

_chosen: ContextVar[str | None] = ContextVar("se3_fast_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the operations inside the ``with`` block (forward; the backward follows it) on backend ``name``.

    Args:
        name: one of ``auto``, ``dense``, ``torch``, ``triton``.

    Raises:
        ValueError: for any other name.
    """
    token = _chosen.set(_checked(name, "name"))
    try:
        yield
    finally:
        _chosen.reset(token)


def selected_backend(device: torch.device) -> str:
    """The backend that an operation called now with tensors on ``device`` runs on.

    Raises:
        ValueError: if the environment variable names no backend, or the one chosen does not run on the device.
    """
    name = chosen_backend()
    if name == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend triton: expected tensors on a CUDA device, got {device} (on the CPU it needs TRITON_INTERPRET=1)"
        )
    return "torch" if name == "auto" else name


def chosen_backend() -> str:
    """The name chosen for this context, ``auto`` included: what :func:`backend` takes to choose the same again.

    Raises:
        ValueError: if the environment variable names no backend.
    """
    return _chosen.get() or _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


def _checked(name: str, argument: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"{argument}: expected one of {', '.join(('auto', *BACKENDS))}, got {name!r}")
    return name
