"""Edge frames: the angles of every edge, and the Wigner blocks made from them inside the kernels that rotate features.

    cos b = y,  sin b = sqrt(x^2 + z^2),  (cos a, sin a) = (z, x) / sqrt(x^2 + z^2)      for the unit vector (x, y, z) of an edge
    D_d[i, j] = cos(f_i a) K[i, j] + sin(f_i a) K[-i, j],   f_i = d - i,   K[i, j] = sum_m cos(m b) P[m, i, j] + sin(m b) Q[m, i, j]

P and Q are constant tables (of J_d Z(b) J_d, DESIGN 1.1). At the poles a = 0; an edge of length zero has no direction: its four
values are all zero and so are its Wigner blocks.

Cost of the angles, per edge: about 20 FLOP, 12 bytes read and 16 written in float32: bound by memory. Nothing of a Wigner block is
ever stored: a block of degree d costs 4 (d + 1) (2d + 1)^2 FLOP where it is used.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .resources import CompileCase

NUM_ANGLE_VALUES = 4


@triton.jit
def _frame_angles_kernel(rel_pos, angles, num_edges, BLOCK: tl.constexpr):
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_edge = edge < num_edges
    x = tl.load(rel_pos + 3 * edge, mask=is_edge, other=0.0)
    y = tl.load(rel_pos + 3 * edge + 1, mask=is_edge, other=0.0)
    z = tl.load(rel_pos + 3 * edge + 2, mask=is_edge, other=0.0)
    # Scaled by the largest component, so that squares neither overflow nor vanish.
    largest = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z))
    has_direction = largest > 0
    scale = tl.where(has_direction, largest, 1.0)
    x, y, z = x / scale, y / scale, z / scale
    across = tl.sqrt(x * x + z * z)
    length = tl.where(has_direction, tl.sqrt(across * across + y * y), 1.0)
    is_pole = across == 0
    safe = tl.where(is_pole, 1.0, across)
    cos_alpha = tl.where(is_pole, tl.where(has_direction, 1.0, 0.0), z / safe)
    sin_alpha = tl.where(is_pole, 0.0, x / safe)
    tl.store(angles + edge, cos_alpha, mask=is_edge)
    tl.store(angles + num_edges + edge, sin_alpha, mask=is_edge)
    tl.store(angles + 2 * num_edges + edge, y / length, mask=is_edge)
    tl.store(angles + 3 * num_edges + edge, across / length, mask=is_edge)


@triton.jit
def wigner_tile(angles, table, edge, is_edge, num_edges, DEGREE: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Wigner blocks of a block of edges, [BLOCK, SIZE, SIZE]; zero outside the first 2 DEGREE + 1 rows and columns.

    ``table`` holds P, Q, and both with their rows reversed: [4, DEGREE + 1, SIZE, SIZE], padded with zeros.
    """
    cos_alpha = tl.load(angles + edge, mask=is_edge, other=0.0)
    sin_alpha = tl.load(angles + num_edges + edge, mask=is_edge, other=0.0)
    cos_beta = tl.load(angles + 2 * num_edges + edge, mask=is_edge, other=0.0)
    sin_beta = tl.load(angles + 3 * num_edges + edge, mask=is_edge, other=0.0)
    row = tl.arange(0, SIZE)
    entry = row[:, None] * SIZE + row[None, :]  # [SIZE, SIZE]
    order = DEGREE - row  # f_i
    # The multiples m a and m b by angle addition, m = 0, 1, ...
    cos_ma, sin_ma = tl.where(is_edge, 1.0, 0.0).to(cos_alpha.dtype), 0.0 * cos_alpha
    cos_mb, sin_mb = cos_ma, 0.0 * cos_alpha
    same = tl.zeros((BLOCK, SIZE, SIZE), cos_alpha.dtype)
    reversed_rows = tl.zeros((BLOCK, SIZE, SIZE), cos_alpha.dtype)
    row_cosine = tl.zeros((BLOCK, SIZE), cos_alpha.dtype)
    row_sine = tl.zeros((BLOCK, SIZE), cos_alpha.dtype)
    for m in tl.static_range(DEGREE + 1):
        even = tl.load(table + m * SIZE * SIZE + entry)
        odd = tl.load(table + (DEGREE + 1 + m) * SIZE * SIZE + entry)
        even_reversed = tl.load(table + (2 * (DEGREE + 1) + m) * SIZE * SIZE + entry)
        odd_reversed = tl.load(table + (3 * (DEGREE + 1) + m) * SIZE * SIZE + entry)
        same += cos_mb[:, None, None] * even[None] + sin_mb[:, None, None] * odd[None]
        reversed_rows += cos_mb[:, None, None] * even_reversed[None] + sin_mb[:, None, None] * odd_reversed[None]
        row_cosine += tl.where((order == m) | (order == -m), 1.0, 0.0)[None] * cos_ma[:, None]
        row_sine += (tl.where(order == m, 1.0, 0.0) - tl.where(order == -m, 1.0, 0.0))[None] * sin_ma[:, None]
        cos_ma, sin_ma = cos_ma * cos_alpha - sin_ma * sin_alpha, sin_ma * cos_alpha + cos_ma * sin_alpha
        cos_mb, sin_mb = cos_mb * cos_beta - sin_mb * sin_beta, sin_mb * cos_beta + cos_mb * sin_beta
    has_direction = tl.where((cos_alpha != 0) | (sin_alpha != 0), 1.0, 0.0).to(cos_alpha.dtype)
    block = row_cosine[:, :, None] * same + row_sine[:, :, None] * reversed_rows
    return block * has_direction[:, None, None]


