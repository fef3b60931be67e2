"""Errors of training and inference, and how a command line reports them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class TrainingError(RuntimeError):
    """Training cannot go on, for instance because the loss is not a number."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model, data set or optimizer."""


class CommandError(Exception):
    """A mistake in what a command was given; its text is one line for the user."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that bad input causes while a run is set up into a `CommandError`.

    Only the set-up belongs inside: an error of the same type in the middle of a run is a fault that
    needs its traceback.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise CommandError(" ".join(str(error).split())) from error


def run_command(action: Callable[[], None]) -> int:
    """Run a command; report what stops it in one line on stderr and return the exit status.

    Returns:
        0 when all went well, 2 after a mistake in the input, 1 when training could not go on.
    """
    try:
        action()
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
