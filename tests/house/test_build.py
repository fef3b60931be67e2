"""How ``setup.py`` builds the compiled CPU operations, and what happens where it cannot: on a copy with few sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from se3_fast.backends.cpp import library

ROOT = Path(__file__).parents[2]
LIBRARY = Path("se3_fast", "backends", "cpp", "operations.so")
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The build files, and of the sources those that compile fast."""
    for folder in ("csrc", "se3_fast"):
        (tmp_path / folder).mkdir()
    for name in ("setup.py", "README.md", "se3_fast/__init__.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for path in (ROOT / "csrc").glob("*.h"):
        shutil.copyfile(path, tmp_path / "csrc" / path.name)
    for name in ("instruction_set.cpp", "library.cpp"):
        shutil.copyfile(ROOT / "csrc" / name, tmp_path / "csrc" / name)
    return tmp_path


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build in place, against the PyTorch of this process unless told otherwise."""
    variables = os.environ | {"SE3_FAST_TORCH_PYTHON": sys.executable} | environment
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)


def num_compiled(result: subprocess.CompletedProcess[str]) -> int:
    return result.stdout.count(" -c ")


@needs_compiler
def test_only_what_changed_is_compiled(project: Path) -> None:
    first = build(project)
    assert num_compiled(first) == 2, first.stderr
    built = (project / LIBRARY).stat().st_mtime_ns
    assert num_compiled(build(project)) == 0
    source = project / "csrc" / "library.cpp"
    os.utime(source, ns=(built + 10**9, built + 10**9))
    assert num_compiled(build(project)) == 1
    assert (project / LIBRARY).stat().st_mtime_ns > built


@needs_compiler
def test_vector_sources_are_compiled_for_each_instruction_set(project: Path) -> None:
    source = '#include "vector.h"\nnamespace se3_fast::SE3_FAST_INSTRUCTIONS { int lanes() { return LANES<float>; } }\n'
    (project / "csrc" / "one_vector.cpp").write_text(source)
    result = build(project)
    names = {path.stem for path in project.glob("build/native-*/one_vector-*.o")}
    assert "one_vector-baseline" in names, result.stderr
    assert len(names) == (3 if os.uname().machine == "x86_64" else 1)


def without_compiler() -> dict[str, str]:
    return {"CXX": "no-such-compiler"}


def with_failing_compiler() -> dict[str, str]:
    return {"CXXFLAGS": "-no-such-option"}


def without_torch() -> dict[str, str]:
    return {"SE3_FAST_TORCH_PYTHON": "false"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (without_compiler(), "there is no C++ compiler"),
        (without_torch(), "PyTorch is not installed yet"),
        pytest.param(with_failing_compiler(), "the compiler failed", marks=needs_compiler),
    ],
    ids=["no compiler", "no PyTorch", "compiler fails"],
)
def test_package_without_the_library(project: Path, environment: dict[str, str], message: str) -> None:
    """It is no error and says why; unless the library is required."""
    result = build(project, **environment)
    assert result.returncode == 0, result.stderr
    assert message in result.stderr
    assert "the package works without them" in result.stderr
    assert not (project / LIBRARY).exists()
    required = build(project, SE3_FAST_CPP="1", **environment)
    assert required.returncode != 0
    assert message in required.stderr


def test_old_torch(project: Path) -> None:
    python = project / "python"
    python.write_text("#!/bin/sh\necho '[\"/somewhere/torch\", 2, 6]'\n")
    python.chmod(0o755)
    compiler = project / "compiler"
    shutil.copy(python, compiler)
    result = build(project, SE3_FAST_TORCH_PYTHON=str(python), CXX=str(compiler))
    assert "they need PyTorch 2.10 or newer, /somewhere/torch is older" in result.stderr


def test_left_out(project: Path) -> None:
    result = build(project, SE3_FAST_CPP="0")
    assert result.returncode == 0
    assert not (project / LIBRARY).exists()


@pytest.fixture
def fresh_library() -> Iterator[None]:
    library.reason.cache_clear()
    yield
    library.reason.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(path: Path) -> str:
        library.reason.cache_clear()
        monkeypatch.setenv("SE3_FAST_LIBRARY", str(path))
        assert not library.is_available()
        return library.reason()

    assert "which were not built when se3_fast was installed" in reason(tmp_path / "operations.so")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    assert "which could not be loaded" in reason(broken)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert "which need PyTorch 2.10 or newer, got 2.9.1" in reason(broken)
