"""Tries cases in a process of their own and notices when it dies or hangs."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).parents[3]
START_SECONDS = 300
CASE_SECONDS = 60


@dataclass
class Tally:
    """What came of the cases of one reader.

    Attributes:
        outcomes: How many were accepted, refused, or failed.
        failures: Each with the words that run it again.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.outcomes.total()


class Driver:
    """Used in a `with` block."""

    def __enter__(self) -> Driver:
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process: subprocess.Popen[str] | None = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop()
        self._errors.close()

    def attempt(self, reader: str, seed: int, number: int, tally: Tally) -> None:
        """Try one case."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{reader} {seed} {number}\n")
        process.stdin.flush()
        answer = self._answer(CASE_SECONDS)
        if answer is None:
            reason = f"died or hung: {self._stop()}"
            outcome = "failed"
        else:
            told = json.loads(answer)
            outcome, reason = told["outcome"], told["reason"]
        tally.outcomes[outcome] += 1
        if outcome == "failed":
            tally.failures.append(f"{reader} {seed} {number}: {reason}")

    def _start(self) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "MALLOC_ARENA_MAX": "2"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.files.worker"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        if self._answer(START_SECONDS) is None:
            raise RuntimeError(f"the process that tries cases does not start: {self._stop()}")
        return self._process

    def _answer(self, seconds: float) -> str | None:
        """The next line of the process; None if it is dead or says nothing for so long."""
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(seconds) else ""
        return line or None

    def _stop(self) -> str:
        """End the process; the last of what it said of its end."""
        process, self._process = self._process, None
        if process is None:
            return ""
        process.kill()
        status = process.wait()
        self._errors.seek(0)
        said = self._errors.read()[-600:].decode(errors="replace")
        return f"status {status}, {said}"
