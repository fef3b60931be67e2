"""What is released: archive and wheel hold all that the package needs, and are of the version that the package names."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import se3_fast

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path, folder: Path = ROOT, **environment: str) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the archive of the sources, and a wheel for any platform that is built of the archive."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT, SE3_FAST_CPP="0")
    return folder


def test_names_and_descriptions(built: Path) -> None:
    pytest.importorskip("twine")
    files = sorted(built.iterdir())
    version = se3_fast.__version__
    assert [path.name for path in files] == [f"se3_fast-{version}-py3-none-any.whl", f"se3_fast-{version}.tar.gz"]
    run("-m", "twine", "check", "--strict", *files)
    with zipfile.ZipFile(files[0]) as wheel:
        metadata = Parser().parsestr(wheel.read(f"se3_fast-{version}.dist-info/METADATA").decode())
    assert (metadata["Version"], metadata["License"]) == (version, "MIT")
    assert "chem" in metadata.get_all("Provides-Extra")


def test_the_wheel_has_all_that_it_needs(built: Path, tmp_path: Path) -> None:
    """Installed beside the dependencies, away from the sources."""
    pytest.importorskip("rdkit")
    (wheel,) = built.glob("*.whl")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path, wheel)
    code = (
        "import se3_fast, se3_fast.kernels.tfn_conv; from se3_fast.__main__ import main; print(se3_fast.__file__); print(main({}))"
    )
    words = ["predict", "--model", "homo", "--smiles", "CCCO", "--report", str(tmp_path / "r.html")]
    told = run("-c", code.format(words), folder=tmp_path, PYTHONPATH=str(tmp_path), SE3_FAST_BACKEND="torch").splitlines()
    assert told[0] == str(tmp_path / "se3_fast" / "__init__.py") and told[-1] == "0"
    assert (tmp_path / "r.html").stat().st_size > 500_000
    installed = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "se3_fast").rglob("*")}
    assert {"se3_fast/csrc/tfn_conv.cu", "se3_fast/data/sample.npz", "se3_fast/py.typed"} <= installed
