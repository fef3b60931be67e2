"""A perceptron of two layers: one launch forward and one backward, for its input and all weights, without atomics.

    hidden = relu(x W1^T + b1),   out = hidden W2^T + b2
    dh = (g W2) where hidden > 0,   dx = dh W1,   dW1 = dh^T x,   db1 = sum_b dh,   dW2 = g^T hidden,   db2 = sum_b g

x: [B, W]; W1: [H, W], b1: [H]; W2: [O, H], b2: [O]. A NaN passes through the relu, so that it shows.

Forward: a program has a block of rows and a block of outputs, and walks over the hidden units; the programs of the first outputs
write hidden down for the backward pass. Backward, in one launch: programs that have a block of rows and of input channels make dx;
others have a tile of dW1 or of dW2, with its part of db1 or db2, and walk over all rows in their order. So no sums are left to be
added, and two runs are identical. dh is made where it is needed: it is not in memory.

Operands are rounded to the compute dtype where they are read, so that float32 weights need no copy in half precision.

Cost: 2 B H (W + O) FLOP of matrix products forward; backward dx, dW1, dW2, and dh twice: for dx and for dW1. Every tensor is read
or written once. More than 32 outputs, or input channels, are several blocks, each of which makes hidden, or dh, again. The
published model with 240 molecules, 128 channels and one output: 8 MFLOP and 310 KB in float32, bound by the time a launch takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .precision import DTYPES, TYPES, add_rounded_product, is_half, padded, product_constants
from .resources import CompileCase

_ROWS = 16  # of a program: batches are small
_WARPS = 4
_NUM_STAGES = 2


@triton.jit
def _block(number, size, BLOCK: tl.constexpr):
    """The indices of a block, and which of them are below ``size``."""
    index = number * BLOCK + tl.arange(0, BLOCK)
    return index, index < size


@triton.jit
def _row_block(number, num_rows, ROWS: tl.constexpr):
    """First row of a block, a 64-bit number; its rows counted from there; which of them there are."""
    first = tl.cast(number, tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    return first, row, first + row < num_rows


@triton.jit
def _load(matrix, row, column, is_row, is_column, WIDTH: tl.constexpr):
    """A tile of a matrix [rows, WIDTH]; 0 beyond it."""
    return tl.load(matrix + (row[:, None] * WIDTH + column[None]), mask=is_row[:, None] & is_column[None], other=0.0)


@triton.jit
def _hidden_gradient(
    gradient, weight2, hidden, row, is_row, unit, is_unit,
    HIDDEN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr, BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """dh, [rows, units]; ``gradient`` and ``hidden`` point to the first row of the block."""
    total = tl.zeros((ROWS, BLOCK_HIDDEN), SUM)
    for number in range(0, tl.cdiv(OUT, BLOCK_OUT)):
        out, is_out = _block(number, OUT, BLOCK_OUT)
        g = _load(gradient, row, out, is_row, is_out, OUT)
        factors = _load(weight2, out, unit, is_out, is_unit, HIDDEN)
        total = add_rounded_product(g, factors, total, PRECISION, COMPUTE, OPERAND)
    return tl.where(_load(hidden, row, unit, is_row, is_unit, HIDDEN).to(SUM) <= 0.0, 0.0, total)


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    x, weight1, bias1, weight2, bias2, hidden, output, num_rows,
    IN: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    first, row, is_row = _row_block(tl.program_id(0), num_rows, ROWS)
    out, is_out = _block(tl.program_id(1), OUT, BLOCK_OUT)
    result = tl.zeros((ROWS, BLOCK_OUT), SUM)
    for unit_block in range(0, tl.cdiv(HIDDEN, BLOCK_HIDDEN)):
        unit, is_unit = _block(unit_block, HIDDEN, BLOCK_HIDDEN)
        total = tl.zeros((ROWS, BLOCK_HIDDEN), SUM)
        for channel_block in range(0, tl.cdiv(IN, BLOCK_IN)):
            channel, is_channel = _block(channel_block, IN, BLOCK_IN)
            values = _load(x + first * IN, row, channel, is_row, is_channel, IN)
            factors = _load(weight1, unit, channel, is_unit, is_channel, IN)
            total = add_rounded_product(values, tl.trans(factors), total, PRECISION, COMPUTE, OPERAND)
        total += tl.load(bias1 + unit, mask=is_unit, other=0.0).to(COMPUTE).to(SUM)[None]
        total = total.to(COMPUTE).to(SUM)
        activated = tl.where(total <= 0.0, 0.0, total)
        if tl.program_id(1) == 0:
            places = hidden + first * HIDDEN + (row[:, None] * HIDDEN + unit[None])
            tl.store(places, activated.to(hidden.dtype.element_ty), mask=is_row[:, None] & is_unit[None])
        factors = _load(weight2, out, unit, is_out, is_unit, HIDDEN)
        result = add_rounded_product(activated, tl.trans(factors), result, PRECISION, COMPUTE, OPERAND)
    result += tl.load(bias2 + out, mask=is_out, other=0.0).to(COMPUTE).to(SUM)[None]
    places = output + first * OUT + (row[:, None] * OUT + out[None])
    tl.store(places, result.to(output.dtype.element_ty), mask=is_row[:, None] & is_out[None])


@triton.jit
def _input_gradient(
    gradient, weight1, weight2, hidden, result, num_rows, number,
    IN: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """dx of a block of rows and of channels."""
    channel_blocks: tl.constexpr = (IN + BLOCK_IN - 1) // BLOCK_IN
    first, row, is_row = _row_block(number // channel_blocks, num_rows, ROWS)
    channel, is_channel = _block(number % channel_blocks, IN, BLOCK_IN)
    total = tl.zeros((ROWS, BLOCK_IN), SUM)
    for unit_block in range(0, tl.cdiv(HIDDEN, BLOCK_HIDDEN)):
        unit, is_unit = _block(unit_block, HIDDEN, BLOCK_HIDDEN)
        of_hidden = _hidden_gradient(
            gradient + first * OUT, weight2, hidden + first * HIDDEN, row, is_row, unit, is_unit,
            HIDDEN, OUT, ROWS, BLOCK_HIDDEN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
        factors = _load(weight1, unit, channel, is_unit, is_channel, IN)
        total = add_rounded_product(of_hidden, factors, total, PRECISION, COMPUTE, OPERAND)
    places = result + first * IN + (row[:, None] * IN + channel[None])
    tl.store(places, total.to(result.dtype.element_ty), mask=is_row[:, None] & is_channel[None])


@triton.jit
def _first_gradients(
    gradient, x, weight2, hidden, of_weight, of_bias, num_rows, number,
    IN: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """A tile of dW1; those of the first channels have db1 of their units."""
    channel_blocks: tl.constexpr = (IN + BLOCK_IN - 1) // BLOCK_IN
    unit, is_unit = _block(number // channel_blocks, HIDDEN, BLOCK_HIDDEN)
    channel, is_channel = _block(number % channel_blocks, IN, BLOCK_IN)
    total = tl.zeros((BLOCK_HIDDEN, BLOCK_IN), SUM)
    total_bias = tl.zeros((BLOCK_HIDDEN,), SUM)
    for row_block in range(0, tl.cdiv(num_rows, ROWS)):
        first, row, is_row = _row_block(row_block, num_rows, ROWS)
        of_hidden = _hidden_gradient(
            gradient + first * OUT, weight2, hidden + first * HIDDEN, row, is_row, unit, is_unit,
            HIDDEN, OUT, ROWS, BLOCK_HIDDEN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
        values = _load(x + first * IN, row, channel, is_row, is_channel, IN)
        total = add_rounded_product(tl.trans(of_hidden), values, total, PRECISION, COMPUTE, OPERAND)
        total_bias += tl.sum(of_hidden, 0)
    places = of_weight + (unit[:, None] * IN + channel[None])
    tl.store(places, total.to(of_weight.dtype.element_ty), mask=is_unit[:, None] & is_channel[None])
    if number % channel_blocks == 0:
        tl.store(of_bias + unit, total_bias.to(of_bias.dtype.element_ty), mask=is_unit)


@triton.jit
def _second_gradients(
    gradient, hidden, of_weight, of_bias, num_rows, number,
    HIDDEN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr, BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """A tile of dW2; those of the first units have db2 of their outputs."""
    unit_blocks: tl.constexpr = (HIDDEN + BLOCK_HIDDEN - 1) // BLOCK_HIDDEN
    out, is_out = _block(number // unit_blocks, OUT, BLOCK_OUT)
    unit, is_unit = _block(number % unit_blocks, HIDDEN, BLOCK_HIDDEN)
    total = tl.zeros((BLOCK_OUT, BLOCK_HIDDEN), SUM)
    total_bias = tl.zeros((BLOCK_OUT,), SUM)
    for row_block in range(0, tl.cdiv(num_rows, ROWS)):
        first, row, is_row = _row_block(row_block, num_rows, ROWS)
        g = _load(gradient + first * OUT, row, out, is_row, is_out, OUT)
        activated = _load(hidden + first * HIDDEN, row, unit, is_row, is_unit, HIDDEN)
        total = add_rounded_product(tl.trans(g), activated, total, PRECISION, COMPUTE, OPERAND)
        total_bias += tl.sum(g.to(SUM), 0)
    places = of_weight + (out[:, None] * HIDDEN + unit[None])
    tl.store(places, total.to(of_weight.dtype.element_ty), mask=is_out[:, None] & is_unit[None])
    if number % unit_blocks == 0:
        tl.store(of_bias + out, total_bias.to(of_bias.dtype.element_ty), mask=is_out)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    gradient, x, weight1, weight2, hidden, of_x, of_weight1, of_bias1, of_weight2, of_bias2, num_rows,
    IN: tl.constexpr, HIDDEN: tl.constexpr, OUT: tl.constexpr, ROWS: tl.constexpr, WALK_ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """First come the tiles of dW1 and of dW2, whose programs take longest, then the blocks of dx."""
    unit_blocks: tl.constexpr = (HIDDEN + BLOCK_HIDDEN - 1) // BLOCK_HIDDEN
    first_tiles: tl.constexpr = unit_blocks * ((IN + BLOCK_IN - 1) // BLOCK_IN)
    second_tiles: tl.constexpr = unit_blocks * ((OUT + BLOCK_OUT - 1) // BLOCK_OUT)
    number = tl.program_id(0)
    if number < first_tiles:
        _first_gradients(
            gradient, x, weight2, hidden, of_weight1, of_bias1, num_rows, number,
            IN, HIDDEN, OUT, WALK_ROWS, BLOCK_IN, BLOCK_HIDDEN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    elif number < first_tiles + second_tiles:
        _second_gradients(
            gradient, hidden, of_weight2, of_bias2, num_rows, number - first_tiles,
            HIDDEN, OUT, WALK_ROWS, BLOCK_HIDDEN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip
    else:
        _input_gradient(
            gradient, weight1, weight2, hidden, of_x, num_rows, number - (first_tiles + second_tiles),
            IN, HIDDEN, OUT, ROWS, BLOCK_IN, BLOCK_HIDDEN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
        )  # fmt: skip


class Shape(NamedTuple):
    """Sizes and precision of a perceptron.

    Attributes:
        num_in: W, input channels.
        num_hidden: H, hidden units.
        num_out: O, outputs.
        dtype: of the output and of what is kept of the hidden units; operands are rounded to it.
    """

    num_in: int
    num_hidden: int
    num_out: int
    dtype: torch.dtype


class Parameters(NamedTuple):
    """Weights [H, W] and [O, H], biases [H] and [O], contiguous; no size is 0."""

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    def shape(self, dtype: torch.dtype) -> Shape:
        """Their sizes, with a precision."""
        num_hidden, num_in = self.weight1.shape
        return Shape(num_in, num_hidden, len(self.weight2), dtype)


def forward(x: Tensor, parameters: Parameters, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Evaluate.

    Args:
        x: [B, W], contiguous.
        parameters: of both layers.
        dtype: of the results; operands are rounded to it.

    Returns:
        [B, O], and the hidden units after the relu, [B, H].
    """
    num_rows, shape = len(x), parameters.shape(dtype)
    output = x.new_empty(num_rows, shape.num_out, dtype=dtype)
    hidden = x.new_empty(num_rows, shape.num_hidden, dtype=dtype)
    if num_rows > 0:
        tile = _choose_tile(shape)
        launch(_forward_kernel, (triton.cdiv(num_rows, _ROWS), triton.cdiv(shape.num_out, tile.block_out)),
            x, *parameters, hidden, output, num_rows, ROWS=_ROWS, **_constants(shape, tile), num_warps=_WARPS,
            num_stages=_NUM_STAGES,
        )  # fmt: skip
    return output, hidden


