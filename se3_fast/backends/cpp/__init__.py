"""Backend ``cpp``: the compiled CPU operations of ``csrc/``, and how plans and graphs become calls of them."""

from se3_fast.backends.cpp import library
from se3_fast.backends.protocol import Support


def available() -> Support:
    """Whether the library was built and loads."""
    return Support(library.reason())
