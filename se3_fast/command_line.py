"""What the command lines share."""

from __future__ import annotations

import argparse
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TextIO

UNREAD = 141
"""Exit status of a command whose output nobody reads any more: that which shells give to one that SIGPIPE (13) has ended."""

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


def quiet_when_unread(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Decorator for a command's `main`: when the reader of its output has gone, as `head` does, it ends without a word."""

    @wraps(main)
    def run_quietly(arguments: Sequence[str] | None = None) -> int:
        try:
            try:
                return main(arguments)
            finally:
                for stream in _open_streams():
                    stream.flush()
        except BrokenPipeError:
            if not leave_unread_streams():
                raise
            return UNREAD

    return run_quietly


def leave_unread_streams() -> bool:
    """Have standard output and error lead nowhere where their reader has gone, or else their last flush would fail.

    Returns:
        Whether that was so of one of them.
    """
    unread = [stream for stream in _open_streams() if _is_unread(stream)]
    for stream in unread:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(unread)


def _open_streams() -> list[TextIO]:
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None and not stream.closed]


def _is_unread(stream: TextIO) -> bool:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no file, such as a buffer of a test
        return False
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


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