def backward(
    gradient: Tensor, x: Tensor, hidden: Tensor, parameters: Parameters, with_input: bool
) -> tuple[Tensor | None, Parameters]:
    """Gradients of everything.

    Args:
        gradient: [B, O] of the output, contiguous.
        x: as in :func:`forward`.
        hidden: of :func:`forward`.
        parameters: as in :func:`forward`.
        with_input: whether that of ``x`` is wanted.

    Returns:
        Those of ``x`` (or None) and of the parameters, typed as these are; sums over no rows are 0.
    """
    num_rows, shape = len(x), parameters.shape(hidden.dtype)
    of_x = torch.empty_like(x) if with_input else None
    of_parameters = Parameters(*map(torch.empty_like, parameters))
    tile = _choose_tile(shape)
    channel_blocks, unit_blocks = triton.cdiv(shape.num_in, tile.block_in), triton.cdiv(shape.num_hidden, tile.block_hidden)
    tiles = unit_blocks * (channel_blocks + triton.cdiv(shape.num_out, tile.block_out))
    input_programs = triton.cdiv(num_rows, _ROWS) * channel_blocks if with_input else 0
    launch(_backward_kernel, (tiles + input_programs,),
        gradient, x, parameters.weight1, parameters.weight2, hidden, x if of_x is None else of_x, *of_parameters, num_rows,
        ROWS=_ROWS, WALK_ROWS=tile.walk_rows, **_constants(shape, tile), num_warps=_WARPS, num_stages=_NUM_STAGES,
    )  # fmt: skip
    return of_x, of_parameters


