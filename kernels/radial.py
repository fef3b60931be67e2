"""The two hidden layers of the radial profiles, for all radial groups of a convolution in one launch (DESIGN 1).

    u1 = W1 a + b1,   v1 = s1 z(u1) + t1,   h1 = relu(v1);       u2 = W2 h1 + b2,   v2 = s2 z(u2) + t2,   h = relu(v2)

z(u) = (u - mean u) / sqrt(var u + epsilon) over the K units of a layer; without layer norm v = u. a: [E, e] invariants of the
edges; h: [groups, E, K]. The parameters of a group lie in one row of a matrix, layer by layer: weight, bias, scale, shift.

Backward, from a alone (u and h1 are made again), with g the gradient of h:

    dv2 = [v2 > 0] g,   dz2 = s2 dv2,   du2 = (dz2 - mean dz2 - z2 mean(z2 dz2)) / sqrt(var u2 + epsilon)
    dv1 = [v1 > 0] W2^T du2,   du1 of dv1 as du2 of dv2,   da = sum over groups of W1^T du1
    dW2 = sum du2 h1^T,   db2 = sum du2,   ds2 = sum dv2 z2,   dt2 = sum dv2;   the same with du1, a, dv1, z1 for the first layer

A program owns a contiguous share of the edges of one group and walks over it three times, with the sums of one step in registers:
for the second layer, for the vectors of the first, for dW1. All in one walk does not fit into registers. Between the walks du2, and
then du1 in its place, wait in memory (mostly in cache), rounded as the next product rounds them anyway. The sums of all programs
are then added in a fixed order. da is a launch of its own, where it is wanted: it sums over groups. g may come in several parts,
for some groups in more than for others, as the programs that share a block of edges leave it.

Cost per edge and group at e = 33, K = 32, float16: forward 4.2 kFLOP of matrix products and 0.6 kFLOP besides, 132 bytes (float32
invariants) read and 64 written: bound by memory. In float32 each product is three of TF32 on the matrix unit. Backward 12.5 kFLOP
of products, 580 bytes read and 128 written, of which 200 come from memory if a share stays in the caches; da 2.1 kFLOP, 64 bytes
read and 132 written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table_fields as fields
from .cost import Cost
from .launching import launch
from .precision import DTYPES, ROUNDINGS, TYPES, add_rounded_product, padded, split_product_constants, sum_dtype
from .resources import CompileCase, signature

_CHUNK = 16  # invariants taken at once in W1 a: e = 33 costs 48, not 64, and the tiles stay small
_GRADIENT_CHUNK = 32  # invariants of a program of da

_FORWARD_PROGRAMS = 1024  # over all groups: they fill a large GPU; more edges are walked over, with the weights in place
_BACKWARD_PROGRAMS = 512  # the same; fewer, as each writes a row of partial sums
_NUM_STAGES = 1  # software pipelining would take the registers that the sums need


@triton.jit
def _load_vectors(vectors, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr, SUM: tl.constexpr):
    """Bias, scale and shift of a layer, [1, WIDTH]; without layer norm scale and shift are not used."""
    vectors += tl.arange(0, WIDTH)
    bias = tl.load(vectors).to(SUM)[None]
    scale, shift = bias, bias
    if HAS_NORM:
        scale = tl.load(vectors + WIDTH).to(SUM)[None]
        shift = tl.load(vectors + 2 * WIDTH).to(SUM)[None]
    return bias, scale, shift


@triton.jit
def _store_vectors(vectors, of_bias, of_scale, of_shift, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr):
    vectors += tl.arange(0, WIDTH)
    tl.store(vectors, of_bias)
    if HAS_NORM:
        tl.store(vectors + WIDTH, of_scale)
        tl.store(vectors + 2 * WIDTH, of_shift)


@triton.jit
def _normalise(sums, scale, shift, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr, EPSILON: tl.constexpr):
    """z of u [edges, WIDTH], 1 / sqrt(var + epsilon) [edges, 1], and v; without layer norm all three are u."""
    normalised, inverse_deviation, shifted = sums, sums, sums
    if HAS_NORM:
        centred = sums - tl.sum(sums, 1)[:, None] / WIDTH
        inverse_deviation = 1.0 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / WIDTH + EPSILON)
        normalised = centred * inverse_deviation
        shifted = normalised * scale + shift
    return normalised, inverse_deviation, shifted


@triton.jit
def _normalise_gradient(of_shifted, normalised, inverse_deviation, scale, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr):
    """du of dv."""
    of_sums = of_shifted
    if HAS_NORM:
        of_normalised = of_shifted * scale
        mean = tl.sum(of_normalised, 1)[:, None] / WIDTH
        along = tl.sum(of_normalised * normalised, 1)[:, None] / WIDTH
        of_sums = inverse_deviation * (of_normalised - mean - normalised * along)
    return of_sums


@triton.jit
def _first_sums(
    invariants, weight, is_edge, INPUTS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, EDGES: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """W1 a, [EDGES, WIDTH]; ``invariants`` points to the first edge."""
    edge, unit = tl.arange(0, EDGES), tl.arange(0, WIDTH)
    sums = tl.zeros((EDGES, WIDTH), SUM)
    for start in range(0, INPUTS, CHUNK):
        number = start + tl.arange(0, CHUNK)
        is_input = number < INPUTS
        a = tl.load(invariants + (edge[:, None] * INPUTS + number[None]), mask=is_edge[:, None] & is_input[None], other=0.0)
        part = tl.load(weight + (unit[None] * INPUTS + number[:, None]), mask=is_input[:, None], other=0.0)
        sums = add_rounded_product(a, part, sums, PRECISION, COMPUTE, OPERAND)
    return sums


@triton.jit(do_not_specialize=["num_edges", "num_blocks"])
def _forward_kernel(
    invariants, parameters, hidden, num_edges, row_size, num_blocks,
    INPUTS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr, EPSILON: tl.constexpr,
    EDGES: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    first = parameters + tl.program_id(1) * row_size
    second = first + (INPUTS + (3 if HAS_NORM else 1)) * WIDTH
    hidden += tl.program_id(1).to(tl.int64) * num_edges * WIDTH
    edge, unit = tl.arange(0, EDGES), tl.arange(0, WIDTH)
    second_weight = tl.load(second + unit[None] * WIDTH + unit[:, None])  # [in, out]
    for block in range(num_blocks):
        start = (tl.program_id(0).to(tl.int64) * num_blocks + block) * EDGES
        is_edge = start + edge < num_edges
        sums = _first_sums(
            invariants + start * INPUTS, first, is_edge, INPUTS, CHUNK, WIDTH, EDGES, PRECISION, COMPUTE, OPERAND, SUM
        )  # fmt: skip
        bias, scale, shift = _load_vectors(first + INPUTS * WIDTH, WIDTH, HAS_NORM, SUM)
        _, _, shifted = _normalise(sums + bias, scale, shift, WIDTH, HAS_NORM, EPSILON)
        rectified = tl.where(shifted <= 0, 0.0, shifted)  # lets a NaN through
        sums = add_rounded_product(rectified, second_weight, tl.zeros((EDGES, WIDTH), SUM), PRECISION, COMPUTE, OPERAND)
        bias, scale, shift = _load_vectors(second + WIDTH * WIDTH, WIDTH, HAS_NORM, SUM)
        _, _, shifted = _normalise(sums + bias, scale, shift, WIDTH, HAS_NORM, EPSILON)
        rectified = tl.where(shifted <= 0, 0.0, shifted)
        place = hidden + start * WIDTH + (edge[:, None] * WIDTH + unit[None])
        tl.store(place, rectified.to(hidden.dtype.element_ty), mask=is_edge[:, None])


@triton.jit
def _add_parts(part, place, is_edge, num_parts, part_size, SUM: tl.constexpr):
    """The gradient of h of some edges, [edges, WIDTH], from its parts, of which the first one begins at ``part``."""
    total = tl.zeros(place.shape, SUM)
    for _ in range(num_parts):
        total += tl.load(part + place, mask=is_edge[:, None], other=0.0).to(SUM)
        part += part_size  # all parts together may be longer than 32 bits count
    return total


@triton.jit
def _second_layer_gradient(
    invariants, first, second, gradient, num_parts, part_size, sums_gradient, row, first_edge, num_edges, num_blocks,
    INPUTS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr, EPSILON: tl.constexpr,
    EDGES: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The sums of the second layer's parameters to ``row``, du2 to ``sums_gradient``."""
    edge, unit = tl.arange(0, EDGES), tl.arange(0, WIDTH)
    of_weight = tl.zeros((WIDTH, WIDTH), SUM)  # transposed, as it is read
    of_bias, of_scale, of_shift = tl.zeros((WIDTH,), SUM), tl.zeros((WIDTH,), SUM), tl.zeros((WIDTH,), SUM)
    for block in range(num_blocks):
        start = first_edge + block * EDGES
        is_edge = start + edge < num_edges
        place = edge[:, None] * WIDTH + unit[None]
        if tl.float64 != SUM:  # which would spill here, and others where it is used
            of_hidden = _add_parts(gradient + start * WIDTH, place, is_edge, num_parts, part_size, SUM)
        sums = _first_sums(
            invariants + start * INPUTS, first, is_edge, INPUTS, CHUNK, WIDTH, EDGES, PRECISION, COMPUTE, OPERAND, SUM
        )  # fmt: skip
        bias, scale, shift = _load_vectors(first + INPUTS * WIDTH, WIDTH, HAS_NORM, SUM)
        _, _, shifted = _normalise(sums + bias, scale, shift, WIDTH, HAS_NORM, EPSILON)
        rectified = tl.where(shifted <= 0, 0.0, shifted)
        second_weight = tl.load(second + unit[None] * WIDTH + unit[:, None])  # [in, out]; kept, it would take registers
        sums = add_rounded_product(rectified, second_weight, tl.zeros((EDGES, WIDTH), SUM), PRECISION, COMPUTE, OPERAND)
        bias, scale, shift = _load_vectors(second + WIDTH * WIDTH, WIDTH, HAS_NORM, SUM)
        normalised, inverse_deviation, shifted = _normalise(sums + bias, scale, shift, WIDTH, HAS_NORM, EPSILON)
        if tl.float64 == SUM:
            of_hidden = _add_parts(gradient + start * WIDTH, place, is_edge, num_parts, part_size, SUM)
        of_shifted = tl.where(shifted <= 0, 0.0, of_hidden)
        of_scale += tl.sum(of_shifted * normalised, 0)
        of_shift += tl.sum(of_shifted, 0)
        of_sums = _normalise_gradient(of_shifted, normalised, inverse_deviation, scale, WIDTH, HAS_NORM)
        of_bias += tl.sum(of_sums, 0)
        of_weight = add_rounded_product(tl.trans(rectified), of_sums, of_weight, PRECISION, COMPUTE, OPERAND)
        tl.store(sums_gradient + start * WIDTH + place, of_sums.to(COMPUTE), mask=is_edge[:, None])
    tl.store(row + unit[None] * WIDTH + unit[:, None], of_weight)
    _store_vectors(row + WIDTH * WIDTH, of_bias, of_scale, of_shift, WIDTH, HAS_NORM)


