"""The last radial weights of many convolutions, mapped to the edge-aligned frames: one launch each way (DESIGN 1.1).

    A[r, i, k, o] = sum_f M[r, f] W[o, i, f, k],   dW[o, i, f, k] = sum_r M[r, f] dA[r, i, k, o]

W: the published weight of a radial group, [C_out * C_in * F, K]; M: the constant map from the group's F paths to as many aligned
weights, with at most as many entries in a row as two degrees have paths of one parity. A is written as the contraction reads it,
[r, C_in, K, C_out], and, where there will be a backward pass, as its transpose reads it, [r, C_out, K, C_in].

A program has an aligned weight r (backward: a path f) and a tile of channels and units. Tensors of up to 16 radial groups,
or gradients of up to 16 convolutions, go into one launch; tables say which one a program reads and which entries of M it sums.

Cost at 4 degrees, 32 channels, K = 32: 45,056 x 32 values read (about twice, from the cache the second time) and written once or
twice, 2 FLOP for each of about 2 entries of M: bound by memory, 5 microseconds a layer at 3 TB/s in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table_fields as fields
from .cost import Cost
from .launching import launch
from .precision import DTYPES, ROUNDINGS, sum_type
from .resources import ArgumentType, CompileCase, signature
from .tuples import one_of

SLOTS = 16
"""How many tensors one launch reads at most: each is an argument of the kernel."""

_TILE = 16, 32, 16  # input channels, units, output channels: runs of 32 bytes or more whichever axis is contiguous
_WARPS = 8  # 32 values a thread


class BlockTable(NamedTuple):
    """What the programs of a launch do.

    Attributes:
        blocks: :class:`WeightBlock` rows (``table_rows.py``); backward a result stands at the offset of the weight plus that of the
            path.
        places: [m] int64, of each entry what is read: forward the path, backward where the aligned weight begins.
        coefficients: [m] float64, of each entry that of the map.
        channels_in: largest C_in.
        channels_out: largest C_out.
    """

    blocks: Tensor
    places: Tensor
    coefficients: Tensor
    channels_in: int
    channels_out: int


@triton.jit
def _tile_of(
    blocks, out_tiles, WIDTH: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_OUT: tl.constexpr
):  # fmt: skip
    """The program's block, and its input channels, units and output channels with which of them exist, [in, unit, out]."""
    block = blocks + tl.program_id(0).to(tl.int64) * fields.BLOCK_FIELDS
    channels_in, channels_out = tl.load(block + fields.BLOCK_CHANNELS_IN), tl.load(block + fields.BLOCK_CHANNELS_OUT)
    tile = tl.program_id(1)
    channel_in = (tile // out_tiles * BLOCK_IN + tl.arange(0, BLOCK_IN))[:, None, None]
    channel_out = (tile % out_tiles * BLOCK_OUT + tl.arange(0, BLOCK_OUT))[None, None]
    unit = (tl.program_id(2) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH))[None, :, None]
    is_value = (channel_in < channels_in) & (channel_out < channels_out) & (unit < WIDTH)
    return block, channels_in, channels_out, channel_in, unit, channel_out, is_value


