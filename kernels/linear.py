"""Linear maps of the channels of all degrees: one launch forward and one backward, for inputs and weights.

    out_d[n, o, m] = sum_c W_d[o, c] x_d[n, c, m],   dx_d[n, c, m] = sum_o W_d[o, c] g_d[n, o, m],   dW_d = sum_{n, m} g_d x_d^T

x_d: [N, C_d, 2d+1], the channels of up to two parts side by side: a part is a tensor [N, C, 2d+1] for each degree, or one tensor
[N, heads, width] as the attention has it, in which a head has its share of the channels of the first degree, then of the second and
so on. Nothing is concatenated in memory: the sum over c walks over both parts. The output may be laid out per head, too, and a
gradient has the layout of what it belongs to.

A program has a block of whole nodes of one degree; the (node, component) pairs are the rows of a matrix product with W^T, or W. For
dW other programs of the same launch walk over their share of the nodes, each with one tile of dW in registers; their sums are then
added in a fixed order. Operands are rounded to the compute dtype where they are read, so that float32 weights need no copy in half
precision.

Cost per node: 2 C_out C_in (2d+1) FLOP of matrix products for each degree, and as much again for dx and for dW; x read and out
written; backward g twice and x once read, dx written. At 4 degrees, 48 and 32 channels in half precision 49 kFLOP and 2.5 KB per
node: bound by memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .resources import CompileCase

MAX_DEGREES = 7
"""How many degrees one launch takes."""

_WEIGHT_PROGRAMS = 512  # of a launch for dW, over all degrees and tiles: they fill a large GPU
_NUM_STAGES = 2


@triton.jit
def _product(left, right, total, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr):
    """total + left @ right, both rounded to COMPUTE. OPERAND: the same, but float32 for bfloat16 in the interpreter."""
    left, right = left.to(COMPUTE).to(OPERAND), right.to(COMPUTE).to(OPERAND)
    return tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def _rows(block, num_nodes, COMPONENTS: tl.constexpr, ROWS: tl.constexpr):
    """First node of a block, and of each row the node counted from there, the component, and whether there is one.

    Counted from the first node 32 bits are enough; the first node itself is a 64-bit number.
    """
    nodes: tl.constexpr = ROWS // COMPONENTS
    first = tl.cast(block, tl.int64) * nodes
    row = tl.arange(0, ROWS)
    node = row // COMPONENTS
    return first, node, row % COMPONENTS, (node < nodes) & (first + node < num_nodes)


@triton.jit
def _places(
    tensor, first, node, component, channel,
    CHANNELS: tl.constexpr, COMPONENTS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Pointers [rows, channels] into a tensor [N, CHANNELS, COMPONENTS], or into one [N, HEADS, WIDTH] if HEADS is not 0."""
    node_size: tl.constexpr = HEADS * WIDTH if HEADS > 0 else CHANNELS * COMPONENTS
    if HEADS > 0:
        head_channels: tl.constexpr = CHANNELS // HEADS
        of_channel = channel // head_channels * WIDTH + channel % head_channels * COMPONENTS
    else:
        of_channel = channel * COMPONENTS
    return tensor + first * node_size + ((node * node_size + component)[:, None] + of_channel[None])


