"""Backend ``triton``: from contractions and graphs to launches of the kernels in ``kernels/``, and what saves launches."""

from importlib.util import find_spec

from se3_fast.backends.protocol import Support


def available() -> Support:
    """Whether Triton is installed."""
    return Support() if find_spec("triton") is not None else Support.no("package triton is not installed")
