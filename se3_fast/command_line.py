"""What the command lines share."""

from __future__ import annotations

import argparse

_TRUE = ("true", "yes", "t", "y", "1")
_FALSE = ("false", "no", "f", "n", "0")


def boolean(text: str) -> bool:
    """Read a boolean as the published scripts do.

    Raises:
        argparse.ArgumentTypeError: Neither true nor false.
    """
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
