"""The GPU that is modelled, an H200: what it has, and what the model takes its times to be.

Counts of units are documented by the vendor. Latencies and reachable rates are taken from published measurements of the same
generation and have not been checked on the device itself: they are the uncalibrated part.
"""

from __future__ import annotations

from se3_fast.kernels.resources import TARGETS

NAME = "H200"
TARGET = "sm_90"
MULTIPROCESSOR = TARGETS[TARGET]
MULTIPROCESSORS = 132
SCHEDULERS = 4
"""Of a multiprocessor; each issues one warp instruction a cycle."""

LANES = 32
CYCLES_PER_US = 1980.0
ISSUE_EFFICIENCY = 0.9
"""Share of its cycles in which a busy scheduler issues."""

LAUNCH_US = 2.0
"""From the end of one launch to the first instruction of the next, and back."""

START_CYCLES = 500
"""Of a program before its code runs at full speed: instructions and constants are not in any cache."""

L1_BYTES_PER_CYCLE = 64
"""From the second-level cache into one multiprocessor."""

L2_BYTES_PER_US = 7.5e6
L2_BYTES_KEPT = 40e6
"""Of what was touched last, what the second-level cache still has."""

SECTOR_BYTES, LINE_BYTES = 32, 128
MEMORY_BYTES_PER_US = 4.3e6
"""Reached, of 4.8e6."""

PLAIN_BYTES_PER_US = 4.0e6
"""Reached by PyTorch's own operations."""

TENSOR_FLOP_PER_US = MULTIPROCESSORS * 4096 * CYCLES_PER_US
"""Dense half precision with float32 sums: 2,048 products a multiprocessor and cycle."""

LATENCY = {
    "L1 hit": 38,
    "L2 hit": 300,  # the mean of the near and the far half
    "asynchronous copy": 310,
    "atomic": 320,
    "shared memory": 30,
    "store reads its operands": 14,
    "shuffle": 24,
    "warp reduction": 20,
    "special function": 30,
    "double": 16,
    "matrix instruction": 33,
    "matrix group drains": 30,
    "block barrier": 24,
    "fence": 22,
    "constant": 40,
    "special register": 28,
    "to uniform register": 12,
    "other": 10,
}
"""In cycles, as seen by the instruction that waits."""

WARP_MATRIX_CYCLES = 6.5
"""Of ``mma.sync`` m16n8k16 on one tensor core: it reaches 62 % of the rate of the warp group's instructions."""
