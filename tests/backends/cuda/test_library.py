"""The CUDA sources compile for Volta and Turing with no GPU at hand, and what is compiled is kept on disk."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from se3_fast.backends.cuda import library

PRODUCTS = ("contract", "hidden_gradient", "weight_gradient")
ROTATIONS = ("align", "rotate", "rotate_sum")
KERNELS = {f"{name}_{kind}" for name in PRODUCTS for kind in ("half_m0", "half_odd", "float_m0", "float_odd")}
KERNELS |= {f"{name}_{kind}" for name in ROTATIONS for kind in ("half", "float")}
REGISTERS_FOR_TWO_BLOCKS = 65536 // (2 * 256)
SHARED_BYTES = {"sm_70": 96 << 10, "sm_75": 64 << 10, "sm_80": 164 << 10, "sm_86": 100 << 10, "sm_89": 100 << 10}
SHARED_BYTES |= {"sm_90": 228 << 10, "sm_100": 228 << 10}
"""Of a multiprocessor (CUDA C++ Programming Guide, table of technical specifications)."""

STACK_BYTES = {"sm_100": 72}
"""What may be spilled there, where these kernels run only if they are asked for; nothing elsewhere."""

needs_nvrtc = pytest.mark.skipif(library.reason() is not None, reason=str(library.reason()))
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


@cache
def image(architecture: str) -> bytes:
    """What NVRTC makes of the sources for an architecture that it knows; CUDA 13 begins with Turing."""
    from cuda.bindings import nvrtc

    _, known = nvrtc.nvrtcGetSupportedArchs()
    if int(architecture.split("_")[1]) not in known:
        pytest.skip(f"this NVRTC does not know {architecture}")
    return library.compile_kernels(architecture)


def is_half_product(name: str) -> bool:
    return "half" in name and name.startswith(PRODUCTS)


def tool(name: str) -> Path:
    """A CUDA tool from Triton's package."""
    specification = importlib.util.find_spec("triton")
    path = Path(str(specification.origin)).parent / "backends" / "nvidia" / "bin" / name if specification else Path(name)
    if not path.exists():
        pytest.skip(f"Triton's package has no {name}")
    return path


def output_of(*command: object) -> str:
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def resources(cubin: Path) -> dict[str, dict[str, int]]:
    """Registers, stack and shared memory by kernel."""
    found = re.findall(
        r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        output_of(tool("cuobjdump"), "--dump-resource-usage", cubin),
    )
    names = ("registers", "stack", "shared", "local")
    return {name: dict(zip(names, map(int, figures), strict=True)) for name, *figures in found}


@needs_nvrtc
@pytest.mark.parametrize("architecture", SHARED_BYTES)
def test_nothing_spills_and_two_blocks_fit(architecture: str, tmp_path: Path) -> None:
    cubin = tmp_path / "kernels.cubin"
    cubin.write_bytes(image(architecture))
    figures = resources(cubin)
    assert set(figures) == KERNELS
    for name, figure in figures.items():
        assert figure["stack"] + figure["local"] <= STACK_BYTES.get(architecture, 0), f"{name} spills: {figure}"
        assert figure["registers"] <= REGISTERS_FOR_TWO_BLOCKS, f"{name}: {figure}"
        if is_half_product(name):
            assert 2 * figure["shared"] <= SHARED_BYTES[architecture], f"{name}: {figure}"


@needs_nvrtc
def test_half_precision_uses_the_tensor_cores_of_volta() -> None:
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)\n}", image("compute_70").decode(), re.DOTALL))
    assert set(entries) == KERNELS
    for name, body in entries.items():
        assert ("mma.sync.aligned.m8n8k4" in body) == is_half_product(name), name


@needs_nvrtc
@pytest.mark.parametrize("architecture", [name for name in SHARED_BYTES if name != "sm_70"])
def test_machine_code_has_tensor_core_instructions(architecture: str, tmp_path: Path) -> None:
    """The disassemblers at hand have forgotten sm_70."""
    cubin = tmp_path / "kernels.cubin"
    cubin.write_bytes(image(architecture))
    functions = output_of(tool("nvdisasm"), cubin).split(".section\t.text.")[1:]
    counts = {text.split(",", 1)[0]: len(re.findall(r"\bHMMA\.1688\.F32\b", text)) for text in functions}
    assert set(counts) == KERNELS
    assert all((count > 0) == is_half_product(name) for name, count in counts.items()), counts


