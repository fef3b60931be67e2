"""Packaging: ``se3_fast`` from its folder, and the compiled CPU operations from ``csrc/*.cpp``.

docs/building.md says how the operations are compiled and why so. Environment variables:
    SE3_FAST_CPP: ``0`` leaves them out, ``1`` makes it an error if they cannot be built; by default the package then goes without.
    SE3_FAST_TORCH_PYTHON: a Python interpreter whose PyTorch to compile against; by default the first that has one.
    CXX, CXXFLAGS, LDFLAGS: the compiler and more flags.
    SE3_FAST_CUDA: ``1`` compiles the CUDA kernels (``csrc/tfn_conv.cu``) now, with nvcc, instead of at first use; for the
        architectures of TORCH_CUDA_ARCH_LIST, such as ``"7.0;7.5+PTX"`` (docs/volta_turing.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "se3_fast" / "__init__.py").read_text()).group(1)

SOURCES = ROOT / "csrc"
LIBRARY = Path("se3_fast", "backends", "cpp", "operations.so")
CUDA_KERNELS = Path("se3_fast", "backends", "cuda", "kernels.fatbin")
VECTOR_SUFFIX = "_vector.cpp"
"""Sources so named hold the loops over vectors and are compiled once for each instruction set."""

OLDEST_TORCH = (2, 10)
"""The version whose stable ABI is used: the library runs with this one and all later ones."""

FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi"]

VECTOR_FLAGS = ["-falign-functions=64", "-falign-loops=64"]
"""Where a loop over vectors begins in its cache line is worth up to 4 %, and would else depend on what is linked before it."""

INSTRUCTION_SETS = {
    "x86_64": {
        "baseline": (16, []),
        "avx2": (32, ["-mavx2", "-mfma"]),
        "avx512": (64, ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"]),
    },
}
"""By processor: bytes of a vector and flags of each instruction set that the library chooses from when it is loaded."""

FIND_TORCH = """
import importlib.util, json, pathlib, re
spec = importlib.util.find_spec("torch")
folder = pathlib.Path(spec.submodule_search_locations[0])
version = re.search(r"__version__ = '(\\d+)\\.(\\d+)", (folder / "version.py").read_text())
print(json.dumps([str(folder), int(version[1]), int(version[2])]))
"""


class Toolchain(NamedTuple):
    """What the CPU operations are compiled with: the compiler's command, and the folder and version of PyTorch."""

    compiler: list[str]
    torch: Path
    torch_version: tuple[int, int]


class NotBuilt(Exception):
    """Why the CPU operations cannot be built."""


