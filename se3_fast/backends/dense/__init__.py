"""The published formulas in plain PyTorch, everything materialised: the ground truth."""

from se3_fast.backends.protocol import Support


def available() -> Support:
    """Always."""
    return Support()
