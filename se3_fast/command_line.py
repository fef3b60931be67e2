"""What the command lines share."""

from __future__ import annotations

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path

_TRUE = ("true", "yes", "t", "y", "1")
_FALSE = ("false", "no", "f", "n", "0")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds defaults to the help, but neither None or an empty text, whose meaning the help says, nor a path on this machine."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_here = isinstance(action.default, Path) and action.default.is_absolute()
        if action.default in (None, "") or is_here:
            return action.help
        # A command with a default of its own has it in place of the one that the shared help names.
        return re.sub(r" \(default: [^()]*\)(?= \(default: )", "", super()._get_help_string(action) or "")


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


def run(module: str, arguments: argparse.Namespace) -> int:
    """Run a command, whose module is imported now that its options are parsed; returns its exit status.

    Args:
        module: Its function `run` takes the options, and returns the exit status.
        arguments: The parsed options.
    """
    try:
        command = import_module(module)
    except ImportError as error:  # a package of an extra; its message says which
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return int(command.run(arguments))