def find_toolchain() -> Toolchain:
    """The compiler and PyTorch, or the error that says which of them is missing."""
    if os.environ.get("SE3_FAST_CPP") == "0":
        raise NotBuilt("SE3_FAST_CPP=0 leaves them out")
    if sys.platform not in ("linux", "darwin"):
        raise NotBuilt(f"they are built on Linux and macOS, not on {sys.platform}")
    compiler = shlex.split(os.environ.get("CXX", "")) or next(
        ([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), []
    )
    if not compiler or shutil.which(compiler[0]) is None:
        raise NotBuilt("there is no C++ compiler (g++ or clang++; or name one in CXX)")
    for python in _interpreters():
        # -I: under pip's build isolation PYTHONPATH hides the packages of the environment that is installed into.
        found = subprocess.run([python, "-I", "-c", FIND_TORCH], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            folder, *version = json.loads(found.stdout)
            if tuple(version) < OLDEST_TORCH:
                raise NotBuilt(f"they need PyTorch {'.'.join(map(str, OLDEST_TORCH))} or newer, {folder} is older")
            return Toolchain(compiler, Path(folder), (version[0], version[1]))
    raise NotBuilt("PyTorch is not installed yet (install it first, or name a Python that has it in SE3_FAST_TORCH_PYTHON)")


def _interpreters() -> list[str]:
    """Where to look for PyTorch; any Python will do, since the library has no part of Python in it."""
    if "SE3_FAST_TORCH_PYTHON" in os.environ:
        return [os.environ["SE3_FAST_TORCH_PYTHON"]]
    folders = os.environ.get("PATH", "").split(os.pathsep)
    on_path = [str(Path(folder, "python3")) for folder in folders if folder and Path(folder, "python3").exists()]
    return list(dict.fromkeys([sys.executable, *on_path]))


class Compilation:
    """Compiles the sources into one shared library; what has not changed is kept in ``build/native-...``."""

    def __init__(self, toolchain: Toolchain) -> None:
        self.toolchain = toolchain
        include = toolchain.torch / "include"
        target = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000ULL"
        places = [f"-ffile-prefix-map={ROOT}=.", f"-I{SOURCES}", "-isystem", str(include)]
        self.flags = [*FLAGS, target, *places, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        self.link_flags = ["-shared", f"-L{toolchain.torch / 'lib'}", "-ltorch_cpu", *shlex.split(os.environ.get("LDFLAGS", ""))]
        digest = hashlib.sha256(repr((toolchain, self.flags, self.link_flags)).encode()).hexdigest()[:12]
        self.folder = ROOT / "build" / f"native-{digest}"
        self.newest_header = max(path.stat().st_mtime for path in SOURCES.glob("*.h"))

    def library(self) -> Path:
        """The library, compiled where it is out of date."""
        self.folder.mkdir(parents=True, exist_ok=True)
        objects = [built for source in sorted(SOURCES.glob("*.cpp")) for built in self._objects(source)]
        library = self.folder / LIBRARY.name
        if not library.exists() or library.stat().st_mtime < max(built.stat().st_mtime for built in objects):
            self._run([*self.flags, *map(str, objects), *self.link_flags], library)
        return library

    def _objects(self, source: Path) -> list[Path]:
        if not source.name.endswith(VECTOR_SUFFIX):
            return [self._object(source, source.stem, [])]
        sets = INSTRUCTION_SETS.get(platform.machine(), {"baseline": (16, [])})
        return [
            self._object(
                source,
                f"{source.stem}-{name}",
                [f"-DSE3_FAST_INSTRUCTIONS={name}", f"-DSE3_FAST_VECTOR_BYTES={width}", *VECTOR_FLAGS, *flags],
            )
            for name, (width, flags) in sets.items()
        ]

    def _object(self, source: Path, name: str, flags: list[str]) -> Path:
        built = self.folder / f"{name}.o"
        if not built.exists() or built.stat().st_mtime < max(source.stat().st_mtime, self.newest_header):
            self._run([*self.flags, *flags, "-c", str(source)], built)
        return built

    def _run(self, arguments: list[str], output: Path) -> None:
        """Run the compiler; its output appears under its name only when it is complete."""
        partial = output.with_suffix(f".{os.getpid()}{output.suffix}")
        command = [*self.toolchain.compiler, *arguments, "-o", str(partial)]
        print(shlex.join(command), flush=True)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.stderr.write(result.stderr)
        if result.returncode != 0:
            partial.unlink(missing_ok=True)
            raise NotBuilt(f"the compiler failed:\n{result.stderr}")
        partial.replace(output)


class BuildOperations(build_ext):
    """``build_ext`` for the library of CPU operations, which is no Python module: it is loaded by PyTorch."""

    def run(self) -> None:
        """Build; without success the package has no compiled operations, unless they are required."""
        self._outputs: list[str] = []
        target = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib)) / LIBRARY
        try:
            library = Compilation(find_toolchain()).library()
        except NotBuilt as error:
            go_without(error)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.so")
        shutil.copyfile(library, partial)
        partial.replace(target)  # a process that has the old one loaded keeps it
        self._outputs = [str(target)]

    def get_outputs(self) -> list[str]:
        """What an installation copies."""
        return self._outputs

    def get_output_mapping(self) -> dict[str, str]:
        """None: an editable installation finds the library in its place."""
        return {}


class BuildPackage(build_py):
    """``build_py`` that also compiles the CUDA kernels where that is asked for; they are data, the same for every platform."""

    def run(self) -> None:
        """Copy the package; the kernels go beside the module that loads them."""
        super().run()
        target = (ROOT if self.editable_mode else Path(self.build_lib)) / CUDA_KERNELS
        target.unlink(missing_ok=True)  # those of an earlier build, perhaps of other sources
        if os.environ.get("SE3_FAST_CUDA") == "1":
            compile_cuda_kernels(target)


def compile_cuda_kernels(target: Path) -> None:
    """Compile them with nvcc; where there is none they are compiled at first use."""
    if shutil.which("nvcc") is None:
        print("se3_fast: SE3_FAST_CUDA=1, but there is no nvcc: the CUDA kernels are compiled at first use", file=sys.stderr)
        return
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or "7.0;7.5+PTX"
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    targets = []
    for entry in re.split(r"[;\s]+", asked.strip("; ")):
        match = re.fullmatch(r"(\d+)\.(\d+)a?(\+PTX)?", entry)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected compute capabilities such as '7.0;7.5+PTX', got {asked!r}")
        number = match[1] + match[2]
        if int(match[1]) < 7 or f"compute_{number}" not in known:
            print(f"se3_fast: no CUDA kernels for {entry}: no tensor cores, or unknown to this nvcc", file=sys.stderr)
            continue
        codes = [f"sm_{number}", *([f"compute_{number}"] if match[3] else [])]
        targets += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    if targets:
        command = ["nvcc", "--std=c++17", "-fatbin", *targets, str(SOURCES / "tfn_conv.cu"), "-o", str(target)]
        print(shlex.join(command), flush=True)
        subprocess.run(command, check=True)


class PlatformWheel(bdist_wheel):
    """A wheel with the library serves every Python 3, but one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Tags of the wheel's name."""
        python, abi, platform_tag = super().get_tag()
        return (python, abi, platform_tag) if self.root_is_pure else ("py3", "none", platform_tag)


def go_without(error: NotBuilt) -> None:
    """Say that the operations are not built; stop if they are required."""
    message = f"se3_fast: the compiled CPU operations are not built: {error}"
    if os.environ.get("SE3_FAST_CPP") == "1":
        raise SystemExit(message)
    print(f"{message}\nse3_fast: the package works without them, on backend torch; see docs/building.md", file=sys.stderr)


def extensions() -> list[Extension]:
    """The library, if it can be built; else nothing, so that the wheel is one for any platform."""
    try:
        find_toolchain()
    except NotBuilt as error:
        go_without(error)
        return []
    return [Extension("se3_fast.backends.cpp.operations", sources=[])]


setup(
    name="se3_fast",
    version=VERSION,
    description="Fast SE(3)-Transformers: equivariant graph attention for 3D points, in PyTorch",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["se3_fast", "se3_fast.*"]), "se3_fast.csrc"],  # kernels and csrc are links to the folders
    package_data={
        "se3_fast": ["py.typed"],
        "se3_fast.data": ["sample.npz", "force_sample.npz"],
        "se3_fast.pretrained": ["*.safetensors", "*.md", "SHA256SUMS"],
        "se3_fast.report": ["assets/*"],
        "se3_fast.csrc": ["*.cu", "*.cuh"],  # compiled at first use
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildOperations, "build_py": BuildPackage, "bdist_wheel": PlatformWheel},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.24",
        "e3nn>=0.5.1",
        "tqdm>=4.60",
        "torchmetrics>=1.0",
        "tensorboard>=2.10",
        "matplotlib>=3.6",
        "requests>=2.28",
        "safetensors>=0.4",
        "pytorch_optimizer>=3.0",
        "PyYAML>=6",
        "vesin>=0.6",
    ],
    extras_require={
        "dgl": ["dgl>=1.1"],
        "pyg": ["torch_geometric>=2.3"],
        "chem": ["rdkit>=2023.9", "tblite>=0.3"],
        "parquet": ["pyarrow>=14"],
        "ase": ["ase>=3.26"],
        "hdf5": ["h5py>=3.8"],
        "lmdb": ["ase>=3.26"],
        "torch-sim": ["torch-sim-atomistic>=0.3; python_version >= '3.11'"],
        "logging": ["wandb>=0.15"],
        "cuda": ["cuda-bindings>=12.6"],
        "test": [
            "pytest>=8",
            "pytest-benchmark>=4",
            "pytest-xdist>=3",
            "hypothesis>=6.100",
            "triton>=3.5; platform_system == 'Linux'",
        ],
    },
    entry_points={
        "console_scripts": [
            "se3-fast=se3_fast.__main__:main",
            "se3-fast-train=se3_fast.train:main",
            "se3-fast-inference=se3_fast.inference:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Chemistry",
    ],
)
