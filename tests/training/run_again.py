"""A recorder that takes the place of CUDA graphs where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext


class RunAgain:
    """Records nothing: a replay is another run. Counts what it was given to record."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        return function

    def stream(self) -> nullcontext[None]:
        return nullcontext()
