"""The convolution by other libraries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import rivals
from bench.sections import Files, Row


def rows() -> Iterator[Row]:
    """Installed or not."""
    yield from ({"name": name} for name in rivals.compared())


def measure(files: Files, name: str) -> Row:
    """The figures of :func:`bench.rivals.measure`.

    Raises:
        LookupError: it is not installed.
    """
    if reason := rivals.missing(name):
        raise LookupError(reason)
    return rivals.measure(name)


def summarise(files: Files, results: Sequence[Row]) -> Row:
    """A table and a plot."""
    rivals.plot(results, files.out)
    return {"text": rivals.table(results)}
