"""Edge frames: the angles of every edge, and what kernels that rotate features make of them.

    cos b = y,  sin b = sqrt(x^2 + z^2),  (cos a, sin a) = (z, x) / sqrt(x^2 + z^2)      for the unit vector (x, y, z) of an edge
    D_d[i, j] = cos(f_i a) K[i, j] + sin(f_i a) K[-i, j],   f_i = d - i,   K[i, j] = sum_m cos(m b) P[m, i, j] + sin(m b) Q[m, i, j]

P and Q are constant tables (of J_d Z(b) J_d, DESIGN 1.1). At the poles a = 0; an edge of length zero has no direction: its four
values are all zero and so are its Wigner blocks.

Features are turned without any Wigner block, by D = Z(a) J Z(b) J: Z mixes the components of m and -m, and J is sparse and constant
(``turned_in``, ``turned_out``). Where the block itself is wanted, ``wigner_tile`` makes it.

Cost of the angles, per edge: about 20 FLOP, 12 bytes read and 16 written in float32: bound by memory. A turn costs 4 d^2 + 16 d + 5
FLOP for every channel; a block of degree d 4 (d + 1) (2d + 1)^2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .resources import CompileCase

NUM_ANGLE_VALUES = 4

ROUNDING_ERROR = 1e-9
"""Entries of J below this are zero."""


def _matrix(size: int, entries: dict[tuple[int, int], float]) -> tuple[float, ...]:
    """A symmetric matrix row by row, from its entries on and above the diagonal that are not zero."""
    return tuple(entries.get((min(row, column), max(row, column)), 0.0) for row, column in itertools.product(range(size), repeat=2))


SWAPS_TO_DEGREE_3 = (
    1.0,
    *_matrix(3, {(0, 1): 1.0, (2, 2): -1.0}),
    *_matrix(5, {(0, 3): -1.0, (1, 1): 1.0, (2, 2): -0.5, (2, 4): -math.sqrt(3) / 2, (4, 4): 0.5}),
    *_matrix(
        7,
        {
            (0, 3): -math.sqrt(10) / 4,
            (0, 5): math.sqrt(6) / 4,
            (1, 1): -1.0,
            (2, 3): -math.sqrt(6) / 4,
            (2, 5): -math.sqrt(10) / 4,
            (4, 4): 0.25,
            (4, 6): math.sqrt(15) / 4,
            (6, 6): -0.25,
        },
    ),
)
"""As :func:`swap_entries` has them: those that kernels are compiled for ahead of time."""


@triton.jit(do_not_specialize=["num_edges"])
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
def load_frames(angles, edge, is_edge, num_edges):
    """The frames of a block of edges as :func:`turned_in` takes them, [edges, 1] each: cos a, sin a, cos b, sin b, and 1 where the
    edge has a direction."""
    cos_alpha = tl.load(angles + edge, mask=is_edge, other=0.0)[:, None]
    sin_alpha = tl.load(angles + num_edges + edge, mask=is_edge, other=0.0)[:, None]
    cos_beta = tl.load(angles + 2 * num_edges + edge, mask=is_edge, other=0.0)[:, None]
    sin_beta = tl.load(angles + 3 * num_edges + edge, mask=is_edge, other=0.0)[:, None]
    has_direction = tl.where((cos_alpha != 0) | (sin_alpha != 0), 1.0, 0.0).to(cos_alpha.dtype)
    return cos_alpha, sin_alpha, cos_beta, sin_beta, has_direction


@triton.jit
def _turned(x, cosine, sine, of_middle, DEGREE: tl.constexpr):
    """Z x: the components of the orders m and -m turned into each other by m times an angle; that of m = 0 times ``of_middle``."""
    upper, lower = (), ()
    cos_m, sin_m = cosine, sine
    for m in tl.static_range(1, DEGREE + 1):
        plus, minus = x[DEGREE - m], x[DEGREE + m]
        upper = (cos_m * plus + sin_m * minus,) + upper  # noqa: RUF005
        lower += (cos_m * minus - sin_m * plus,)
        cos_m, sin_m = cos_m * cosine - sin_m * sine, sin_m * cosine + cos_m * sine
    return upper + (of_middle * x[DEGREE],) + lower  # noqa: RUF005


@triton.jit
def _swapped(x, SWAPS: tl.constexpr, DEGREE: tl.constexpr):
    """J x; entries of J that are zero cost nothing."""
    size: tl.constexpr = 2 * DEGREE + 1
    first: tl.constexpr = DEGREE * (4 * DEGREE * DEGREE - 1) // 3  # entries of the degrees below
    result = ()
    for i in tl.static_range(size):
        total = tl.zeros_like(x[0])
        for j in tl.static_range(size):
            if SWAPS[first + i * size + j] != 0:
                total += SWAPS[first + i * size + j] * x[j]
        result += (total,)
    return result


@triton.jit
def turned_in(x, frames, SWAPS: tl.constexpr, DEGREE: tl.constexpr):
    """D^T x = J Z(-b) J Z(-a) x.

    ``x`` is a tuple of the components, tiles [edges, channels] each or what broadcasts to that; ``frames`` are those of
    :func:`load_frames`; ``SWAPS`` holds the entries of J (:func:`swap_entries`).
    """
    turned = _turned(x, frames[0], -frames[1], frames[4], DEGREE)
    if DEGREE > 0:
        turned = _swapped(_turned(_swapped(turned, SWAPS, DEGREE), frames[2], -frames[3], 1.0, DEGREE), SWAPS, DEGREE)
    return turned


@triton.jit
def turned_out(x, frames, SWAPS: tl.constexpr, DEGREE: tl.constexpr):
    """D x = Z(a) J Z(b) J x; as :func:`turned_in`."""
    if DEGREE > 0:
        x = _swapped(_turned(_swapped(x, SWAPS, DEGREE), frames[2], frames[3], 1.0, DEGREE), SWAPS, DEGREE)
    return _turned(x, frames[0], frames[1], frames[4], DEGREE)


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


def turn_flop(degree: int) -> int:
    """Operations of :func:`turned_in` and of :func:`turned_out` for one edge and channel: two products with J, d^2 + d + 1 of whose
    entries are not zero, two turns of d pairs of components, and one factor."""
    return 1 + 2 * (2 * (degree**2 + degree + 1) + 6 * degree) if degree > 0 else 1


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


def swap_entries(axis_swaps: Sequence[Tensor]) -> tuple[float, ...]:
    """The entries of J_d row by row for d = 0, 1, .. one after the other, as kernels take them: none that is but a rounding error.

    Args:
        axis_swaps: J_d, [2d+1, 2d+1] float64 each.
    """
    entries = torch.cat([axis_swap.flatten() for axis_swap in axis_swaps])
    return tuple(torch.where(entries.abs() < ROUNDING_ERROR, 0.0, entries).tolist())


def compile_cases() -> list[CompileCase]:
    """The angles by dtype of the positions; the Wigner blocks are compiled with the kernels that make them."""
    cases = []
    for dtype in ("fp32", "fp64"):
        signature = {"rel_pos": f"*{dtype}", "angles": f"*{dtype}", "num_edges": "i32"}
        constants: dict[str, object] = {"BLOCK": 256}
        cases.append(CompileCase(f"frame_angles {dtype}", _frame_angles_kernel, signature, constants, num_warps=4, num_stages=3))
    return cases