class Tile(NamedTuple):
    """Rows of a step of a program that walks over all of them, and blocks of input channels, hidden units and outputs."""

    walk_rows: int
    block_in: int
    block_hidden: int
    block_out: int


def _choose_tile(shape: Shape) -> Tile:
    """In full precision a product's operands sit in the registers of the ordinary cores: smaller. Blocks are padded to 16."""
    widest = 16 if shape.dtype == torch.float64 else 32
    return Tile(
        64 if is_half(shape.dtype) else 32, *(padded(size, widest) for size in (shape.num_in, shape.num_hidden, shape.num_out))
    )


def _constants(shape: Shape, tile: Tile) -> dict[str, object]:
    """The constexpr arguments but for the rows."""
    return {
        "IN": shape.num_in,
        "HIDDEN": shape.num_hidden,
        "OUT": shape.num_out,
        "BLOCK_IN": tile.block_in,
        "BLOCK_HIDDEN": tile.block_hidden,
        "BLOCK_OUT": tile.block_out,
        "COMPUTE": TYPES[shape.dtype],
        **product_constants(shape.dtype),
    }


def cost(num_rows: int, shape: Shape) -> tuple[Cost, Cost]:
    """The work of a launch, forward and backward; all tensors in the dtype of the output.

    Args:
        num_rows: B.
        shape: of the perceptron.
    """
    num_in, num_hidden, num_out, dtype = shape
    first, second = num_rows * num_hidden * num_in, num_rows * num_hidden * num_out
    num_weights, num_biases = num_hidden * (num_in + num_out), num_hidden + num_out
    values = num_rows * (num_in + num_hidden + num_out)
    forward_bytes = (values + num_weights + num_biases) * dtype.itemsize
    backward_bytes = forward_bytes + (num_rows * num_in + num_weights) * dtype.itemsize
    sums = num_rows * num_biases
    return Cost(2 * (first + second), sums, forward_bytes), Cost(4 * first + 6 * second, sums, backward_bytes)


