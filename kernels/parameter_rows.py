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
from .resources import CompileCase

SLOTS = 32
"""How many layers one launch takes."""

_ROWS, _COLUMNS = 8, 128  # a tile: 8 values a thread
_WARPS = 4


@triton.jit
def _slot(
    number, tensor0, tensor1, tensor2, tensor3, tensor4, tensor5, tensor6, tensor7, tensor8, tensor9, tensor10, tensor11, tensor12,
    tensor13, tensor14, tensor15, tensor16, tensor17, tensor18, tensor19, tensor20, tensor21, tensor22, tensor23, tensor24,
    tensor25, tensor26, tensor27, tensor28, tensor29, tensor30, tensor31,
):  # fmt: skip
    """One of the tensors."""
    chosen = tensor0
    if number == 1:
        chosen = tensor1
    if number == 2:
        chosen = tensor2
    if number == 3:
        chosen = tensor3
    if number == 4:
        chosen = tensor4
    if number == 5:
        chosen = tensor5
    if number == 6:
        chosen = tensor6
    if number == 7:
        chosen = tensor7
    if number == 8:
        chosen = tensor8
    if number == 9:
        chosen = tensor9
    if number == 10:
        chosen = tensor10
    if number == 11:
        chosen = tensor11
    if number == 12:
        chosen = tensor12
    if number == 13:
        chosen = tensor13
    if number == 14:
        chosen = tensor14
    if number == 15:
        chosen = tensor15
    if number == 16:
        chosen = tensor16
    if number == 17:
        chosen = tensor17
    if number == 18:
        chosen = tensor18
    if number == 19:
        chosen = tensor19
    if number == 20:
        chosen = tensor20
    if number == 21:
        chosen = tensor21
    if number == 22:
        chosen = tensor22
    if number == 23:
        chosen = tensor23
    if number == 24:
        chosen = tensor24
    if number == 25:
        chosen = tensor25
    if number == 26:
        chosen = tensor26
    if number == 27:
        chosen = tensor27
    if number == 28:
        chosen = tensor28
    if number == 29:
        chosen = tensor29
    if number == 30:
        chosen = tensor30
    if number == 31:
        chosen = tensor31
    return chosen


@triton.jit
def _sum_kernel(
    parts0, parts1, parts2, parts3, parts4, parts5, parts6, parts7, parts8, parts9, parts10, parts11, parts12, parts13, parts14,
    parts15, parts16, parts17, parts18, parts19, parts20, parts21, parts22, parts23, parts24, parts25, parts26, parts27, parts28,
    parts29, parts30, parts31, result, blocks,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    block = blocks + tl.program_id(0).to(tl.int64) * 5
    parts = _slot(
        tl.load(block), parts0, parts1, parts2, parts3, parts4, parts5, parts6, parts7, parts8, parts9, parts10, parts11, parts12,
        parts13, parts14, parts15, parts16, parts17, parts18, parts19, parts20, parts21, parts22, parts23, parts24, parts25,
        parts26, parts27, parts28, parts29, parts30, parts31,
    )  # fmt: skip
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
    for slot, (num_parts, num_columns) in enumerate(sizes):
        rows += [[slot, first, num_columns, num_parts, place] for first in range(0, num_columns, _COLUMNS)]
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
        slots = [*parts, *[parts[0]] * (SLOTS - len(parts))]
        _sum_kernel[(len(blocks),)](*slots, result, blocks, **_constants(parts[0].dtype), num_warps=_WARPS)


def _constants(dtype: torch.dtype) -> dict[str, object]:
    return {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "SUM": tl.float64 if dtype == torch.float64 else tl.float32}


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
        types = {f"parts{slot}": f"*{name}" for slot in range(SLOTS)} | {"result": f"*{name}", "blocks": "*i64"}
        cases.append(CompileCase(f"sum {name}", _sum_kernel, types, _constants(dtype), _WARPS, num_stages=3))
    return cases
