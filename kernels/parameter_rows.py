"""Gradients of many layers' parameters, each the sum of parts that the layer's kernel left: one launch.

    dp[n] = sum_s parts[s, n]

A kernel whose programs share the nodes or edges leaves a row of sums for each program, [P, n] for the n values of the layer's
parameters. Their sums over P, of all layers of a model, are one launch at the end of the backward pass. A program has 128 columns
of one layer and walks over its parts in a fixed order.

Cost: every part read once, an addition each: bound by memory, 16 MB at ``qm9`` (7 layers, 4 degrees, 32 channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .precision import sum_type
from .resources import CompileCase, signature
from .tuples import one_of

SLOTS = 32
"""How many layers one launch takes at most: each is an argument of the kernel."""

_ROWS, _COLUMNS = 8, 128  # a tile: 8 values a thread
_WARPS = 4


@triton.jit
def _sum_kernel(layers, result, blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUM: tl.constexpr):
    block = blocks + tl.program_id(0).to(tl.int64) * 5
    parts = one_of(layers, tl.load(block))
    first, num_columns, num_parts = tl.load(block + 1), tl.load(block + 2), tl.load(block + 3)
    column = first + tl.arange(0, COLUMNS)
    is_column = column < num_columns
    total = tl.zeros((ROWS, COLUMNS), SUM)
    for start in range(0, num_parts, ROWS):
        row = start + tl.arange(0, ROWS)
        is_value = (row < num_parts)[:, None] & is_column[None]
        total += tl.load(parts + row[:, None] * num_columns + column[None], mask=is_value, other=0.0).to(SUM)
    place = result + tl.load(block + 4) + column
    tl.store(place, tl.sum(total, 0).to(result.dtype.element_ty), mask=is_column)


def block_rows(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """What the programs of a launch do, a row of 5 numbers for each: which layer, its first column, its n, its P, and where the
    layer's sums begin.

    Args:
        sizes: P and n of up to :data:`SLOTS` layers.
    """
    rows, place = [], 0
    for layer, (num_parts, num_columns) in enumerate(sizes):
        rows += [[layer, first, num_columns, num_parts, place] for first in range(0, num_columns, _COLUMNS)]
        place += num_columns
    return rows


def sum_parts(parts: Sequence[Tensor], blocks: Tensor, result: Tensor) -> None:
    """The sums over the parts of up to :data:`SLOTS` layers.

    Args:
        parts: [P, n] of each layer, contiguous, of one dtype.
        blocks: [programs, 5] int64, of :func:`block_rows`.
        result: the sums of all layers in a row; written.
    """
    if len(blocks) > 0:
        launch(_sum_kernel, (len(blocks),), tuple(parts), result, blocks, **_constants(parts[0].dtype), num_warps=_WARPS)


def _constants(dtype: torch.dtype) -> dict[str, object]:
    return {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "SUM": sum_type(dtype)}


def cost(sizes: Sequence[tuple[int, int]], itemsize: int) -> Cost:
    """The work of a launch.

    Args:
        sizes: P and n of the layers.
        itemsize: bytes of a value.
    """
    values = sum(num_parts * num_columns for num_parts, num_columns in sizes)
    return Cost(0, values, itemsize * (values + sum(num_columns for _, num_columns in sizes)))


def compile_cases() -> list[CompileCase]:
    """The kernel by dtype."""
    cases = []
    for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64)):
        constants = _constants(dtype)
        types = signature(_sum_kernel, constants, {"layers": (f"*{name}",) * SLOTS, "blocks": "*i64"}, f"*{name}")
        cases.append(CompileCase(f"sum {name}", _sum_kernel, types, constants, _WARPS, num_stages=3))
    return cases
