"""The launches of a step, recorded without a GPU: Triton kernels compiled for it as they are specialised, PyTorch's operations.

Tensors stay on the CPU. A launch of a kernel is compiled by Triton (in its cache) and not carried out: what it would write stays as
it is allocated.
"""

from __future__ import annotations

import ctypes
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from bench.launches import OperationCounter, kernel_name
from bench.modelled.gpu import LANES, TARGET
from bench.modelled.memory import Storage
from se3_fast import kernels
from se3_fast.backends.triton import joint


@dataclass(frozen=True)
class Pointer:
    """A tensor that a kernel is given.

    Attributes:
        storage: what it is a view of.
        offset: of its first number, in bytes.
        num_bytes: of its numbers.
    """

    storage: Storage
    offset: int
    num_bytes: int


Argument: TypeAlias = "Pointer | int | float"


@dataclass(frozen=True)
class KernelLaunch:
    """One launch of a Triton kernel.

    Attributes:
        name: module and kernel.
        issuer: kind of layer that launches it.
        grid: programs along each axis.
        cubin: machine code.
        shared_bytes, num_warps: of a program.
        arguments: with the type that the kernel takes each for, in its order, constants left out.
    """

    name: str
    issuer: str
    grid: tuple[int, int, int]
    cubin: bytes
    shared_bytes: int
    num_warps: int
    arguments: tuple[tuple[str, Argument], ...]

    def pointers(self) -> list[Pointer]:
        """The tensors among the arguments."""
        return [value for _, value in self.arguments if isinstance(value, Pointer)]


@dataclass(frozen=True)
class OperationLaunch:
    """An operation of PyTorch, and the bytes of all tensors that it reads and writes."""

    name: str
    issuer: str
    num_bytes: int


class _Driver:
    """What Triton asks of a driver to compile for a GPU that is not there."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(TARGET.removeprefix("sm_")), LANES)


class Recorder(OperationCounter):
    """Records instead of counting."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[KernelLaunch | OperationLaunch] = []
        self._storages: dict[int, Storage] = {}
        self._kept: list[Any] = []  # so that no other tensor gets the address of one whose content is known

    def add(self, name: str, touched: Sequence[Tensor] = ()) -> None:
        """Record an operation of PyTorch."""
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in touched)
        self.launched.append(OperationLaunch(f"torch.{name}", self.issuer(name), num_bytes))

    @contextmanager
    def of_kernels(self) -> Iterator[None]:
        """Record launches of Triton kernels."""
        run = JITFunction.run

        def record(kernel: JITFunction, *args: Any, grid: tuple[int, ...], **kwargs: Any) -> None:
            compiled = run(kernel, *args, grid=grid, **kwargs | {"warmup": True})
            bound = kernel.signature.bind(*args, **{name: kwargs[name] for name in kernel.arg_names if name in kwargs})
            bound.apply_defaults()
            arguments = self._arguments(list(compiled.src.signature.values()), list(bound.arguments.values()))
            width, height, depth = (*grid, 1, 1)[:3]
            self.launched.append(
                KernelLaunch(
                    name=kernel_name(kernel),
                    issuer=self.issuer(kernel_name(kernel)),
                    grid=(width, height, depth),
                    cubin=compiled.asm["cubin"],
                    shared_bytes=compiled.metadata.shared,
                    num_warps=compiled.metadata.num_warps,
                    arguments=tuple(arguments),
                )
            )

        JITFunction.run = record
        try:
            yield
        finally:
            JITFunction.run = run

    def _arguments(self, types: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[str, Argument]]:
        """What the kernel takes, tuples unpacked."""
        for kind, value in zip(types, values, strict=True):
            if isinstance(kind, tuple):
                yield from self._arguments(kind, value)
            elif kind != "constexpr":
                yield kind, self._pointer(value) if isinstance(value, Tensor) else value

    def _pointer(self, tensor: Tensor) -> Pointer:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._storages or not self._has_content(address, tensor):
            content = None
            if not tensor.dtype.is_floating_point:
                self._kept.append(storage)
                content = np.frombuffer(ctypes.string_at(address, storage.nbytes()), np.uint8)
            self._storages[address] = Storage(address, storage.nbytes(), content)
        offset = tensor.storage_offset() * tensor.element_size()
        return Pointer(self._storages[address], offset, tensor.numel() * tensor.element_size())

    def _has_content(self, address: int, tensor: Tensor) -> bool:
        known = self._storages[address]
        is_same = known.num_bytes == tensor.untyped_storage().nbytes()
        return is_same and (known.content is not None) == (not tensor.dtype.is_floating_point)


@contextmanager
def compiling_for_gpu() -> Iterator[None]:
    """Kernels are compiled for the modelled GPU, from now on in this process; models choose on the CPU what they choose on a GPU.

    Raises:
        RuntimeError: under Triton's interpreter, which compiles nothing.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET: expected it not to be set, as kernels are compiled here, got 1")
    for entry in pkgutil.iter_modules(kernels.__path__):
        import_module(f"{kernels.__name__}.{entry.name}")
    parts = joint.gradient_parts
    driver.set_active(_Driver())
    # Backend triton takes tensors on the CPU where kernels are interpreted; those that are imported by now are compiled.
    with (
        mock.patch.dict(os.environ, TRITON_INTERPRET="1"),
        mock.patch.object(joint, "gradient_parts", lambda operation, device: parts(operation, torch.device("cuda"))),
    ):
        yield


def record(step: Callable[[], None]) -> list[KernelLaunch | OperationLaunch]:
    """The launches of a step, the second one, so that nothing is recorded that is made once per process."""
    with Recorder() as recorder, recorder.of_kernels():
        step()
        recorder.launched.clear()
        step()
    return recorder.launched
