"""Work in child processes with time limits: what crashes, hangs or loses the device costs itself and nothing else.

Standard library alone, so that the process that looks after the others needs no package and never opens the device.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

LONG_MESSAGE = 300
"""Characters of an error that are kept."""

SECONDS_TO_END = 10.0
"""What an interrupted command has to end by itself."""


class CallFailed(Exception):
    """A call in a child did not return.

    Attributes:
        kind: name of the exception that it raised; ``crashed`` or ``hung`` where it raised none.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Child:
    """A process that runs functions, one after another.

    It lives until a call fails: a device that saw an illegal access, a recording that was broken off and memory that ran out end
    with it, and the next call starts anew.

    Args:
        preload: modules that take long to import, none of which opens the device: they are imported once for all processes.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._process: Any = None
        self._connection: Connection | None = None

    def call(self, function: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        """What a function returns, called by name in the child.

        Args:
            function: ``package.module:name``.
            arguments: by name.
            seconds: after which it is stopped.

        Raises:
            CallFailed: it raised, ended the process, or took longer.
        """
        try:
            return self._answer(function, arguments, seconds)
        except BaseException:
            self.stop()
            raise

    def _answer(self, function: str, arguments: Mapping[str, Any], seconds: float) -> Any:
        connection = self._started()
        connection.send((function, dict(arguments)))
        if not connection.poll(seconds):
            raise CallFailed("hung", f"stopped after {seconds:.0f} s")
        try:
            kind, value = connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(5.0)
            raise CallFailed("crashed", f"the process ended by {_ending(self._process.exitcode)}") from None
        if kind != "returned":
            raise CallFailed(kind, f"{kind}: {value}")
        return value

    def _started(self) -> Connection:
        if self._connection is None:
            self._connection, other = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(other,))
            self._process.start()
            other.close()
        return self._connection

    def stop(self) -> None:
        """End the process, and those that it started."""
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        kill_group(self._process.pid)
        self._process.kill()
        self._process.join(5.0)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def run_command(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> int | None:
    """Run a command whose output goes where ours goes; its exit code, None where it had to be stopped.

    After its time it is interrupted, so that it can still say what it has found, and soon afterwards ended.

    Args:
        command: and its arguments.
        seconds: its time.
        environment: variables more than ours.
    """
    sys.stdout.flush()
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        return None
    finally:
        kill_group(process.pid)
        process.wait()


def kill_group(pid: int) -> None:
    """End a process that leads a group, and all of that group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def one_line(error: BaseException) -> str:
    """An error's message on one line, cut where it is long."""
    return " ".join(str(error).split())[:LONG_MESSAGE]


def _serve(connection: Connection) -> None:
    """Answer calls until one fails or the other side has gone."""
    os.setsid()
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        module, _, name = function.partition(":")
        try:
            value = getattr(importlib.import_module(module), name)(**arguments)
        except Exception as error:
            traceback.print_exc()
            sys.stdout.flush()
            connection.send((type(error).__name__, one_line(error)))
            os._exit(1)  # not by the way of Python, which would wait for a device that may be lost
        connection.send(("returned", value))


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code} ({signal.Signals(-code).name})"
    return f"exit code {code}"