@triton.jit
def wigner_rows(cos_beta, sin_beta, table, m, DEGREE: tl.constexpr, SIZE: tl.constexpr):
    """Rows +m and -m of K for a block of edges, [edges, SIZE] each, from cos b and sin b [edges]; m >= 0.

    For loops that need D row by row: D[+m] = cos(m a) K[+m] + sin(m a) K[-m], D[-m] = cos(m a) K[-m] - sin(m a) K[+m].
    ``table`` as for :func:`wigner_tile`.
    """
    column = tl.arange(0, SIZE)[None]
    plus_row, minus_row = (DEGREE - m) * SIZE + column, (DEGREE + m) * SIZE + column
    cos_nb, sin_nb = tl.full(cos_beta.shape, 1.0, cos_beta.dtype), 0.0 * cos_beta
    plus = tl.zeros((cos_beta.shape[0], SIZE), cos_beta.dtype)
    minus = tl.zeros((cos_beta.shape[0], SIZE), cos_beta.dtype)
    for n in tl.static_range(DEGREE + 1):
        even, odd = table + n * SIZE * SIZE, table + (DEGREE + 1 + n) * SIZE * SIZE
        plus += cos_nb[:, None] * tl.load(even + plus_row) + sin_nb[:, None] * tl.load(odd + plus_row)
        minus += cos_nb[:, None] * tl.load(even + minus_row) + sin_nb[:, None] * tl.load(odd + minus_row)
        cos_nb, sin_nb = cos_nb * cos_beta - sin_nb * sin_beta, sin_nb * cos_beta + cos_nb * sin_beta
    return plus, minus


def frame_angles(rel_pos: Tensor) -> Tensor:
    """cos a, sin a, cos b, sin b of every edge.

    Args:
        rel_pos: [E, 3] relative positions, float32 or float64.

    Returns:
        [4, E] in the dtype of ``rel_pos``; zero where an edge has length zero.
    """
    num_edges = len(rel_pos)
    angles = torch.empty(NUM_ANGLE_VALUES, num_edges, dtype=rel_pos.dtype, device=rel_pos.device)
    if num_edges > 0:
        block = 256
        launch(_frame_angles_kernel, (triton.cdiv(num_edges, block),), rel_pos.contiguous(), angles, num_edges, BLOCK=block)
    return angles


def cost(num_edges: int, itemsize: int) -> Cost:
    """The work of :func:`frame_angles`.

    Args:
        num_edges: E.
        itemsize: bytes of a value of the positions: 4 or 8.
    """
    return Cost(0, 20 * num_edges, (3 + NUM_ANGLE_VALUES) * itemsize * num_edges)


def wigner_rows_flop(degree: int) -> int:
    """Operations for all rows of the Wigner block of an edge, by :func:`wigner_rows`."""
    return (degree + 1) * (2 * degree + 1) * (8 * (degree + 1) + 6)


def tile_size(degree: int) -> int:
    """2 degree + 1 rounded up to a power of two: what tiles over components are padded to."""
    return triton.next_power_of_2(2 * degree + 1)


def wigner_table(axis_swap: Tensor) -> Tensor:
    """The constant table that :func:`wigner_tile` reads.

    Args:
        axis_swap: J_d, [2d+1, 2d+1] float64.

    Returns:
        [4, d+1, SIZE, SIZE] float64: P, Q, and both with their rows reversed, padded with zeros.
    """
    size = len(axis_swap)
    degree = size // 2
    tables = axis_swap.new_zeros(4, degree + 1, tile_size(degree), tile_size(degree))
    for row in range(size):
        order = degree - row
        tables[0, abs(order), :size, :size] += torch.outer(axis_swap[:, row], axis_swap[row])
        sign = (order > 0) - (order < 0)
        tables[1, abs(order), :size, :size] += sign * torch.outer(axis_swap[:, row], axis_swap[size - 1 - row])
    tables[2:, :, :size] = tables[:2, :, :size].flip(2)
    return tables


def compile_cases() -> list[CompileCase]:
    """The angles by dtype of the positions; the Wigner blocks are compiled with the kernels that make them."""
    cases = []
    for dtype in ("fp32", "fp64"):
        signature = {"rel_pos": f"*{dtype}", "angles": f"*{dtype}", "num_edges": "i32"}
        constants: dict[str, object] = {"BLOCK": 256}
        cases.append(CompileCase(f"frame_angles {dtype}", _frame_angles_kernel, signature, constants, num_warps=4, num_stages=3))
    return cases
