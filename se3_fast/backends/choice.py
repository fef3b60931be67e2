"""Which implementation of an operation runs.

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
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

BACKENDS = ("dense", "torch", "cpp", "triton", "cuda")
KERNEL_RADIAL_WIDTH = 32
"""The radial width that ``kernels/`` and ``csrc/tfn_conv.cu`` are made for; others run as ``torch``."""

ENVIRONMENT_VARIABLE = "SE3_FAST_BACKEND"

_chosen: ContextVar[str | None] = ContextVar("se3_fast_backend", default=None)


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


@torch.compiler.assume_constant_result
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
    if name == "cpp" and device.type != "cpu":
        raise ValueError(f"backend cpp: expected tensors on the CPU, got {device}")
    if name == "cpp" and not _has_cpp():
        raise ValueError(f"backend cpp: expected the compiled operations, {_why_no_cpp()}")
    if name == "cuda" and device.type != "cuda":
        raise ValueError(f"backend cuda: expected tensors on a CUDA device, got {device}")
    return name


def automatic_backend(device: torch.device) -> str:
    """What ``auto`` means for tensors on ``device``.

    On the CPU ``cpp`` where it was built; on CUDA devices ``triton`` from compute capability 8.0 on and ``cuda`` on 7.x, where what
    they need is installed. Otherwise ``torch``.
    """
    if device.type == "cpu":
        if _has_cpp():
            return "cpp"
        _say_once_how_to_get_cpp()
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8 and _has_triton():
            return "triton"
        if major == 7 and _has_cuda():
            return "cuda"
    return "torch"


def chosen_backend() -> str:
    """The name chosen for this context, ``auto`` included: what :func:`backend` takes to choose the same again.

    Raises:
        ValueError: if the environment variable names no backend.
    """
    return _chosen.get() or _checked(os.environ.get(ENVIRONMENT_VARIABLE, "auto"), ENVIRONMENT_VARIABLE)


def convolution_backend(name: str, dtype: torch.dtype, width: int = KERNEL_RADIAL_WIDTH) -> str:
    """The backend that a convolution runs on where ``name`` is selected: there are kernels for some convolutions only.

    Args:
        name: what :func:`selected_backend` says.
        dtype: the compute dtype.
        width: the radial width K.
    """
    if name in ("triton", "cuda") and width != KERNEL_RADIAL_WIDTH:
        return "torch"
    return "torch" if name == "cuda" and dtype == torch.float64 else name


def frames_read(name: str) -> Literal["angles", "wigner"]:
    """Which form of the edges' frames the convolutions of a backend read, see :class:`~se3_fast.ops.edge_frames.EdgeGeometry`.

    ``name`` is what :func:`convolution_backend` says; of backend ``dense``, that of the edges which the others leave to it.
    """
    return "angles" if name in ("triton", "cuda") else "wigner"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _has_cpp() -> bool:
    from se3_fast.backends.cpp import library

    return library.is_available()


def _why_no_cpp() -> str:
    from se3_fast.backends.cpp import library

    return library.reason()


@cache
def _say_once_how_to_get_cpp() -> None:
    warnings.warn(f"se3_fast runs on backend torch, slower than its compiled operations: {_why_no_cpp()}", stacklevel=2)


@cache
def _has_cuda() -> bool:
    from se3_fast.backends.cuda import library

    return library.is_available()


def _checked(name: str, argument: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"{argument}: expected one of {', '.join(('auto', *BACKENDS))}, got {name!r}")
    return name