@needs_nvcc
def test_nvcc_takes_the_sources(tmp_path: Path) -> None:
    fatbin = tmp_path / "kernels.fatbin"
    source = library.source_directory() / library.SOURCE
    output_of("nvcc", *library.OPTIONS, "-fatbin", "-gencode", "arch=compute_75,code=sm_75", source, "-o", fatbin)
    assert fatbin.stat().st_size > 0


def test_a_compiled_file_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SE3_FAST_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setattr(library, "_nvrtc_version", lambda: (12, 9))
    compiled: list[str] = []

    def compile_kernels(architecture: str) -> bytes:
        compiled.append(architecture)
        return architecture.encode()

    monkeypatch.setattr(library, "compile_kernels", compile_kernels)
    assert [library.compiled_kernels(name) for name in ("sm_70", "sm_70", "sm_75")] == [b"sm_70", b"sm_70", b"sm_75"]
    assert compiled == ["sm_70", "sm_75"]
    monkeypatch.setattr(library, "_nvrtc_version", lambda: (12, 8))
    library.compiled_kernels("sm_70")
    monkeypatch.setattr(library, "_read", lambda name: b"other sources")
    library.compiled_kernels("sm_70")
    assert compiled == ["sm_70", "sm_75", "sm_70", "sm_70"]
    assert len(list((tmp_path / "kernels").iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SE3_FAST_CACHE", str(tmp_path / "file" / "kernels"))
    monkeypatch.setattr(library, "_nvrtc_version", lambda: (12, 9))
    monkeypatch.setattr(library, "compile_kernels", lambda architecture: b"image")
    assert library.compiled_kernels("sm_70") == b"image"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SE3_FAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert library.cache_directory() == Path.home() / ".cache" / "se3_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert library.cache_directory() == Path("/xdg/se3_fast")
    monkeypatch.setenv("SE3_FAST_CACHE", "/own")
    assert library.cache_directory() == Path("/own")


@needs_nvrtc
def test_what_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_read", lambda name: b"not C++")
    with pytest.raises(RuntimeError, match=r"NVRTC 1\d\.\d+ did not compile tfn_conv.cu for sm_75: "):
        library.compile_kernels("sm_75")


@needs_nvrtc
@pytest.mark.parametrize(("capability", "known", "expected"), [((7, 5), [70, 75], "sm_75"), ((12, 7), [50, 70, 90], "compute_90")])
def test_choice_of_architecture(
    capability: tuple[int, int], known: list[int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import nvrtc

    monkeypatch.setattr(nvrtc, "nvrtcGetSupportedArchs", lambda: (nvrtc.nvrtcResult.NVRTC_SUCCESS, known))
    assert library._architecture(capability) == expected
    with pytest.raises(RuntimeError, match=r"expected a device of compute capability 7\.0 or newer, got 6\.1"):
        library._architecture((6, 1))


@needs_nvrtc
def test_an_nvrtc_that_has_forgotten_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc

    monkeypatch.setattr(nvrtc, "nvrtcGetSupportedArchs", lambda: (nvrtc.nvrtcResult.NVRTC_SUCCESS, [75, 80]))
    with pytest.raises(RuntimeError, match=r"expected an NVRTC for compute capability 7\.0, got .*, which starts at 7\.5"):
        library._architecture((7, 0))


@needs_nvrtc
@pytest.mark.parametrize("covers_device", [True, False])
def test_prebuilt_kernels_are_used_where_they_cover_the_device(
    covers_device: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuda.bindings import driver

    (tmp_path / "kernels.fatbin").write_bytes(b"prebuilt")
    monkeypatch.setattr(library, "PREBUILT", tmp_path / "kernels.fatbin")
    monkeypatch.setattr(library, "compiled_kernels", lambda architecture: architecture.encode())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))

    def load(image: bytes) -> tuple[object, bytes]:
        is_good = covers_device or image != b"prebuilt"
        return (driver.CUresult.CUDA_SUCCESS if is_good else driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU), image

    monkeypatch.setattr(driver, "cuModuleLoadData", load)
    library._module.cache_clear()
    assert library._module(0) == (b"prebuilt" if covers_device else b"sm_75\0")
    library._module.cache_clear()


@pytest.mark.parametrize(
    ("missing", "message"), [("cuda", "cuda-bindings is not installed"), ("triton", "triton is not installed")]
)
def test_without_a_package(missing: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(library, "find_spec", lambda name: None if name.startswith(missing) else find(name))
    library.reason.cache_clear()
    assert message in str(library.reason())
    assert not library.is_available()
    library.reason.cache_clear()
