"""Peak memory of one training step above what model, gradients and inputs take: run in a process of its own.

``python -m bench.peak_memory WORKLOAD BACKEND`` prints bytes. A step before the one measured makes what a process pays once (thread
pools, library buffers). The CPU's memory is counted by the system, so the C library must give back what is freed: by default it
raises, as it goes, the size from which it does (M_MMAP_THRESHOLD), and a step then finds its memory in what the last one left. The
scratch memory that the C++ operations keep between calls, 64 MiB at most (``csrc/workspace.h``), is among what is paid once.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import se3_fast
from bench.workloads import DEVICE, Workload, build

M_MMAP_THRESHOLD = -3
"""Number of the parameter in glibc's mallopt: bytes of an allocation from which freed memory goes back to the system."""


def measure(name: str, backend: str) -> int:
    """Peak bytes of a training step of a workload."""
    with se3_fast.backend(backend):
        return peak_of_step(build(name))


def peak_of_step(workload: Workload) -> int:
    """Peak bytes of a forward and backward pass above those before it: resident on the CPU, allocated on a GPU."""
    give_back_freed_memory()
    workload.forward_backward()
    for parameter in workload.model.parameters():
        parameter.grad = parameter.detach().clone()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        workload.forward_backward()
        return torch.cuda.max_memory_allocated() - before
    with peak_memory() as peak:
        workload.forward_backward()
    return peak.bytes


def give_back_freed_memory() -> None:
    """From now on the C library gives large freed memory back, which it would keep more and more of."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 128 * 1024)  # its initial value, no longer raised


@dataclass
class Peak:
    """What :func:`peak_memory` has found in ``bytes``."""

    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """The most that the block had resident above what there was before it (Linux), counted when it ends."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    peak, before = Peak(), _status_bytes("VmRSS")
    yield peak
    peak.bytes = high_water_mark() - before


def high_water_mark() -> int:
    """Peak resident bytes of this process (Linux); getrusage would count that of the process it was forked from."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    """A figure of the memory of this process, as Linux has it."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))


def measure_in_new_process(name: str, backend: str) -> int:
    """The same, started from any process."""
    command = [sys.executable, "-m", "bench.peak_memory", name, backend]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
