"""The library of compiled CPU operations: found beside this file and loaded once; they then stand in ``torch.ops.se3_fast_cpp``.

``setup.py`` builds it from ``csrc/*.cpp`` when the package is installed (docs/building.md).
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from pathlib import Path

import torch

LIBRARY_VARIABLE = "SE3_FAST_LIBRARY"
"""Environment variable that names another build of the library."""

OLDEST_TORCH = (2, 10)


def is_available() -> bool:
    """Whether the compiled operations are there; the first call loads them."""
    return not reason()


@cache
def reason() -> str:
    """Why the compiled operations are not there, and how to get them; empty where they are."""
    path = Path(os.environ.get(LIBRARY_VARIABLE) or Path(__file__).with_name("operations.so"))
    if not path.exists():
        return (
            "which were not built when se3_fast was installed; install a C++ compiler and PyTorch first, then se3_fast again "
            "(SE3_FAST_CPP=1 pip install --force-reinstall --no-deps says what is missing)"
        )
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        return f"which need PyTorch {'.'.join(map(str, OLDEST_TORCH))} or newer, got {torch.__version__}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"which could not be loaded: {error}"
    import_module("se3_fast.backends.cpp.shapes")  # registers with what was loaded
    return ""
