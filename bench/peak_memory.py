"""Peak memory of one training step above what model, gradients and inputs take: run in a process of its own.

``python -m bench.peak_memory WORKLOAD BACKEND`` prints bytes. A step on a small instance first makes what every process pays once
(thread pools, library buffers); the step measured then runs in the same process.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psutil
import torch

import se3_fast
from bench.workloads import DEVICE, build

SMALL = 2


def measure(name: str, backend: str) -> int:
    """Peak bytes of a forward and backward pass above those before it: resident on the CPU, allocated on a GPU."""
    with se3_fast.backend(backend):
        build(name, SMALL).forward_backward()
        workload = build(name)
        for parameter in workload.model.parameters():
            parameter.grad = parameter.detach().clone()
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            workload.forward_backward()
            return torch.cuda.max_memory_allocated() - before
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = psutil.Process().memory_info().rss
        workload.forward_backward()
    return _high_water_mark() - before


def _high_water_mark() -> int:
    """Peak resident bytes of this process (Linux); getrusage would count that of the process it was forked from."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))


def measure_in_new_process(name: str, backend: str) -> int:
    """The same, started from any process."""
    command = [sys.executable, "-m", "bench.peak_memory", name, backend]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