def compile_cases() -> list[CompileCase]:
    """Both kernels at the head of the published model, and with more outputs than a tile has; parameters as in training."""
    cases = []
    for name, dtype in DTYPES.items():
        for size, num_out in (("qm9", 1), ("100 outputs", 100)):
            shape = Shape(128, 128, num_out, dtype)
            tile = _choose_tile(shape)
            for kind, kernel, rows in (
                ("forward", _forward_kernel, {"ROWS": _ROWS}),
                ("backward", _backward_kernel, {"ROWS": _ROWS, "WALK_ROWS": tile.walk_rows}),
            ):
                constants = rows | _constants(shape, tile) | {"PRECISION": "ieee"}
                arguments = [argument for argument in kernel.arg_names if argument not in constants]
                cases.append(
                    CompileCase(
                        name=f"{kind} {size} {name}",
                        kernel=kernel,
                        signature={argument: _pointer_type(argument, name) for argument in arguments} | {"num_rows": "i32"},
                        constants=constants,
                        num_warps=_WARPS,
                        num_stages=_NUM_STAGES,
                        targets=(80, 90, 100) if name == "fp64" else (),  # others have 1/64 of the float64 units
                        expects_matrix_instructions=is_half(dtype),
                    )
                )
    return cases


def _pointer_type(argument: str, value_type: str) -> str:
    """Parameters and their gradients are float32, or float64 with the values."""
    is_parameter = argument.endswith(("weight1", "bias1", "weight2", "bias2"))
    return "*fp32" if is_parameter and value_type != "fp64" else f"*{value_type}"
