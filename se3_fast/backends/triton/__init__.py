"""Backend ``triton``: from contractions and graphs to launches of the kernels in ``kernels/``, and what saves launches."""

import re
from importlib import import_module
from importlib.util import find_spec

from se3_fast.backends.protocol import Support

OLDEST = (3, 5)
"""The oldest Triton that compiles all kernels, of PyTorch 2.9. 3.3 knows no tuples of constants, 3.4 no products of float64."""


def available() -> Support:
    """Whether Triton is installed, in a version that compiles the kernels."""
    if find_spec("triton") is None:
        return Support.no("package triton is not installed")
    version = import_module("triton").__version__
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
        return Support.no(f"the kernels need triton {OLDEST[0]}.{OLDEST[1]}, installed is {version}")
    return Support()
