"""Arguments of benchmarks that are looked at before anything is measured: what cannot be gets one line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def at_least_one(text: str) -> int:
    """A whole number above 0."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r:.50}")
    return int(text)


def seconds(text: str) -> float:
    """A finite time that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r:.50}")
    return value


def folder_with(package: str) -> Callable[[str], Path]:
    """A folder that a package of this name is imported from."""

    def read(text: str) -> Path:
        if not (Path(text) / package / "__init__.py").is_file():
            came = "one without" if Path(text).is_dir() else "none"
            raise argparse.ArgumentTypeError(f"expected a folder with the package {package}, got {came}: {text!r:.200}")
        return Path(text)

    return read


def new_file(text: str) -> Path:
    """A file that can be written, in a folder that is there."""
    path = Path(text)
    can_be = os.access(path, os.W_OK) if path.exists() else os.access(path.parent, os.W_OK)
    if not can_be or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file that can be written, got {text!r:.200}")
    return path


def named_size(names: tuple[str, ...]) -> Callable[[str], str]:
    """``NAME:SIZE`` with one of some names and a whole number above 0."""

    def read(text: str) -> str:
        name, _, size = text.partition(":")
        if name not in names or not size.isascii() or not size.isdigit() or int(size) < 1:
            raise argparse.ArgumentTypeError(f"expected NAME:SIZE with one of {', '.join(names)}, got {text!r:.50}")
        return text

    return read
