"""Which implementation of an operation runs.

Backends:
    dense: the published formula in plain PyTorch, everything materialised. The ground truth; any dtype.
    torch: edge-aligned frames, chunked, in plain PyTorch (DESIGN 1.1 and 1.3). Any device.

``auto`` takes the fastest that is there for the device. Set the environment variable ``SE3_FAST_BACKEND`` for a whole process,
or use the context manager :func:`backend` for a block of code (the context manager wins).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BACKENDS = ("dense", "torch")
ENVIRONMENT_VARIABLE = "SE3_FAST_BACKEND"

_chosen: ContextVar[str | None] = ContextVar("se3_fast_backend", default=None)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the operations inside the ``with`` block (forward; the backward follows it) on backend ``name``.

    Args:
        name: one of ``auto``, ``dense``, ``torch``.

    Raises:
        ValueError: for any other name.
    """
    token = _chosen.set(_checked(name, "name"))
    try:
        yield
    finally:
        _chosen.reset(token)


def selected_backend() -> str:
    """The backend that an operation called now runs on.

    Raises:
        ValueError: if the environment variable names no backend.
    """
    name = _chosen.get() or _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)
    return "torch" if name == "auto" else name


def _checked(name: str, argument: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"{argument}: expected one of {', '.join(('auto', *BACKENDS))}, got {name!r}")
    return name
