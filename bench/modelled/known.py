"""Launches whose speed on such a GPU is known, to hold the model against: ``python -m bench.modelled vector_addition``.

On this generation a vector addition reaches about nine tenths of the rate of the memory, and a matrix product in half precision
that is written in Triton 60 to 75 % of that of the tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from se3_fast.kernels.launching import launch

SIZES = {"vector_addition": 1 << 27, "matrix_product": 8192}
"""Numbers added; sides of the matrices."""

_BLOCK = 1024
_ROWS, _COLUMNS, _DEPTH, _BAND = 128, 256, 64, 8


@triton.jit
def _add_kernel(left, right, result, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < size
    total = tl.load(left + place, mask=mask) + tl.load(right + place, mask=mask)
    tl.store(result + place, total, mask=mask)


@triton.jit
def _multiply_kernel(left, right, result, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BAND: tl.constexpr):
    """Square matrices whose side is a multiple of all tiles; programs next to each other share rows, in bands."""
    number = tl.program_id(0)
    columns = size // COLUMNS
    band, within = number // (BAND * columns), number % (BAND * columns)
    row = (band * BAND + within % BAND) * ROWS + tl.arange(0, ROWS)
    column = within // BAND * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    left += row[:, None] * size + depth[None]
    right += depth[:, None] * size + column[None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(0, size, DEPTH):
        total = tl.dot(tl.load(left), tl.load(right), total)
        left += DEPTH
        right += DEPTH * size
    tl.store(result + row[:, None] * size + column[None], total.to(tl.float16))


def _vector_addition(size: int) -> Callable[[], None]:
    left, right, result = (torch.empty(size) for _ in range(3))
    return lambda: launch(_add_kernel, (triton.cdiv(size, _BLOCK),), left, right, result, size, BLOCK=_BLOCK, num_warps=4)


def _matrix_product(size: int) -> Callable[[], None]:
    if size % (_ROWS * _BAND):
        raise ValueError(f"size: expected a multiple of {_ROWS * _BAND}, got {size}")
    left, right, result = (torch.empty(size, size, dtype=torch.float16) for _ in range(3))
    grid = (size // _ROWS * (size // _COLUMNS),)
    tiles = {"ROWS": _ROWS, "COLUMNS": _COLUMNS, "DEPTH": _DEPTH, "BAND": _BAND}
    return lambda: launch(_multiply_kernel, grid, left, right, result, size, **tiles, num_warps=8, num_stages=3)


KNOWN: dict[str, Callable[[int], Callable[[], None]]] = {
    "vector_addition": _vector_addition,
    "matrix_product": _matrix_product,
}
"""What makes each launch, of a size."""
