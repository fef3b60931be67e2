"""Linear maps of the channels of all degrees: one launch forward and one backward, for inputs and weights.

    out_d[n, o, m] = sum_c W_d[o, c] x_d[n, c, m],   dx_d[n, c, m] = sum_o W_d[o, c] g_d[n, o, m],   dW_d = sum_{n, m} g_d x_d^T

x_d: [N, C_d, 2d+1], the channels of one or more parts side by side: a part is a tensor [N, C, 2d+1] for each degree, or one tensor
[N, heads, width] as the attention has it, in which a head has its share of the channels of the first degree, then of the second and
so on. Nothing is concatenated in memory: the sum over c walks over all parts. The output may be laid out per head, too, and a
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

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .precision import DTYPES, ROUNDINGS, TYPES, add_rounded_product, is_half, padded, product_constants, sum_dtype
from .resources import ArgumentType, CompileCase, signature

_WEIGHT_PROGRAMS = 512  # of a launch for dW, over all degrees and tiles: they fill a large GPU
_NUM_STAGES = 2


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
        total = add_rounded_product(
            x, tl.load(factors, mask=is_channel[:, None] & is_out[None], other=0.0), total, PRECISION, COMPUTE, OPERAND
        )  # fmt: skip
    return total


@triton.jit
def _map_degree(
    parts, weight, output, num_nodes,
    N: tl.constexpr, COMPONENTS: tl.constexpr, IN: tl.constexpr, ALL_IN: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTHS: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """The output of the Nth degree."""
    out = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_out = out < OUT
    first, node, component, is_row = _rows(tl.program_id(0), num_nodes, COMPONENTS, ROWS)
    if (first < num_nodes) & (tl.program_id(2) * BLOCK_OUT < OUT):
        total = tl.zeros((ROWS, BLOCK_OUT), SUM)
        for p in tl.static_range(len(parts)):
            if IN[p][N] > 0:
                total = _add_part(
                    parts[p][N], weight, total, first, node, component, is_row, out, is_out, IN[p][N], COMPONENTS, HEADS[p],
                    WIDTHS[p], ALL_IN, 1, BLOCK_IN, PRECISION, COMPUTE, OPERAND,
                )  # fmt: skip
            weight += IN[p][N]
        places = _places(output, first, node, component, out, OUT, COMPONENTS, HEADS_OUT, WIDTH_OUT)
        tl.store(places, total.to(output.dtype.element_ty), mask=is_row[:, None] & is_out[None])


@triton.jit
def _is_block_of(block, P: tl.constexpr, N: tl.constexpr, IN: tl.constexpr, BLOCK_IN: tl.constexpr):
    """Whether a block of channels of the Nth degree, counted from the first of the Pth part, is that part's.

    The first part has none before it, the last none behind: what need not be asked costs no registers.
    """
    return (P == 0 or block >= 0) and (len(IN) == P + 1 or block < (IN[P][N] + BLOCK_IN - 1) // BLOCK_IN)


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
    gradient, weight, results, num_nodes, block,
    N: tl.constexpr, COMPONENTS: tl.constexpr, IN: tl.constexpr, ALL_IN: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTHS: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """dx of the Nth degree; ``block`` counts the blocks of channels of all parts, one after the other."""
    for p in tl.static_range(len(results)):
        if IN[p][N] > 0 and _is_block_of(block, p, N, IN, BLOCK_IN):
            _transpose_part(
                gradient, weight, results[p][N], num_nodes, block, COMPONENTS, IN[p][N], ALL_IN, OUT, HEADS[p], HEADS_OUT,
                WIDTHS[p], WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip
        weight += IN[p][N]
        block -= (IN[p][N] + BLOCK_IN - 1) // BLOCK_IN


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
        total = add_rounded_product(tl.trans(g), x, total, PRECISION, COMPUTE, OPERAND)
    tl.store(row + (out[:, None] * ALL_IN + channel[None]), total, mask=is_out[:, None] & is_channel[None])


@triton.jit
def _weight_gradient_degree(
    gradient, parts, row, num_nodes, num_programs, out_block, block,
    N: tl.constexpr, COMPONENTS: tl.constexpr, IN: tl.constexpr, ALL_IN: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTHS: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """A tile of dW of the Nth degree; ``block`` as for :func:`_transpose_degree`."""
    if out_block * BLOCK_OUT < OUT:
        for p in tl.static_range(len(parts)):
            if IN[p][N] > 0 and _is_block_of(block, p, N, IN, BLOCK_IN):
                _weight_gradient_part(
                    gradient, parts[p][N], row, num_nodes, num_programs, out_block, block, COMPONENTS, IN[p][N], ALL_IN, OUT,
                    HEADS[p], HEADS_OUT, WIDTHS[p], WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
                )  # fmt: skip
            row += IN[p][N]
            block -= (IN[p][N] + BLOCK_IN - 1) // BLOCK_IN


@triton.jit(do_not_specialize=["num_nodes"])
def _forward_kernel(
    parts, weights, outputs, num_nodes,
    COMPONENTS: tl.constexpr, IN: tl.constexpr, ALL_IN: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTHS: tl.constexpr, WIDTH_OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(1)
    for n in tl.static_range(len(COMPONENTS)):
        if number == n:
            _map_degree(
                parts, weights[n], outputs[n], num_nodes, n, COMPONENTS[n], IN, ALL_IN[n], OUT[n], HEADS, HEADS_OUT, WIDTHS,
                WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
            )  # fmt: skip


@triton.jit(do_not_specialize=["num_nodes"])
def _backward_kernel(
    gradients, parts, weights, results, partial_sums, num_weights, num_nodes, input_blocks, num_programs,
    COMPONENTS: tl.constexpr, IN: tl.constexpr, ALL_IN: tl.constexpr, OUT: tl.constexpr, HEADS: tl.constexpr,
    HEADS_OUT: tl.constexpr, WIDTHS: tl.constexpr, WIDTH_OUT: tl.constexpr, IN_BLOCKS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, OPERAND: tl.constexpr,
    SUM: tl.constexpr,
):  # fmt: skip
    """Along the last axis of the grid come the blocks of input channels for dx, then the tiles of dW."""
    number, block = tl.program_id(1), tl.program_id(2)
    if block < input_blocks:
        for n in tl.static_range(len(COMPONENTS)):
            if number == n:
                _transpose_degree(
                    gradients[n], weights[n], results, num_nodes, block, n, COMPONENTS[n], IN, ALL_IN[n], OUT[n], HEADS,
                    HEADS_OUT, WIDTHS, WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT, PRECISION, COMPUTE, OPERAND, SUM,
                )  # fmt: skip
    elif tl.program_id(0) < num_programs:
        tile = block - input_blocks
        row = partial_sums + tl.program_id(0).to(tl.int64) * num_weights
        for n in tl.static_range(len(COMPONENTS)):
            if number == n:
                _weight_gradient_degree(
                    gradients[n], parts, row, num_nodes, num_programs, tile // IN_BLOCKS[n], tile % IN_BLOCKS[n], n,
                    COMPONENTS[n], IN, ALL_IN[n], OUT[n], HEADS, HEADS_OUT, WIDTHS, WIDTH_OUT, ROWS, BLOCK_IN, BLOCK_OUT,
                    PRECISION, COMPUTE, OPERAND, SUM,
                )  # fmt: skip
            row += ALL_IN[n] * OUT[n]


class Shape(NamedTuple):
    """What is multiplied by what.

    Attributes:
        components: 2d+1 of every degree.
        channels_in: for each part the channels of every degree; 0 where a part lacks a degree.
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
        parts: of the input, contiguous: the tensors of the degrees that a part has, or its one tensor.
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
        launch(_forward_kernel, grid,
            _of_parts(parts, shape), tuple(weights), _of_outputs(outputs, shape), num_nodes,
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
    if num_nodes == 0:
        return gradients[0].new_zeros(programs or 1, num_weights, dtype=sum_dtype(shape.dtype)), results
    tile = _choose_tile(shape)
    node_blocks, num_degrees = _node_blocks(num_nodes, shape, tile)
    in_blocks = _in_blocks(shape, tile)
    out_blocks = [_blocks(channels, tile.channels_out) for channels in shape.channels_out]
    tiles = max(out * columns for out, columns in zip(out_blocks, in_blocks, strict=True))
    input_blocks = max(in_blocks) if with_inputs else 0
    if programs is None:
        programs = min(node_blocks, max(1, _WEIGHT_PROGRAMS // (num_degrees * tiles)))
    partial_sums = gradients[0].new_empty(programs, num_weights, dtype=sum_dtype(shape.dtype))
    launch(_backward_kernel, (max(node_blocks, programs) if with_inputs else programs, num_degrees, input_blocks + tiles),
        _of_outputs(gradients, shape), _of_parts(parts, shape), tuple(weights), _of_parts(results or parts, shape),
        partial_sums, num_weights, num_nodes, input_blocks, programs,
        **_constants(shape, tile), IN_BLOCKS=in_blocks, num_warps=tile.warps, num_stages=_NUM_STAGES,
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
    rows, widest = (64, 32) if is_half(shape.dtype) else (32, 16 if shape.dtype == torch.float64 else 32)
    rows = max(rows, triton.next_power_of_2(max(shape.components)))
    largest_in = max(max(part) for part in shape.channels_in)
    return Tile(rows, padded(largest_in, widest), padded(max(shape.channels_out), widest), 4)


def _blocks(channels: int, block: int) -> int:
    return triton.cdiv(channels, block)


def _in_blocks(shape: Shape, tile: Tile) -> tuple[int, ...]:
    """Of every degree the blocks of input channels, of all parts."""
    by_degree = zip(*shape.channels_in, strict=True)
    return tuple(sum(_blocks(channels, tile.channels_in) for channels in of_degree) for of_degree in by_degree)


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


def _by_degree(tensors: Sequence[Tensor], components: Sequence[int], channels: Sequence[int], heads: int) -> tuple[Tensor, ...]:
    """Where each degree begins; any tensor for one that is not there."""
    if heads:
        starts = [_width(components[:number], channels[:number], heads) for number in range(len(components))]
        return tuple(tensors[0][..., start:] for start in starts)
    remaining = iter(tensors)
    return tuple(next(remaining) if count else tensors[0] for count in channels)


def _of_parts(parts: Sequence[Sequence[Tensor]], shape: Shape) -> tuple[tuple[Tensor, ...], ...]:
    """Of every part where each degree begins."""
    sizes = zip(parts, shape.channels_in, shape.heads_in, strict=True)
    return tuple(_by_degree(tensors, shape.components, channels, heads) for tensors, channels, heads in sizes)


def _of_outputs(tensors: Sequence[Tensor], shape: Shape) -> tuple[Tensor, ...]:
    """The same for the output."""
    return _by_degree(tensors, shape.components, shape.channels_out, shape.heads_out)


def _constants(shape: Shape, tile: Tile) -> dict[str, object]:
    """The constexpr arguments of both kernels."""
    parts = zip(shape.channels_in, shape.heads_in, strict=True)
    return {
        "COMPONENTS": shape.components,
        "IN": shape.channels_in,
        "ALL_IN": tuple(channels for _, channels in shape.weight_shapes),
        "OUT": shape.channels_out,
        "HEADS": shape.heads_in,
        "HEADS_OUT": shape.heads_out,
        "WIDTHS": tuple(_width(shape.components, channels, heads) for channels, heads in parts),
        "WIDTH_OUT": _width(shape.components, shape.channels_out, shape.heads_out),
        "ROWS": tile.rows,
        "BLOCK_IN": tile.channels_in,
        "BLOCK_OUT": tile.channels_out,
        "COMPUTE": TYPES[shape.dtype],
        **product_constants(shape.dtype),
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
    for workload, components, values, hidden, heads in (
        ("qm9", (1, 3, 5, 7), 16, 32, 8),
        ("protein_full", (1, 3), 8, 32, 4),
        ("protein_wide", (1, 3), 32, 128, 4),
    ):
        count = len(components)
        for name, dtype in DTYPES.items():
            shape = Shape(components, ((values,) * count, (hidden,) * count), (hidden,) * count, (heads, 0), 0, dtype)
            cases += _cases_of_layer(f"{workload} {name}", shape, name)
    return cases


def _cases_of_layer(name: str, shape: Shape, value_type: str) -> list[CompileCase]:
    tile = _choose_tile(shape)
    full_type = f"*{ROUNDINGS[value_type].sum_name}"
    by_degree: tuple[ArgumentType, ...] = (f"*{value_type}",) * len(shape.components)
    types: dict[str, ArgumentType] = dict.fromkeys(("num_weights", "num_nodes", "input_blocks", "num_programs"), "i32")
    types |= dict.fromkeys(("parts", "results"), (by_degree,) * len(shape.channels_in))
    types |= {"weights": (full_type,) * len(shape.components), "partial_sums": full_type}
    cases = []
    launches: tuple[tuple[str, object, dict[str, object]], ...] = (
        ("forward", _forward_kernel, {}),
        ("backward", _backward_kernel, {"IN_BLOCKS": _in_blocks(shape, tile)}),
    )
    for kind, kernel, others in launches:
        constants = _constants(shape, tile) | {"PRECISION": "ieee"} | others
        cases.append(
            CompileCase(
                name=f"{kind} {name}",
                kernel=kernel,
                signature=signature(kernel, constants, types, by_degree),
                constants=constants,
                num_warps=tile.warps,
                num_stages=_NUM_STAGES,
                targets=(80, 90, 100) if value_type == "fp64" else (),  # others have 1/64 of the float64 units, and spill
                expects_matrix_instructions=ROUNDINGS[value_type].uses_matrix_unit,
            )
        )
    return cases
