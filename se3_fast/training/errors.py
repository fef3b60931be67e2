"""Errors of training and inference, and how a command line reports them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from se3_fast.command_line import UNREAD, leave_unread_streams
from se3_fast.error_text import one_line

from .streams import lasting_streams


class TrainingError(RuntimeError):
    """Training cannot go on, for instance because the loss is not a number."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model, data set or optimizer."""


class CommandError(Exception):
    """A mistake in what a command was given; its text is one line for the user."""


class Stopped(BaseException):
    """A signal has ended the work, in order. Like KeyboardInterrupt, it is no `Exception`.

    Args:
        number: Of the signal.
        outcome: What has become of the work, for the user; None: another process says it.
    """

    def __init__(self, number: int, outcome: str | None = "") -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name}; {outcome}" if outcome else f"stopped by {name}")
        self.number = number
        self.is_silent = outcome is None

    @property
    def status(self) -> int:
        """The exit status that shells give to a command that the signal has ended."""
        return 128 + self.number


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that bad input causes while a run is set up into a `CommandError`.

    Only the set-up belongs inside: an error of the same type in the middle of a run is a fault that
    needs its traceback.
    """
    try:
        yield
    except BrokenPipeError:  # no input is at fault
        raise
    except (ValueError, OSError, ImportError) as error:
        raise CommandError(one_line(error)) from error


def run_command(action: Callable[[], None]) -> int:
    """Run a command; report what stops it in one line on stderr and return the exit status.

    Returns:
        0 when all went well, 2 after a mistake in the input, 1 when training could not go on, 128 and the number of
        the signal when SIGINT or SIGTERM has ended it, `UNREAD` when nobody reads what it writes any more.
    """
    with lasting_streams():
        try:
            action()
        except CommandError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except TrainingError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except (Stopped, KeyboardInterrupt) as stop:
            stopped = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
            if not stopped.is_silent:
                print(stopped, file=sys.stderr)
            return stopped.status
        except BrokenPipeError:
            if not leave_unread_streams():
                raise
            return UNREAD
    return 0
