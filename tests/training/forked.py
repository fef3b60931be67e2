"""The training command in processes that begin in a fork of one that has imported everything: a run takes no seconds to start.

``Commands`` is for tests; this file run as a program is the process that forks. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

REPOSITORY = Path(__file__).parents[2]


class Commands:
    """Starts training commands of one thread each.

    Args:
        folder: Where they run. What they print goes through pipes in it, which a limit for files does not touch.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = 0
        self._readers: dict[int, list[Future[str]]] = {}
        self._threads = ThreadPoolExecutor(max_workers=32)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, words: Sequence[object], **attack: Any) -> int:
        """Start a command and return the id of its process; for what may happen to it see ``attack``."""
        self._started += 1
        pipes = [self._folder / f"{name}-{self._started}" for name in ("out", "err")]
        for pipe in pipes:
            os.mkfifo(pipe)
        readers = [self._threads.submit(pipe.read_text, "utf-8", "replace") for pipe in pipes]
        request = {"words": [str(word) for word in words], "attack": attack, "pipes": [str(pipe) for pipe in pipes]}
        process = self._ask(request)["process"]
        self._readers[process] = readers
        return process

    def wait(self, process: int) -> subprocess.CompletedProcess[str]:
        """Wait for a command; its exit status (negative: the signal that killed it) and what it printed."""
        status = self._ask({"wait": process})["status"]
        printed = [reader.result() for reader in self._readers.pop(process)]
        return subprocess.CompletedProcess([], status, *printed)

    def run(self, words: Sequence[object], **attack: Any) -> subprocess.CompletedProcess[str]:
        """Start a command and wait for it."""
        return self.wait(self.start(words, **attack))

    def close(self) -> None:
        """End the process that forks."""
        self._server.communicate()
        self._threads.shutdown()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


def attack(torch: Any, call: tuple[str, int] | None = None, signals: Sequence[int] = (), limit: int | None = None) -> None:
    """What happens to this process.

    Args:
        torch: The package.
        call: A function (``step`` of the optimizer, ``save`` of torch, ``write``, ``fsync`` or ``replace`` of the system) and the
            number of the call that begins with the signals.
        signals: They are sent to this process then.
        limit: Bytes that a file may have, as on a full disk; what asks for room beforehand is not there.
    """
    if call is not None:
        name, number = call
        owner = {"step": torch.optim.AdamW, "save": torch}.get(name, os)
        original, calls = getattr(owner, name), []

        def counting(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == number:
                for each in signals:
                    os.kill(os.getpid(), each)
            return original(*arguments, **options)

        setattr(owner, name, counting)
    if limit is not None:
        del os.posix_fallocate
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _text_stream(descriptor: int) -> TextIO:
    return os.fdopen(descriptor, "w", buffering=1)


def serve() -> None:
    """Fork and wait as the lines on standard input say; returns only in a child, after its redirections."""
    import torch

    from se3_fast import train

    import_module("se3_fast.training.property_command")  # here, not in every child
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            child = os.fork()
            if child == 0:
                for descriptor, pipe in zip((1, 2), request["pipes"], strict=True):
                    os.dup2(os.open(pipe, os.O_WRONLY), descriptor)
                sys.stdout, sys.stderr = map(_text_stream, (1, 2))
                attack(torch, **request["attack"])
                sys.exit(train.main(request["words"]))
            answer = {"process": child}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
