"""The CUDA kernels of ``csrc/`` on the CPU: compiled as C++ with ``cuda_emulation.h``, launched like on a device."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from se3_fast.backends.cuda import library

HERE = Path(__file__).parent
COMPILER = shutil.which("g++")
OPTIONS = (
    "-std=c++17",
    "-O1",
    "-fno-strict-aliasing",
    "-fsanitize=alignment,bounds,shift",
    "-fno-sanitize-recover=all",
    "-Wno-unknown-pragmas",
    "-fPIC",
)
WATCHED = "-fsanitize=thread"
"""The compiler calls a function for every access; those of the thread sanitizer are not linked, ``accesses.cpp`` has others."""

_directory = tempfile.TemporaryDirectory(prefix="se3_fast_emulator")


@cache
def emulator(architecture: int, sources: Path | None = None) -> ctypes.CDLL:
    """The kernels as they are for an architecture: 700 (Volta) or 750 (Turing); by default those of ``csrc/``."""
    folder = Path(tempfile.mkdtemp(dir=_directory.name))
    includes = [f"-I{HERE}", f"-I{sources or library.source_directory()}", f"-DSE3_FAST_EMULATED={architecture}"]
    for name, options in (("emulator", [WATCHED]), ("accesses", [])):
        source, target = str(HERE / f"{name}.cpp"), str(folder / f"{name}.o")
        subprocess.run([str(COMPILER), *OPTIONS, *options, *includes, "-c", source, "-o", target], check=True)
    target = str(folder / "emulator.so")
    subprocess.run([str(COMPILER), *OPTIONS, "-shared", *map(str, folder.glob("*.o")), "-o", target], check=True)
    loaded = ctypes.CDLL(target)
    loaded.findings.restype = ctypes.c_char_p
    return loaded


class Launcher:
    """In place of :func:`se3_fast.backends.cuda.library.launch`; every launch runs its blocks in another random order.

    Args:
        architecture: 700 or 750.
        is_reversed: the last warp of a block runs first.
        sources: others than those of ``csrc/``.

    Raises:
        AssertionError: a block or a thread touches what it may not, or when it may not.
    """

    def __init__(self, architecture: int, is_reversed: bool = False, sources: Path | None = None) -> None:
        self.emulator = emulator(architecture, sources)
        self.is_reversed = is_reversed
        self.num_launches = 0

    def __call__(
        self,
        name: str,
        grid: tuple[int, int, int],
        num_threads: int,
        shared_bytes: int,
        arguments: Sequence[library.Argument],
        device: torch.device,
    ) -> None:
        assert device.type == "cpu"
        packed = library.PackedArguments(arguments)
        self.run(name.encode(), grid, num_threads, shared_bytes, packed.address, tensors_of(arguments))

    def run(
        self, name: bytes, grid: tuple[int, ...], num_threads: int, shared_bytes: int, address: int, tensors: Sequence[torch.Tensor]
    ) -> None:
        """Run a kernel whose packed arguments are at an address, with these tensors among them."""
        self.num_launches += 1
        starts = (ctypes.c_size_t * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        sizes = (ctypes.c_size_t * len(tensors))(*(tensor.nbytes for tensor in tensors))
        memory = (starts, sizes, ctypes.c_size_t(len(tensors)))
        order = (self.num_launches, int(self.is_reversed))
        status = self.emulator.emulate(
            name, *grid, num_threads, ctypes.c_size_t(shared_bytes), ctypes.c_void_p(address), *memory, *order
        )
        assert status == 0, f"no kernel {name.decode()}"
        findings = self.emulator.findings().decode()
        assert not findings, f"{name.decode()}: {findings}"


def tensors_of(arguments: Sequence[library.Argument]) -> list[torch.Tensor]:
    """What a kernel may touch."""
    return [argument for argument in arguments if isinstance(argument, torch.Tensor)]