@triton.jit
def _first_layer_gradient(
    invariants, first, second, sums_gradient, row, first_edge, num_edges, num_blocks,
    INPUTS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr, EPSILON: tl.constexpr,
    EDGES: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The sums of the first layer's vectors to ``row``, du1 over du2 to ``sums_gradient``."""
    edge, unit = tl.arange(0, EDGES), tl.arange(0, WIDTH)
    of_bias, of_scale, of_shift = tl.zeros((WIDTH,), SUM), tl.zeros((WIDTH,), SUM), tl.zeros((WIDTH,), SUM)
    for block in range(num_blocks):
        start = first_edge + block * EDGES
        is_edge = start + edge < num_edges
        place = sums_gradient + start * WIDTH + (edge[:, None] * WIDTH + unit[None])
        of_sums = tl.load(place, mask=is_edge[:, None], other=0.0)
        second_weight = tl.load(second + unit[:, None] * WIDTH + unit[None])  # [out, in]; as above
        of_shifted = add_rounded_product(of_sums, second_weight, tl.zeros((EDGES, WIDTH), SUM), PRECISION, COMPUTE, OPERAND)
        sums = _first_sums(
            invariants + start * INPUTS, first, is_edge, INPUTS, CHUNK, WIDTH, EDGES, PRECISION, COMPUTE, OPERAND, SUM
        )  # fmt: skip
        bias, scale, shift = _load_vectors(first + INPUTS * WIDTH, WIDTH, HAS_NORM, SUM)
        normalised, inverse_deviation, shifted = _normalise(sums + bias, scale, shift, WIDTH, HAS_NORM, EPSILON)
        of_shifted = tl.where(shifted <= 0, 0.0, of_shifted)
        of_scale += tl.sum(of_shifted * normalised, 0)
        of_shift += tl.sum(of_shifted, 0)
        of_sums = _normalise_gradient(of_shifted, normalised, inverse_deviation, scale, WIDTH, HAS_NORM)
        of_bias += tl.sum(of_sums, 0)
        tl.debug_barrier()  # a thread stores where another has loaded du2 of this block
        tl.store(place, of_sums.to(COMPUTE), mask=is_edge[:, None])
    _store_vectors(row + INPUTS * WIDTH, of_bias, of_scale, of_shift, WIDTH, HAS_NORM)


@triton.jit
def _first_weight_gradient(
    invariants, sums_gradient, row, first_edge, num_edges, num_blocks,
    INPUTS: tl.constexpr, INPUT_TILE: tl.constexpr, WIDTH: tl.constexpr, EDGES: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """dW1 from du1."""
    edge, number, unit = tl.arange(0, EDGES), tl.arange(0, INPUT_TILE), tl.arange(0, WIDTH)
    is_input = (number < INPUTS)[:, None]
    of_weight = tl.zeros((INPUT_TILE, WIDTH), SUM)
    for block in range(num_blocks):
        start = first_edge + block * EDGES
        is_edge = start + edge < num_edges
        a = tl.load(
            invariants + start * INPUTS + (edge[None] * INPUTS + number[:, None]), mask=is_edge[None] & is_input, other=0.0
        )  # fmt: skip
        place = sums_gradient + start * WIDTH + (edge[:, None] * WIDTH + unit[None])
        of_sums = tl.load(place, mask=is_edge[:, None], other=0.0)
        of_weight = add_rounded_product(a, of_sums, of_weight, PRECISION, COMPUTE, OPERAND)
    tl.store(row + unit[None] * INPUTS + number[:, None], of_weight, mask=is_input)


@triton.jit(do_not_specialize=["num_edges", "num_blocks"])
def _backward_kernel(
    invariants, parameters, gradient, parts, sums_gradient, partial_sums, num_edges, row_size, num_blocks,
    INPUTS: tl.constexpr, INPUT_TILE: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, HAS_NORM: tl.constexpr,
    EPSILON: tl.constexpr, EDGES: tl.constexpr, WEIGHT_EDGES: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr,
    OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    second_start = (INPUTS + (3 if HAS_NORM else 1)) * WIDTH
    first = parameters + group * row_size
    row = partial_sums + (tl.program_id(0) * tl.num_programs(1) + group).to(tl.int64) * row_size
    parts += group * fields.PARTS_FIELDS
    part_size = tl.load(parts + fields.PARTS_STEP) * num_edges * WIDTH
    gradient += tl.load(parts + fields.PARTS_FIRST) * num_edges * WIDTH
    sums_gradient += group.to(tl.int64) * num_edges * WIDTH
    first_edge = tl.program_id(0).to(tl.int64) * num_blocks * EDGES
    _second_layer_gradient(
        invariants, first, first + second_start, gradient, tl.load(parts + fields.PARTS_COUNT).to(tl.int32), part_size,
        sums_gradient, row + second_start, first_edge, num_edges, num_blocks,
        INPUTS, CHUNK, WIDTH, HAS_NORM, EPSILON, EDGES, PRECISION, COMPUTE, OPERAND, SUM,
    )  # fmt: skip
    tl.debug_barrier()  # what one thread has written of du2, and then of du1, another reads
    _first_layer_gradient(
        invariants, first, first + second_start, sums_gradient, row, first_edge, num_edges, num_blocks,
        INPUTS, CHUNK, WIDTH, HAS_NORM, EPSILON, EDGES, PRECISION, COMPUTE, OPERAND, SUM,
    )  # fmt: skip
    tl.debug_barrier()
    _first_weight_gradient(
        invariants, sums_gradient, row, first_edge, num_edges, num_blocks * (EDGES // WEIGHT_EDGES),
        INPUTS, INPUT_TILE, WIDTH, WEIGHT_EDGES, PRECISION, COMPUTE, OPERAND, SUM,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_edges"])
def _invariant_gradient_kernel(
    sums_gradient, parameters, invariant_gradient, num_edges, num_groups, row_size,
    INPUTS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr, EDGES: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """da from du1."""
    start = tl.program_id(0).to(tl.int64) * EDGES
    edge, unit = tl.arange(0, EDGES), tl.arange(0, WIDTH)
    number = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    is_edge, is_input = (start + edge < num_edges)[:, None], (number < INPUTS)[None]
    total = tl.zeros((EDGES, CHUNK), SUM)
    for group in range(num_groups):
        place = sums_gradient + (tl.cast(group, tl.int64) * num_edges + start) * WIDTH
        of_sums = tl.load(place + (edge[:, None] * WIDTH + unit[None]), mask=is_edge, other=0.0)
        weight = tl.load(parameters + group * row_size + (unit[:, None] * INPUTS + number[None]), mask=is_input, other=0.0)
        total = add_rounded_product(of_sums, weight, total, PRECISION, COMPUTE, OPERAND)
    place = invariant_gradient + start * INPUTS + (edge[:, None] * INPUTS + number[None])
    tl.store(place, total.to(invariant_gradient.dtype.element_ty), mask=is_edge & is_input)


class Shape(NamedTuple):
    """What all launches for one set of profiles share.

    Attributes:
        width: K, units of a hidden layer; a power of two, at least 16.
        has_norm: whether the layers are normalised.
        epsilon: added to the variance.
    """

    width: int
    has_norm: bool
    epsilon: float


def forward(invariants: Tensor, parameters: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The hidden layers of all groups.

    Args:
        invariants: [E, e] invariants of the edges, contiguous.
        parameters: [groups, K * (e + 3) + K * (K + 3)] (1 instead of 3 without layer norm), see the head of this file.
        shape: of the layers.
        dtype: what operands of products are rounded to.

    Returns:
        h, [groups, E, K] of ``dtype``.
    """
    num_groups, num_edges = len(parameters), len(invariants)
    hidden = torch.empty(num_groups, num_edges, shape.width, dtype=dtype, device=invariants.device)
    if num_edges > 0:
        tile = _forward_tile(dtype)
        programs, num_blocks = _share_edges(num_edges, tile.edges, num_groups, _FORWARD_PROGRAMS)
        launch(_forward_kernel, (programs, num_groups),
            invariants, parameters, hidden, num_edges, parameters.shape[1], num_blocks, INPUTS=invariants.shape[1],
            CHUNK=_CHUNK, EDGES=tile.edges, **_layer_constants(shape), **_type_constants(dtype), num_warps=tile.warps,
            num_stages=_NUM_STAGES,
        )  # fmt: skip
    return hidden


def backward(
    invariants: Tensor,
    parameters: Tensor,
    gradient: Tensor,
    parts: Tensor,
    shape: Shape,
    with_invariants: bool,
    programs: int | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Gradients of the invariants and the parameters.

    Args:
        invariants: as in :func:`forward`.
        parameters: as in :func:`forward`.
        gradient: of h in parts, which are added up, [parts, E, K] contiguous; its dtype is what operands of products are rounded
            to.
        parts: :class:`~se3_fast.kernels.table_rows.GradientParts` rows, one for each group.
        shape: as in :func:`forward`.
        with_invariants: whether the first is wanted; None otherwise.
        programs: how many share the edges of a group; None: as many as fill a large GPU.

    Returns:
        That of the invariants; and that of the parameters, [programs, groups, ..], to be summed over the programs.
    """
    (num_groups, row_size), (num_edges, num_invariants) = parameters.shape, invariants.shape
    if num_edges == 0:
        return torch.zeros_like(invariants), parameters.new_zeros(
            programs or 1, num_groups, row_size, dtype=sum_dtype(gradient.dtype)
        )
    tile = _backward_tile(gradient.dtype)
    if programs is None:
        programs, num_blocks = _share_edges(num_edges, tile.edges, num_groups, _BACKWARD_PROGRAMS)
    else:
        num_blocks = triton.cdiv(triton.cdiv(num_edges, tile.edges), programs)
    sums_gradient = gradient.new_empty(num_groups, *gradient.shape[1:])
    partial_sums = torch.empty(programs, num_groups, row_size, dtype=sum_dtype(gradient.dtype), device=invariants.device)
    types = _type_constants(gradient.dtype)
    launch(_backward_kernel, (programs, num_groups),
        invariants, parameters, gradient, parts, sums_gradient, partial_sums, num_edges, row_size, num_blocks,
        INPUTS=num_invariants, INPUT_TILE=padded(num_invariants), CHUNK=_CHUNK, EDGES=tile.edges,
        WEIGHT_EDGES=tile.weight_edges,
        **_layer_constants(shape), **types, num_warps=tile.warps, num_stages=_NUM_STAGES,
    )  # fmt: skip
    invariant_gradient = None
    if with_invariants:
        invariant_gradient = torch.empty_like(invariants)
        launch(_invariant_gradient_kernel, (triton.cdiv(num_edges, tile.edges), triton.cdiv(num_invariants, _GRADIENT_CHUNK)),
            sums_gradient, parameters, invariant_gradient, num_edges, num_groups, row_size, INPUTS=num_invariants,
            CHUNK=_GRADIENT_CHUNK, WIDTH=shape.width, EDGES=tile.edges, **types, num_warps=tile.warps, num_stages=_NUM_STAGES,
        )  # fmt: skip
    return invariant_gradient, partial_sums


class Tile(NamedTuple):
    """Edges of a block, edges that a product of dW1 sums over at once, and warps of a program."""

    edges: int
    weight_edges: int
    warps: int


def _forward_tile(dtype: torch.dtype) -> Tile:
    """On the matrix unit a warp owns 16 edges and all units of them, so that layer norms stay inside a warp: 64 edges by 4 warps.

    The split operands of float32 and those of float64, which sit in the registers of the ordinary cores, leave half the edges; in
    float32 one warp has them all.
    """
    if dtype == torch.float32:
        return Tile(32, 16, 1)
    return Tile(32, 16, 4) if dtype == torch.float64 else Tile(64, 32, 4)


def _backward_tile(dtype: torch.dtype) -> Tile:
    """As :func:`_forward_tile`; the sums take registers, too: float32 by 2 warps, float64 half the edges by 8."""
    if dtype == torch.float32:
        return Tile(32, 16, 2)
    return Tile(16, 16, 8) if dtype == torch.float64 else Tile(64, 32, 4)


def _share_edges(num_edges: int, block: int, num_groups: int, max_programs: int) -> tuple[int, int]:
    """How many programs share the edges of a group, and how many blocks each has."""
    blocks = triton.cdiv(num_edges, block)
    blocks_each = triton.cdiv(blocks, max(1, max_programs // num_groups))
    return triton.cdiv(blocks, blocks_each), blocks_each


def _layer_constants(shape: Shape) -> dict[str, object]:
    return {"WIDTH": shape.width, "HAS_NORM": shape.has_norm, "EPSILON": shape.epsilon}


def _type_constants(dtype: torch.dtype) -> dict[str, object]:
    return {"COMPUTE": TYPES[dtype], **split_product_constants(dtype)}


def cost(
    num_groups: int, num_edges: int, num_invariants: int, width: int, itemsize: int, with_invariants: bool = False
) -> tuple[Cost, Cost]:
    """The work of the hidden layers with layer norm, forward and backward, without the parameters, which are few.

    Args:
        num_groups: radial groups.
        num_edges: E.
        num_invariants: e, of 4 bytes (8 where those of h are 8).
        width: K.
        itemsize: bytes of a value of h.
        with_invariants: whether the gradient of the invariants is wanted.
    """
    products = 2 * num_groups * num_edges * (num_invariants + width) * width
    others = 18 * num_groups * num_edges * width
    invariants = num_edges * num_invariants * max(itemsize, 4)
    hidden = num_groups * num_edges * width * itemsize
    forward_cost = Cost(products, others, invariants + hidden)
    if not with_invariants:
        return forward_cost, Cost(3 * products, 3 * others, invariants + 3 * hidden)
    to_invariants = 2 * num_groups * num_edges * num_invariants * width
    return forward_cost, Cost(3 * products + to_invariants, 3 * others, 2 * invariants + 4 * hidden)


def compile_cases() -> list[CompileCase]:
    """The kernels at the workloads' numbers of invariants, with layer norm; invariants and parameters are float32 or float64."""
    cases = []
    shape = _layer_constants(Shape(32, True, 1e-5))
    for workload, invariants in (("qm9", 5), ("protein_full", 33), ("protein_wide", 65)):
        for name, dtype in DTYPES.items():
            forward_tile, backward_tile = _forward_tile(dtype), _backward_tile(dtype)
            rounding = ROUNDINGS[name].split()
            common = {"INPUTS": invariants, "CHUNK": _CHUNK, **shape, "COMPUTE": TYPES[dtype], **rounding.product_constants()}
            of_invariants = {key: value for key, value in common.items() if key not in ("HAS_NORM", "EPSILON")}
            sums = f"*{ROUNDINGS[name].sum_name}"
            types = dict.fromkeys(("invariants", "parameters", "invariant_gradient", "partial_sums"), sums)
            types |= dict.fromkeys(("num_edges", "num_groups", "num_blocks", "row_size"), "i32")
            types["parts"] = "*i64"
            of_backward = {"INPUT_TILE": padded(invariants), "WEIGHT_EDGES": backward_tile.weight_edges}
            launches: tuple[tuple[str, object, dict[str, object], Tile], ...] = (
                ("forward", _forward_kernel, common, forward_tile),
                ("backward", _backward_kernel, common | of_backward, backward_tile),
                ("invariant_gradient", _invariant_gradient_kernel, of_invariants | {"CHUNK": _GRADIENT_CHUNK}, backward_tile),
            )
            for kind, kernel, shape_constants, tile in launches:
                constants = shape_constants | {"EDGES": tile.edges}
                cases.append(
                    CompileCase(
                        name=f"{kind} {workload} {name}",
                        kernel=kernel,
                        signature=signature(kernel, constants, types, f"*{name}"),
                        constants=constants,
                        num_warps=tile.warps,
                        num_stages=_NUM_STAGES,
                        targets=(80, 90, 100) if name == "fp64" else (),  # others have 1/64 of the float64 units, and spill
                        expects_matrix_instructions=rounding.uses_matrix_unit,
                    )
                )
    return cases
