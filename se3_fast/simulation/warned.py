"""Warnings of a simulation, for its user."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .domain import OutsideDomainWarning


@contextmanager
def warnings_on_one_line(where: Callable[[], str]) -> Iterator[None]:
    """Within it every warning that a structure is outside of what was trained on is a line on stderr.

    Args:
        where: Says where a simulation is, such as ``step 20``.
    """
    show = warnings.showwarning

    def show_on_one_line(message: Warning | str, category: type[Warning], *more: Any, **named: Any) -> None:
        if issubclass(category, OutsideDomainWarning):
            print(f"warning: {where()}: {message}", file=sys.stderr)
        else:
            show(message, category, *more, **named)

    with warnings.catch_warnings():
        warnings.simplefilter("always", OutsideDomainWarning)
        warnings.showwarning = show_on_one_line
        yield
