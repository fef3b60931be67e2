"""SIGINT and SIGTERM: a run ends after a whole step, with a checkpoint, and all its processes after the same one."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .distributed import World
from .errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 3.0
"""Of several processes: torchrun passes on a signal that the terminal has sent to all of them, which must not count twice."""


class StopSignal:
    """The signal that asks this process to stop.

    Attributes:
        number: Of the first such signal; None: there was none.
        is_watched: Whether signals come here at all.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_watched = False
        self._is_deferred = False
        self._owner = os.getpid()
        self._since = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it SIGINT and SIGTERM raise `Stopped`; within `deferred` they are noted. A second one ends the process at once.

        Signals that the process was told to ignore, as by nohup, stay ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        watched = {number: handler for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)}
        for number in watched:
            signal.signal(number, self._receive)
        self.is_watched = True
        try:
            yield
        finally:
            self.is_watched = False
            for number, handler in watched.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal is only noted.

        Raises:
            Stopped: At the end, if one came.
        """
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.check()

    def check(self) -> None:
        """Stop here if a signal came.

        Raises:
            Stopped: One came.
        """
        if self.number is not None:
            raise Stopped(self.number)

    def watch(self, batches: Iterable[Any]) -> Iterable[Any]:
        """The batches, which raise `Stopped` when a signal comes; the same object where none is watched for."""
        return self._until_stopped(batches) if self.is_watched else batches

    def _until_stopped(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            self.check()
            yield batch

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            return  # a process that loads data: the one that trains decides
        if self.number is not None:
            if time.monotonic() - self._since > ECHO_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.number, self._since = number, time.monotonic()
        if "WORLD_SIZE" not in os.environ:
            # By the system, also while the interpreter waits for a long operation.
            for each in SIGNALS:
                if signal.getsignal(each) == self._receive:
                    signal.signal(each, signal.SIG_DFL)
        if not self._is_deferred:
            raise Stopped(number)


@contextmanager
def dead_workers_are_known() -> Iterator[None]:
    """Within it torch does not raise once more, out of whatever runs, that a process that loads data has died."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def is_of_dead_worker(error: BaseException) -> bool:
    """Whether an error says that a process that loads data has died: in torch's words, or because it was cut off meanwhile."""
    if str(error).startswith("DataLoader worker (pid"):
        return True
    receives = any(frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))
    return receives and isinstance(error, (ConnectionError, EOFError))


class StopAgreement:
    """Whether a run stops after a step: the same answer in all its processes, if any of them has received a signal.

    What the processes know at one step is put together while the next one runs, so that none waits for another.
    """

    def __init__(self, received: StopSignal, world: World) -> None:
        self._received = received
        self._world = world
        self._answer: Callable[[], int] | None = None

    def after_step(self) -> int | None:
        """The signal that ends the run here, or None. All processes must call it after every step."""
        if self._world.size == 1 or not self._received.is_watched:
            return self._received.number
        answer, self._answer = self._answer, self._world.begin_maximum(self._received.number or 0)
        return (answer() or None) if answer is not None else None