@triton.jit
def _add_part(
    values, weight, total, first, node, component, is_row, out, is_out,
    CHANNELS: tl.constexpr, COMPONENTS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, OUT_STRIDE: tl.constexpr,
    IN_STRIDE: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """total + x W^T, summed over the channels of one part; ``weight`` points to the weight of its first channel."""
    for start in range(0, CHANNELS, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        is_channel = channel < CHANNELS
        places = _places(values, first, node, component, channel, CHANNELS, COMPONENTS, HEADS, WIDTH)
        x = tl.load(places, mask=is_row[:, None] & is_channel[None], other=0.0)
        factors = weight + (out[None] * OUT_STRIDE + channel[:, None] * IN_STRIDE)
        total = _product(
            x, tl.load(factors, mask=is_channel[:, None] & is_out[None], other=0.0), total, PRECISION, COMPUTE, OPERAND
        )  # fmt: skip
    return total


@triton.jit
def _map_degree(
    part0, part1, weight, output, num_nodes,
    COMPONENTS: tl.constexpr, IN0: tl.constexpr, IN1: tl.constexpr, OUT: tl.constexpr, HEADS0: tl.constexpr, HEADS1: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    out = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_out = out < OUT
    first, node, component, is_row = _rows(tl.program_id(0), num_nodes, COMPONENTS, ROWS)
    if (first < num_nodes) & (tl.program_id(2) * BLOCK_OUT < OUT):
        total = tl.zeros((ROWS, BLOCK_OUT), SUM)
        if IN0 > 0:
            total = _add_part(
                part0, weight, total, first, node, component, is_row, out, is_out, IN0, COMPONENTS, HEADS0, WIDTH0, IN0 + IN1, 1,
                BLOCK_IN, PRECISION, COMPUTE, OPERAND,
            )  # fmt: skip
        if IN1 > 0:
            total = _add_part(
                part1, weight + IN0, total, first, node, component, is_row, out, is_out, IN1, COMPONENTS, HEADS1, WIDTH1,
                IN0 + IN1, 1, BLOCK_IN, PRECISION, COMPUTE, OPERAND,
            )  # fmt: skip
        places = _places(output, first, node, component, out, OUT, COMPONENTS, HEADS_OUT, WIDTH_OUT)
        tl.store(places, total.to(output.dtype.element_ty), mask=is_row[:, None] & is_out[None])


@triton.jit
def _transpose_part(
    gradient, weight, result, num_nodes, block,
    COMPONENTS: tl.constexpr, IN: tl.constexpr, ALL_IN: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTH: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """dx of one part; ``weight`` points to the weight of its first channel, ``block`` counts its blocks of channels."""
    channel = block * BLOCK_IN + tl.arange(0, BLOCK_IN)
    is_channel = channel < IN
    first, node, component, is_row = _rows(tl.program_id(0), num_nodes, COMPONENTS, ROWS)
    if (first < num_nodes) & (block * BLOCK_IN < IN):
        total = _add_part(
            gradient, weight, tl.zeros((ROWS, BLOCK_IN), SUM), first, node, component, is_row, channel, is_channel,
            OUT, COMPONENTS, HEADS_OUT, WIDTH_OUT, 1, ALL_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND,
        )  # fmt: skip
        places = _places(result, first, node, component, channel, IN, COMPONENTS, HEADS, WIDTH)
        tl.store(places, total.to(result.dtype.element_ty), mask=is_row[:, None] & is_channel[None])


@triton.jit
def _transpose_degree(
    gradient, weight, result0, result1, num_nodes, block,
    COMPONENTS: tl.constexpr, IN0: tl.constexpr, IN1: tl.constexpr, OUT: tl.constexpr, HEADS0: tl.constexpr, HEADS1: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    blocks0: tl.constexpr = (IN0 + BLOCK_IN - 1) // BLOCK_IN
    if IN0 > 0 and block < blocks0:
        _transpose_part(
            gradient, weight, result0, num_nodes, block, COMPONENTS, IN0, IN0 + IN1, OUT, HEADS0, HEADS_OUT,
            WIDTH0, WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    if IN1 > 0 and block >= blocks0:
        _transpose_part(
            gradient, weight + IN0, result1, num_nodes, block - blocks0, COMPONENTS, IN1, IN0 + IN1, OUT, HEADS1,
            HEADS_OUT, WIDTH1, WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip


@triton.jit
def _weight_gradient_part(
    gradient, values, row, num_nodes, num_programs, out_block, block,
    COMPONENTS: tl.constexpr, IN: tl.constexpr, ALL_IN: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTH: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """A tile of dW over the nodes of this program; ``row`` points to the sum for the first channel of the part."""
    out = out_block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    channel = block * BLOCK_IN + tl.arange(0, BLOCK_IN)
    is_out, is_channel = out < OUT, channel < IN
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), SUM)
    for step in range(tl.program_id(0), tl.cdiv(num_nodes, ROWS // COMPONENTS), num_programs):
        first, node, component, is_row = _rows(step, num_nodes, COMPONENTS, ROWS)
        places = _places(gradient, first, node, component, out, OUT, COMPONENTS, HEADS_OUT, WIDTH_OUT)
        g = tl.load(places, mask=is_row[:, None] & is_out[None], other=0.0)
        places = _places(values, first, node, component, channel, IN, COMPONENTS, HEADS, WIDTH)
        x = tl.load(places, mask=is_row[:, None] & is_channel[None], other=0.0)
        total = _product(tl.trans(g), x, total, PRECISION, COMPUTE, OPERAND)
    tl.store(row + (out[:, None] * ALL_IN + channel[None]), total, mask=is_out[:, None] & is_channel[None])


@triton.jit
def _weight_gradient_degree(
    gradient, part0, part1, row, num_nodes, num_programs, tile,
    COMPONENTS: tl.constexpr, IN0: tl.constexpr, IN1: tl.constexpr, OUT: tl.constexpr, HEADS0: tl.constexpr, HEADS1: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    blocks0: tl.constexpr = (IN0 + BLOCK_IN - 1) // BLOCK_IN
    blocks: tl.constexpr = blocks0 + (IN1 + BLOCK_IN - 1) // BLOCK_IN
    out_block, block = tile // blocks, tile % blocks
    if out_block * BLOCK_OUT < OUT:
        if IN0 > 0 and block < blocks0:
            _weight_gradient_part(
                gradient, part0, row, num_nodes, num_programs, out_block, block, COMPONENTS, IN0, IN0 + IN1, OUT, HEADS0,
                HEADS_OUT, WIDTH0, WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        if IN1 > 0 and block >= blocks0:
            _weight_gradient_part(
                gradient, part1, row + IN0, num_nodes, num_programs, out_block, block - blocks0, COMPONENTS, IN1,
                IN0 + IN1, OUT, HEADS1, HEADS_OUT, WIDTH1, WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip


@triton.jit
def _forward_kernel(
    part0_0, part0_1, part0_2, part0_3, part0_4, part0_5, part0_6,
    part1_0, part1_1, part1_2, part1_3, part1_4, part1_5, part1_6,
    weight0, weight1, weight2, weight3, weight4, weight5, weight6,
    output0, output1, output2, output3, output4, output5, output6,
    num_nodes,
    COMPONENTS0: tl.constexpr, COMPONENTS1: tl.constexpr, COMPONENTS2: tl.constexpr, COMPONENTS3: tl.constexpr,
    COMPONENTS4: tl.constexpr, COMPONENTS5: tl.constexpr, COMPONENTS6: tl.constexpr,
    IN0_0: tl.constexpr, IN0_1: tl.constexpr, IN0_2: tl.constexpr, IN0_3: tl.constexpr,
    IN0_4: tl.constexpr, IN0_5: tl.constexpr, IN0_6: tl.constexpr,
    IN1_0: tl.constexpr, IN1_1: tl.constexpr, IN1_2: tl.constexpr, IN1_3: tl.constexpr,
    IN1_4: tl.constexpr, IN1_5: tl.constexpr, IN1_6: tl.constexpr,
    OUT_0: tl.constexpr, OUT_1: tl.constexpr, OUT_2: tl.constexpr, OUT_3: tl.constexpr,
    OUT_4: tl.constexpr, OUT_5: tl.constexpr, OUT_6: tl.constexpr,
    HEADS0: tl.constexpr, HEADS1: tl.constexpr, HEADS_OUT: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr,
    WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(1)
    if number == 0:
        _map_degree(
            part0_0, part1_0, weight0, output0, num_nodes,
            COMPONENTS0, IN0_0, IN1_0, OUT_0, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
            ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    if COMPONENTS1 > 0 and number == 1:
        _map_degree(
            part0_1, part1_1, weight1, output1, num_nodes,
            COMPONENTS1, IN0_1, IN1_1, OUT_1, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
            ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    if COMPONENTS2 > 0 and number == 2:
        _map_degree(
            part0_2, part1_2, weight2, output2, num_nodes,
            COMPONENTS2, IN0_2, IN1_2, OUT_2, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
            ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    if COMPONENTS3 > 0 and number == 3:
        _map_degree(
            part0_3, part1_3, weight3, output3, num_nodes,
            COMPONENTS3, IN0_3, IN1_3, OUT_3, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
            ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    if COMPONENTS4 > 0 and number == 4:
        _map_degree(
            part0_4, part1_4, weight4, output4, num_nodes,
            COMPONENTS4, IN0_4, IN1_4, OUT_4, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
            ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    if COMPONENTS5 > 0 and number == 5:
        _map_degree(
            part0_5, part1_5, weight5, output5, num_nodes,
            COMPONENTS5, IN0_5, IN1_5, OUT_5, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
            ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    if COMPONENTS6 > 0 and number == 6:
        _map_degree(
            part0_6, part1_6, weight6, output6, num_nodes,
            COMPONENTS6, IN0_6, IN1_6, OUT_6, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
            ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip


@triton.jit
def _backward_kernel(
    gradient0, gradient1, gradient2, gradient3, gradient4, gradient5, gradient6,
    part0_0, part0_1, part0_2, part0_3, part0_4, part0_5, part0_6,
    part1_0, part1_1, part1_2, part1_3, part1_4, part1_5, part1_6,
    weight0, weight1, weight2, weight3, weight4, weight5, weight6,
    result0_0, result0_1, result0_2, result0_3, result0_4, result0_5, result0_6,
    result1_0, result1_1, result1_2, result1_3, result1_4, result1_5, result1_6,
    partial_sums, num_weights, num_nodes, input_blocks, num_programs,
    COMPONENTS0: tl.constexpr, COMPONENTS1: tl.constexpr, COMPONENTS2: tl.constexpr, COMPONENTS3: tl.constexpr,
    COMPONENTS4: tl.constexpr, COMPONENTS5: tl.constexpr, COMPONENTS6: tl.constexpr,
    IN0_0: tl.constexpr, IN0_1: tl.constexpr, IN0_2: tl.constexpr, IN0_3: tl.constexpr,
    IN0_4: tl.constexpr, IN0_5: tl.constexpr, IN0_6: tl.constexpr,
    IN1_0: tl.constexpr, IN1_1: tl.constexpr, IN1_2: tl.constexpr, IN1_3: tl.constexpr,
    IN1_4: tl.constexpr, IN1_5: tl.constexpr, IN1_6: tl.constexpr,
    OUT_0: tl.constexpr, OUT_1: tl.constexpr, OUT_2: tl.constexpr, OUT_3: tl.constexpr,
    OUT_4: tl.constexpr, OUT_5: tl.constexpr, OUT_6: tl.constexpr,
    HEADS0: tl.constexpr, HEADS1: tl.constexpr, HEADS_OUT: tl.constexpr, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr,
    WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr,
    COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Along the last axis of the grid come the blocks of input channels for dx, then the tiles of dW."""
    number, block = tl.program_id(1), tl.program_id(2)
    if block < input_blocks:
        if number == 0:
            _transpose_degree(
                gradient0, weight0, result0_0, result1_0, num_nodes, block,
                COMPONENTS0, IN0_0, IN1_0, OUT_0, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        if COMPONENTS1 > 0 and number == 1:
            _transpose_degree(
                gradient1, weight1, result0_1, result1_1, num_nodes, block,
                COMPONENTS1, IN0_1, IN1_1, OUT_1, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        if COMPONENTS2 > 0 and number == 2:
            _transpose_degree(
                gradient2, weight2, result0_2, result1_2, num_nodes, block,
                COMPONENTS2, IN0_2, IN1_2, OUT_2, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        if COMPONENTS3 > 0 and number == 3:
            _transpose_degree(
                gradient3, weight3, result0_3, result1_3, num_nodes, block,
                COMPONENTS3, IN0_3, IN1_3, OUT_3, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        if COMPONENTS4 > 0 and number == 4:
            _transpose_degree(
                gradient4, weight4, result0_4, result1_4, num_nodes, block,
                COMPONENTS4, IN0_4, IN1_4, OUT_4, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        if COMPONENTS5 > 0 and number == 5:
            _transpose_degree(
                gradient5, weight5, result0_5, result1_5, num_nodes, block,
                COMPONENTS5, IN0_5, IN1_5, OUT_5, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        if COMPONENTS6 > 0 and number == 6:
            _transpose_degree(
                gradient6, weight6, result0_6, result1_6, num_nodes, block,
                COMPONENTS6, IN0_6, IN1_6, OUT_6, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
    elif tl.program_id(0) < num_programs:
        row = partial_sums + tl.program_id(0).to(tl.int64) * num_weights
        if number == 0:
            _weight_gradient_degree(
                gradient0, part0_0, part1_0, row, num_nodes, num_programs, block - input_blocks,
                COMPONENTS0, IN0_0, IN1_0, OUT_0, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        row += (IN0_0 + IN1_0) * OUT_0
        if COMPONENTS1 > 0 and number == 1:
            _weight_gradient_degree(
                gradient1, part0_1, part1_1, row, num_nodes, num_programs, block - input_blocks,
                COMPONENTS1, IN0_1, IN1_1, OUT_1, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        row += (IN0_1 + IN1_1) * OUT_1
        if COMPONENTS2 > 0 and number == 2:
            _weight_gradient_degree(
                gradient2, part0_2, part1_2, row, num_nodes, num_programs, block - input_blocks,
                COMPONENTS2, IN0_2, IN1_2, OUT_2, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        row += (IN0_2 + IN1_2) * OUT_2
        if COMPONENTS3 > 0 and number == 3:
            _weight_gradient_degree(
                gradient3, part0_3, part1_3, row, num_nodes, num_programs, block - input_blocks,
                COMPONENTS3, IN0_3, IN1_3, OUT_3, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        row += (IN0_3 + IN1_3) * OUT_3
        if COMPONENTS4 > 0 and number == 4:
            _weight_gradient_degree(
                gradient4, part0_4, part1_4, row, num_nodes, num_programs, block - input_blocks,
                COMPONENTS4, IN0_4, IN1_4, OUT_4, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        row += (IN0_4 + IN1_4) * OUT_4
        if COMPONENTS5 > 0 and number == 5:
            _weight_gradient_degree(
                gradient5, part0_5, part1_5, row, num_nodes, num_programs, block - input_blocks,
                COMPONENTS5, IN0_5, IN1_5, OUT_5, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        row += (IN0_5 + IN1_5) * OUT_5
        if COMPONENTS6 > 0 and number == 6:
            _weight_gradient_degree(
                gradient6, part0_6, part1_6, row, num_nodes, num_programs, block - input_blocks,
                COMPONENTS6, IN0_6, IN1_6, OUT_6, HEADS0, HEADS1, HEADS_OUT, WIDTH0, WIDTH1, WIDTH_OUT,
                ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip


class Shape(NamedTuple):
    """What is multiplied by what.

    Attributes:
        components: 2d+1 of every degree.
        channels_in: for each of up to two parts the channels of every degree; 0 where a part lacks a degree.
        channels_out: of every degree.
        heads_in: for each part how many heads its one tensor has, or 0 if it has a tensor for each degree.
        heads_out: the same of the output.
        dtype: of the output; operands are rounded to it.
    """

    components: tuple[int, ...]
    channels_in: tuple[tuple[int, ...], ...]
    channels_out: tuple[int, ...]
    heads_in: tuple[int, ...]
    heads_out: int
    dtype: torch.dtype

    @property
    def weight_shapes(self) -> list[tuple[int, int]]:
        """[C_out, C_in] of every degree."""
        return [(out, sum(parts)) for out, *parts in zip(self.channels_out, *self.channels_in, strict=True)]


def forward(parts: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], shape: Shape) -> list[Tensor]:
    """Apply the maps.

    Args:
        parts: one or two parts of the input, contiguous: the tensors of the degrees that a part has, or its one tensor.
        weights: [C_out, C_in] of every degree, contiguous.
        shape: what they are.

    Returns:
        [N, C_out, 2d+1] of every degree, or one tensor [N, heads, width].
    """
    outputs = _empty_like_fiber(parts[0][0], shape.components, shape.channels_out, shape.heads_out, shape.dtype)
    num_nodes = len(outputs[0])
    if num_nodes > 0:
        tile = _choose_tile(shape)
        grid = (*_node_blocks(num_nodes, shape, tile), _blocks(max(shape.channels_out), tile.channels_out))
        _forward_kernel[grid](
            *_part_slots(parts, shape), *_slots(weights), *_out_slots(outputs, shape), num_nodes,
            **_constants(shape, tile), num_warps=tile.warps, num_stages=_NUM_STAGES,
        )  # fmt: skip
    return outputs


def backward(
    gradients: Sequence[Tensor],
    parts: Sequence[Sequence[Tensor]],
    weights: Sequence[Tensor],
    shape: Shape,
    with_inputs: bool,
    programs: int | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """Gradients of everything.

    Args:
        gradients: of the outputs of :func:`forward`, contiguous.
        parts: as in :func:`forward`.
        weights: as in :func:`forward`.
        shape: as in :func:`forward`.
        with_inputs: whether those of the parts are wanted; no tensors otherwise.
        programs: how many share the nodes for dW; None: as many as fill a large GPU.

    Returns:
        Gradients of the weights, [programs, values of the weights of all degrees in a row], to be summed over the programs; and of
        the parts, laid out and typed as the parts are.
    """
    results = [[torch.empty_like(tensor) for tensor in part] for part in parts] if with_inputs else []
    num_weights = sum(out * channels for out, channels in shape.weight_shapes)
    num_nodes = len(gradients[0])
    sum_dtype = torch.float64 if shape.dtype == torch.float64 else torch.float32
    if num_nodes == 0:
        return gradients[0].new_zeros(programs or 1, num_weights, dtype=sum_dtype), results
    tile = _choose_tile(shape)
    node_blocks, num_degrees = _node_blocks(num_nodes, shape, tile)
    in_blocks = [
        sum(_blocks(channels, tile.channels_in) for channels in of_degree) for of_degree in zip(*shape.channels_in, strict=True)
    ]
    out_blocks = [_blocks(channels, tile.channels_out) for channels in shape.channels_out]
    tiles = max(out * columns for out, columns in zip(out_blocks, in_blocks, strict=True))
    input_blocks = max(in_blocks) if with_inputs else 0
    if programs is None:
        programs = min(node_blocks, max(1, _WEIGHT_PROGRAMS // (num_degrees * tiles)))
    partial_sums = gradients[0].new_empty(programs, num_weights, dtype=sum_dtype)
    _backward_kernel[max(node_blocks, programs) if with_inputs else programs, num_degrees, input_blocks + tiles](
        *_out_slots(gradients, shape), *_part_slots(parts, shape), *_slots(weights), *_part_slots(results or parts, shape),
        partial_sums, num_weights, num_nodes, input_blocks, programs,
        **_constants(shape, tile), num_warps=tile.warps, num_stages=_NUM_STAGES,
    )  # fmt: skip
    return partial_sums, results


class Tile(NamedTuple):
    """Rows, which are pairs of node and component, and channels of a product, and the warps of a program."""

    rows: int
    channels_in: int
    channels_out: int
    warps: int


def _choose_tile(shape: Shape) -> Tile:
    """In full precision a product's operands sit in the registers of the ordinary cores: fewer rows. Channels are padded to 16."""
    is_half = shape.dtype in (torch.float16, torch.bfloat16)
    rows, widest = (64, 32) if is_half else (32, 16 if shape.dtype == torch.float64 else 32)
    rows = max(rows, triton.next_power_of_2(max(shape.components)))
    largest_in = max(max(part) for part in shape.channels_in)
    return Tile(rows, _padded(largest_in, widest), _padded(max(shape.channels_out), widest), 4)


def _padded(channels: int, widest: int) -> int:
    return min(max(triton.next_power_of_2(channels), 16), widest)


def _blocks(channels: int, block: int) -> int:
    return triton.cdiv(channels, block)


def _node_blocks(num_nodes: int, shape: Shape, tile: Tile) -> tuple[int, int]:
    """Blocks of nodes of the largest degree, and the number of degrees."""
    return triton.cdiv(num_nodes, tile.rows // max(shape.components)), len(shape.components)


def _width(components: Sequence[int], channels: Sequence[int], heads: int) -> int:
    """Values of a head; 0 without heads."""
    return sum(size * count for size, count in zip(components, channels, strict=True)) // heads if heads else 0


def _empty_like_fiber(
    example: Tensor, components: Sequence[int], channels: Sequence[int], heads: int, dtype: torch.dtype
) -> list[Tensor]:
    num_nodes = len(example)
    if heads:
        return [example.new_empty(num_nodes, heads, _width(components, channels, heads), dtype=dtype)]
    return [example.new_empty(num_nodes, count, size, dtype=dtype) for size, count in zip(components, channels, strict=True)]


def _fiber_slots(tensors: Sequence[Tensor], components: Sequence[int], channels: Sequence[int], heads: int) -> list[Tensor]:
    """One tensor per pointer argument: where each degree begins."""
    if heads:
        starts = [_width(components[:number], channels[:number], heads) for number in range(len(components))]
        return _slots([tensors[0][..., start:] for start in starts])
    remaining = iter(tensors)
    return _slots([next(remaining) if count else tensors[0] for count in channels])


def _part_slots(parts: Sequence[Sequence[Tensor]], shape: Shape) -> list[Tensor]:
    """The same for both parts of the input; the second is not used where there is none."""
    slots = []
    for tensors, channels, heads in zip(parts, shape.channels_in, shape.heads_in, strict=True):
        slots += _fiber_slots(tensors, shape.components, channels, heads)
    return slots if len(parts) == 2 else slots * 2


def _out_slots(tensors: Sequence[Tensor], shape: Shape) -> list[Tensor]:
    """The same for the output."""
    return _fiber_slots(tensors, shape.components, shape.channels_out, shape.heads_out)


def _slots(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those that are not used repeat the first."""
    return [*tensors, *[tensors[0]] * (MAX_DEGREES - len(tensors))]


def _constants(shape: Shape, tile: Tile) -> dict[str, object]:
    """The constexpr arguments; degrees that are not there have 0 components, a part that is not there 0 channels.

    float32 is multiplied as such, unless PyTorch is told that TF32 will do (``torch.backends.cuda.matmul.allow_tf32``).
    """
    types = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # it would multiply bfloat16 bits
    is_tf32 = shape.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    no_part = (0,) * len(shape.components)
    part0, part1 = (*shape.channels_in, no_part)[:2]
    heads0, heads1 = (*shape.heads_in, 0)[:2]
    by_degree = (("COMPONENTS", shape.components), ("IN0_", part0), ("IN1_", part1), ("OUT_", shape.channels_out))
    return {
        **{f"{name}{number}": (*counts, *[0] * MAX_DEGREES)[number] for name, counts in by_degree for number in range(MAX_DEGREES)},
        "HEADS0": heads0,
        "HEADS1": heads1,
        "HEADS_OUT": shape.heads_out,
        "WIDTH0": _width(shape.components, part0, heads0),
        "WIDTH1": _width(shape.components, part1, heads1),
        "WIDTH_OUT": _width(shape.components, shape.channels_out, shape.heads_out),
        "ROWS": tile.rows,
        "BLOCK_IN": tile.channels_in,
        "BLOCK_OUT": tile.channels_out,
        "PRECISION": "tf32" if is_tf32 else "ieee",
        "COMPUTE": types[shape.dtype],
        "OPERAND": tl.float32 if is_interpreted and shape.dtype == torch.bfloat16 else types[shape.dtype],
        "SUM": tl.float64 if shape.dtype == torch.float64 else tl.float32,
    }


def cost(num_nodes: int, shape: Shape) -> tuple[Cost, Cost]:
    """The work of the maps, forward and backward, without the weights, which are few; all parts in the dtype of the output.

    The gradient of the output is read twice, for dx and for dW.

    Args:
        num_nodes: N.
        shape: of the maps.
    """
    itemsize = shape.dtype.itemsize
    sizes = list(zip(shape.components, shape.weight_shapes, strict=True))
    products = 2 * num_nodes * sum(size * out * channels for size, (out, channels) in sizes)
    values_in = num_nodes * sum(size * channels for size, (_, channels) in sizes)
    values_out = num_nodes * sum(size * out for size, (out, _) in sizes)
    in_bytes, out_bytes = values_in * itemsize, values_out * itemsize
    return Cost(products, 0, in_bytes + out_bytes), Cost(2 * products, 0, 2 * (in_bytes + out_bytes))


def compile_cases() -> list[CompileCase]:
    """The kernels of the workloads' projections, the largest of their maps; weights are float32, or float64 with the features.

    The first part of the input comes from the attention, per head.
    """
    cases = []
    names = (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32), ("fp64", torch.float64))
    for workload, components, values, hidden, heads in (
        ("qm9", (1, 3, 5, 7), 16, 32, 8),
        ("protein_full", (1, 3), 8, 32, 4),
        ("protein_wide", (1, 3), 32, 128, 4),
    ):
        count = len(components)
        for name, dtype in names:
            shape = Shape(components, ((values,) * count, (hidden,) * count), (hidden,) * count, (heads, 0), 0, dtype)
            cases += _cases_of_layer(f"{workload} {name}", shape, name)
    return cases


def _cases_of_layer(name: str, shape: Shape, value_type: str) -> list[CompileCase]:
    tile = _choose_tile(shape)
    constants = _constants(shape, tile) | {"PRECISION": "ieee"}
    full_type = "*fp64" if shape.dtype == torch.float64 else "*fp32"
    cases = []
    launches: tuple[tuple[str, object], ...] = (("forward", _forward_kernel), ("backward", _backward_kernel))
    integers = ("num_weights", "num_nodes", "input_blocks", "num_programs")
    for kind, kernel in launches:
        arguments = [argument for argument in kernel.arg_names if argument not in constants]  # type: ignore[attr-defined]
        types = {argument: full_type if argument.startswith(("weight", "partial")) else f"*{value_type}" for argument in arguments}
        cases.append(
            CompileCase(
                name=f"{kind} {name}",
                kernel=kernel,
                signature=types | {argument: "i32" for argument in integers if argument in arguments},
                constants=constants,
                num_warps=tile.warps,
                num_stages=_NUM_STAGES,
                targets=(80, 90, 100) if value_type == "fp64" else (),  # others have 1/64 of the float64 units, and spill
                expects_matrix_instructions=value_type in ("fp16", "bf16"),
            )
        )
    return cases
