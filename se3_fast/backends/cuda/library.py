"""The CUDA kernels of ``csrc/``: found compiled, or compiled by NVRTC at first use and kept on disk; and how they are launched.

NVRTC and the driver are called through NVIDIA's Python bindings (``cuda-bindings``, which PyTorch's CUDA builds of recent versions
bring). No compiler and no CUDA headers are needed on the user's machine.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = "tfn_conv.cu"
HEADERS = ("cuda_device.cuh", "cuda_tile.cuh")
OPTIONS = ("--std=c++17",)
CACHE_VARIABLE = "SE3_FAST_CACHE"
OLDEST_ARCHITECTURE = 70
PREBUILT = Path(__file__).with_name("kernels.fatbin")
"""Written by ``SE3_FAST_CUDA=1 pip install .``, for the architectures that were asked for."""

Argument = Tensor | int | float | None


def is_available() -> bool:
    """Whether PyTorch sees a CUDA device and the kernels can be made ready for it: NVIDIA's bindings are there, and NVRTC."""
    return torch.version.cuda is not None and torch.cuda.is_available() and reason() is None


@cache
def reason() -> str | None:
    """What is missing to compile the kernels, in a few words; None where nothing is."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return "package cuda-bindings is not installed (the version of PyTorch's CUDA: pip install 'cuda-bindings<13' for CUDA 12)"
    if find_spec("triton") is None:
        return "package triton is not installed (the angles of the edges' frames are made by a Triton kernel)"
    if PREBUILT.exists():
        return None
    try:
        _nvrtc_version()
    except Exception as error:  # the bindings raise several kinds where the library is not there
        return f"NVRTC cannot be loaded: {str(error).strip().splitlines()[0]}"
    return None


def cache_directory() -> Path:
    """Where compiled kernels are kept: ``$SE3_FAST_CACHE``, else ``$XDG_CACHE_HOME/se3_fast``, else ``~/.cache/se3_fast``."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "se3_fast"


def source_directory() -> Path:
    """The folder of the CUDA sources; in a checkout the package holds a link to it."""
    return Path(__file__).parents[2] / "csrc"


def compile_kernels(architecture: str) -> bytes:
    """Compile the kernels with NVRTC; needs no GPU.

    Args:
        architecture: ``"sm_70"`` for machine code (a cubin), ``"compute_70"`` for PTX.

    Returns:
        The cubin or the PTX.

    Raises:
        RuntimeError: with the compiler's messages if it does not compile.
    """
    from cuda.bindings import nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(_read(SOURCE), SOURCE.encode(), len(HEADERS), *_headers()))
    options = [option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace").strip("\0\n ")
        raise RuntimeError(f"NVRTC {'.'.join(map(str, _nvrtc_version()))} did not compile {SOURCE} for {architecture}: {log}")
    if architecture.startswith("sm_"):
        image = _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    else:
        image = _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return image


def compiled_kernels(architecture: str) -> bytes:
    """The kernels compiled for an architecture, from the cache if they are there.

    The cache's files are named by a digest of the sources, the options and NVRTC's version. A file appears under its name only when
    it is complete, so that processes may share the directory; a directory that cannot be written is not used.
    """
    digest = hashlib.sha256(repr((architecture, OPTIONS, _nvrtc_version())).encode())
    for name in (SOURCE, *HEADERS):
        digest.update(_read(name))
    path = cache_directory() / f"tfn_conv-{architecture}-{digest.hexdigest()[:32]}.bin"
    try:
        return path.read_bytes()
    except OSError:
        image = compile_kernels(architecture)
    try:
        _write_whole(path, image)
    except OSError:
        return image
    return image


def launch(
    name: str, grid: tuple[int, int, int], num_threads: int, shared_bytes: int, arguments: Sequence[Argument], device: torch.device
) -> None:
    """Launch a kernel on the device's current stream.

    Args:
        name: of the kernel in ``csrc/tfn_conv.cu``.
        grid: number of blocks in each dimension; nothing is launched if one is 0.
        num_threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        arguments: those of the kernel, in order: contiguous tensors (None: a null pointer), integers, floats (float32).
        device: a CUDA device.

    Raises:
        RuntimeError: if the driver refuses.
    """
    if 0 in grid:
        return
    from cuda.bindings import driver

    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        packed = PackedArguments(arguments)
        function = _function(name, torch.cuda.current_device())
        _checked(driver.cuLaunchKernel(function, *grid, num_threads, 1, 1, shared_bytes, stream, packed.address, 0))


class PackedArguments:
    """The arguments of a kernel as the driver takes them: an array of their addresses."""

    def __init__(self, arguments: Sequence[Argument]) -> None:
        self.values = [_as_ctypes(argument) for argument in arguments]
        self.addresses = (ctypes.c_void_p * len(self.values))(*map(ctypes.addressof, self.values))

    @property
    def address(self) -> int:
        """Of the array; valid while this object lives."""
        return ctypes.addressof(self.addresses)


def _as_ctypes(argument: Argument) -> Any:
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)  # little-endian: its first half is the int of the same value
    if argument is not None and not argument.is_contiguous():
        raise ValueError(f"arguments: expected contiguous tensors, got strides {argument.stride()}")
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


@cache
def _function(name: str, device_index: int) -> Any:
    from cuda.bindings import driver

    return _checked(driver.cuModuleGetFunction(_module(device_index), name.encode()))


@cache
def _module(device_index: int) -> Any:
    """The kernels loaded on the current device: the prebuilt ones if they cover it, else compiled now."""
    from cuda.bindings import driver

    if PREBUILT.exists():
        status, module = driver.cuModuleLoadData(PREBUILT.read_bytes())
        if status == driver.CUresult.CUDA_SUCCESS:
            return module
    image = compiled_kernels(_architecture(torch.cuda.get_device_capability(device_index)))
    return _checked(driver.cuModuleLoadData(image + b"\0"))


def _architecture(capability: tuple[int, int]) -> str:
    """What to compile for: machine code if NVRTC knows the device, else PTX of the newest that it knows below it."""
    from cuda.bindings import nvrtc

    known = _checked(nvrtc.nvrtcGetSupportedArchs())
    number = 10 * capability[0] + capability[1]
    if number < OLDEST_ARCHITECTURE:
        raise RuntimeError(f"backend cuda: expected a device of compute capability 7.0 or newer, got {number / 10}")
    if number in known:
        return f"sm_{number}"
    older = [architecture for architecture in known if OLDEST_ARCHITECTURE <= architecture < number]
    if not older:
        version = ".".join(map(str, _nvrtc_version()))
        raise RuntimeError(
            f"backend cuda: expected an NVRTC for compute capability {number / 10}, got {version}, "
            f"which starts at {min(known) / 10}"
        )
    return f"compute_{max(older)}"


@cache
def _nvrtc_version() -> tuple[int, int]:
    from cuda.bindings import nvrtc

    return _checked(nvrtc.nvrtcVersion())


def _headers() -> tuple[list[bytes], list[bytes]]:
    return [_read(name) for name in HEADERS], [name.encode() for name in HEADERS]


def _read(name: str) -> bytes:
    return (source_directory() / name).read_bytes()


def _text(size_of: Any, write: Any, program: Any) -> bytes:
    """What NVRTC writes into a buffer of the size it tells."""
    buffer = b" " * _checked(size_of(program))
    _checked(write(program, buffer))
    return buffer


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _checked(result: Any) -> Any:
    """The values of a call of NVIDIA's bindings, (status, value, ..): none, one, or a tuple."""
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"CUDA: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