@triton.jit
def _forward_kernel(
    weights, aligned, transposed, blocks, places, coefficients, out_tiles,
    WIDTH: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_OUT: tl.constexpr,
    HAS_TRANSPOSED: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    block, channels_in, channels_out, channel_in, unit, channel_out, is_value = _tile_of(
        blocks, out_tiles, WIDTH, BLOCK_IN, BLOCK_WIDTH, BLOCK_OUT
    )
    weight = one_of(weights, tl.load(block + fields.BLOCK_TENSOR))
    weight += (channel_out * channels_in + channel_in) * tl.load(block + fields.BLOCK_NUM_PATHS) * WIDTH + unit
    total = tl.zeros((BLOCK_IN, BLOCK_WIDTH, BLOCK_OUT), SUM)
    for entry in range(tl.load(block + fields.BLOCK_FIRST), tl.load(block + fields.BLOCK_STOP)):
        path, coefficient = tl.load(places + entry), tl.load(coefficients + entry).to(SUM)
        total += coefficient * tl.load(weight + path * WIDTH, mask=is_value, other=0.0).to(SUM)
    start = tl.load(block + fields.BLOCK_RESULT)
    values = total.to(aligned.dtype.element_ty)
    tl.store(aligned + start + (channel_in * WIDTH + unit) * channels_out + channel_out, values, mask=is_value)
    if HAS_TRANSPOSED:
        tl.store(transposed + start + (channel_out * WIDTH + unit) * channels_in + channel_in, values, mask=is_value)


@triton.jit
def _backward_kernel(
    gradients, result, blocks, places, coefficients, out_tiles,
    WIDTH: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_OUT: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    block, channels_in, channels_out, channel_in, unit, channel_out, is_value = _tile_of(
        blocks, out_tiles, WIDTH, BLOCK_IN, BLOCK_WIDTH, BLOCK_OUT
    )
    gradient = one_of(gradients, tl.load(block + fields.BLOCK_TENSOR))
    gradient += (channel_in * WIDTH + unit) * channels_out + channel_out
    total = tl.zeros((BLOCK_IN, BLOCK_WIDTH, BLOCK_OUT), SUM)
    for entry in range(tl.load(block + fields.BLOCK_FIRST), tl.load(block + fields.BLOCK_STOP)):
        place, coefficient = tl.load(places + entry), tl.load(coefficients + entry).to(SUM)
        total += coefficient * tl.load(gradient + place, mask=is_value, other=0.0).to(SUM)
    place = (channel_out * channels_in + channel_in) * tl.load(block + fields.BLOCK_NUM_PATHS) * WIDTH + unit
    tl.store(result + tl.load(block + fields.BLOCK_RESULT) + place, total.to(result.dtype.element_ty), mask=is_value)


def forward(weights: Sequence[Tensor], table: BlockTable, aligned: Tensor, transposed: Tensor | None) -> None:
    """Map the weights of up to :data:`SLOTS` radial groups.

    Args:
        weights: [C_out * C_in * F, K] of each group, contiguous, of one dtype.
        table: an aligned weight for each block.
        aligned: [n], written where the table says.
        transposed: [n], the same in the other order, or None.
    """
    width = weights[0].shape[1]
    launch(_forward_kernel, _grid(table, width),
        tuple(weights), aligned, aligned if transposed is None else transposed, table.blocks, table.places, table.coefficients,
        triton.cdiv(table.channels_out, _TILE[2]), **_constants(width, weights[0].dtype),
        HAS_TRANSPOSED=transposed is not None, num_warps=_WARPS,
    )  # fmt: skip


def backward(gradients: Sequence[Tensor], table: BlockTable, width: int, result: Tensor) -> None:
    """The gradients of the weights that up to :data:`SLOTS` convolutions have.

    Args:
        gradients: [n] of the aligned weights of each convolution, contiguous, of one dtype.
        table: a path of a weight for each block.
        width: K.
        result: written where the table says.
    """
    launch(_backward_kernel, _grid(table, width),
        tuple(gradients), result, table.blocks, table.places, table.coefficients,
        triton.cdiv(table.channels_out, _TILE[2]), **_constants(width, result.dtype), num_warps=_WARPS,
    )  # fmt: skip


def _grid(table: BlockTable, width: int) -> tuple[int, int, int]:
    tiles = triton.cdiv(table.channels_in, _TILE[0]) * triton.cdiv(table.channels_out, _TILE[2])
    return len(table.blocks), tiles, triton.cdiv(width, _TILE[1])


def _constants(width: int, dtype: torch.dtype) -> dict[str, object]:
    block_in, block_width, block_out = _TILE
    return {"WIDTH": width, "BLOCK_IN": block_in, "BLOCK_WIDTH": block_width, "BLOCK_OUT": block_out, "SUM": sum_type(dtype)}


def cost(num_weights: int, num_entries: float, itemsize: int, aligned_itemsize: int) -> tuple[Cost, Cost]:
    """The work of a launch forward, with the transposed order, and backward.

    Args:
        num_weights: values of all weights.
        num_entries: mean entries of the map for each aligned weight.
        itemsize: bytes of a value of the weights.
        aligned_itemsize: bytes of a value of the aligned weights.
    """
    flop = round(2 * num_entries * num_weights)
    return (
        Cost(0, flop, num_weights * (itemsize + 2 * aligned_itemsize)),
        Cost(0, flop, num_weights * (itemsize + aligned_itemsize)),
    )


def compile_cases() -> list[CompileCase]:
    """Both kernels by dtype of the aligned weights; the weights are float32, float64 with them."""
    cases = []
    tables: dict[str, ArgumentType] = {"blocks": "*i64", "places": "*i64", "coefficients": "*fp64", "out_tiles": "i32"}
    for name, dtype in DTYPES.items():
        parameter = f"*{ROUNDINGS[name].sum_name}"
        tensors: dict[str, ArgumentType] = {
            "weights": (parameter,) * SLOTS,
            "gradients": (f"*{name}",) * SLOTS,
            "result": parameter,
        }
        launches: tuple[tuple[str, object, dict[str, object]], ...] = (
            ("forward", _forward_kernel, {"HAS_TRANSPOSED": True}),
            ("backward", _backward_kernel, {}),
        )
        for kind, kernel, values in launches:
            constants = _constants(32, dtype) | values
            types = signature(kernel, constants, tables | tensors, f"*{name}")
            cases.append(CompileCase(f"{kind} {name}", kernel, types, constants, _WARPS, num_stages=3))
    return cases
