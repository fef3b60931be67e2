"""What an error says, for a line of a log or of a table."""

from __future__ import annotations

LONGEST = 1000
"""Characters: more than any message of ours has, less than what a damaged file may put into one of a library's."""


def one_line(error: BaseException) -> str:
    """The text of an error on one line of moderate length; `<file>: <reason>` of the system's, the type where there is no text."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
