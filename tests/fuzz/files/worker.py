"""A process that tries cases: reads `reader seed number` line by line, answers each with a line of JSON.

It runs with little memory above what it begins with, so that a file which makes a reader ask for much is found out, and dies alone
where a reader dies.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from .cases import Failure, Reader
from .readers import READERS

ROOM = 3 << 29
"""Bytes of addresses that a case may take."""

GROWTH = 1 << 19
"""Kilobytes of memory that a case may touch; the files have some ten thousand bytes, and archives may unpack to 64 MiB."""


def attempt(reader: Reader, numbers: random.Random, folder: Path) -> tuple[str, str]:
    """Try one case: `accepted`, `refused` or `failed`, and how."""
    content, is_what_was_written = reader.change(numbers)
    path = folder / f"case{reader.suffix}"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = reader.read(path)
        if not is_what_was_written(result):
            return "failed", "accepted, but it is not what was written"
        reader.use(result)
    except reader.error as error:
        fault = _fault_of(error)
        if fault:
            return "failed", fault
        outcome = "refused", str(error)
    except Failure as failure:
        return "failed", str(failure)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    else:
        outcome = "accepted", ""
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return outcome if grown < GROWTH else ("failed", f"took {grown >> 10} MiB for a file of {len(content)} bytes")


def _fault_of(error: BaseException) -> str:
    """What is wrong with a refusal; empty if nothing is."""
    if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
        return f"not one line: {error!r:.300}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or "allocate memory" in str(cause):
            return f"ran out of memory: {cause!r:.200}"
        cause = cause.__cause__ or cause.__context__
    return ""


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readers: dict[str, Reader] = {}
        print("ready", flush=True)
        for line in sys.stdin:
            kind, seed, number = line.split()
            if kind not in readers:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                readers[kind] = READERS[kind](folder)
                size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))
            outcome, reason = attempt(readers[kind], random.Random(f"{kind} {seed} {number}"), folder)
            print(json.dumps({"outcome": outcome, "reason": reason[:500]}), flush=True)


if __name__ == "__main__":
    main()
