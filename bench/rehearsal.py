"""A rehearsal of :mod:`bench.gpu` without a GPU: ``python -m bench.rehearsal`` (or ``make gpu-rehearsal``).

The same program at tiny sizes, with Triton's interpreter and a stand-in for the device (:mod:`bench.stand_in`). Among its rows are
one that crashes, one that hangs and one that cannot be captured; all others have to be measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from bench import gpu

PLAN = gpu.Plan(
    module="bench.stand_in",
    refused_device="none",
    preload=(
        "bench.stand_in",
        "bench.sections.memory",
        "bench.sections.operations",
        "bench.sections.rivals",
        "bench.sections.throughput",
    ),
    seconds={"tests": 240.0},
    row_seconds={"rivals": 4.0},
    test_seconds=30.0,
    tests=("tests/backends/triton/test_edge_frames.py",),
)


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the options are those of :mod:`bench.gpu`."""
    os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return gpu.run_plan(PLAN, gpu.parse(words))


if __name__ == "__main__":
    sys.exit(main())
