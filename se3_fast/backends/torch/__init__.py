"""Edge-aligned frames in plain PyTorch, chunked, backward by hand; any device."""

from se3_fast.backends.protocol import Support


def available() -> Support:
    """Always."""
    return Support()
