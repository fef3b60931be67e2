"""Standard output and error that do not end a run: closed by their reader, on a full disk, or unable to show a letter."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO, cast

PLAIN_LETTERS = "se3_fast.plain_letters"
"""Error handler for encodings: a letter that they lack loses its accents, or becomes a question mark."""


def _plain_letters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = unicodedata.normalize("NFKD", error.object[error.start : error.end])
    return letters.encode("ascii", "ignore").decode("ascii") or "?", error.end


codecs.register_error(PLAIN_LETTERS, _plain_letters)


class LastingStream:
    """Passes on what is written to a stream until that fails, and drops it from then on.

    Args:
        stream: Writes to it, and everything else, are those of this stream.
        name: Of the stream, for the message.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._is_lost = False

    def write(self, text: str) -> int:
        """Write a text, or drop it; returns its length."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand over what is held back, or drop it."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Any) -> None:
        if self._is_lost:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._is_lost = True
            self._lead_nowhere()
            reason = getattr(error, "strerror", None) or str(error)
            if sys.stderr is not self:
                print(f"warning: {self._name} cannot be written ({reason}); the run goes on without it", file=sys.stderr)

    def _lead_nowhere(self) -> None:
        """What the interpreter still flushes when it ends must not fail again."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Within it, standard output and error are :class:`LastingStream`; letters that they cannot show are written plainly."""
    with ExitStack() as stack:
        for stream, name, redirect in (
            (sys.stdout, "standard output", redirect_stdout),
            (sys.stderr, "standard error", redirect_stderr),
        ):
            if stream is None:
                continue
            if isinstance(stream, io.TextIOWrapper):
                with suppress(OSError, ValueError):  # closed, or not what it was when it was opened
                    stream.reconfigure(errors=PLAIN_LETTERS)
            lasting = LastingStream(stream, name)
            stack.callback(lasting.flush)
            stack.enter_context(redirect(cast(TextIO, lasting)))
        yield
