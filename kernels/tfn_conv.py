"""TFN convolution in edge-aligned frames, the radial weights generated on chip (DESIGN 1.1).

    x~ = D^T x[src],     y~[+m] = sum R_even[m] x~[+m] - R_odd[m] x~[-m],     y~[-m] = sum R_even[m] x~[-m] + R_odd[m] x~[+m]
    out = D y~,          R = W h

The rotations into the frames and out of them stand in ``frame_rotations.py``. Here are four kernels, driven by the same small
tables, so that every fuse level with all its orders is one launch:

    contract         R tile by tile on the matrix unit, used at once: h, x~ -> y~. Its transpose (W transposed, odd sign flipped) is
                     the backward pass to x~
    hidden_gradient  dh = dR W^T,   dR_even = g+ x+ + g- x-,   dR_odd = g- x+ - g+ x-
    weight_gradient  dW = h^T dR; a program owns a slice of W and walks over all edges: no atomics, a fixed order
    position_gradient  the torque identity (DESIGN 1.2) in the frames, G_a the generators of rotations and g~, gx~ the gradients
                     of y~ and x~:  t_a = <g~, G_a y~> - <gx~, G_a x~>,  dr = D_1 (-t_z, 0, t_x) / |r|;  the component of t along
                     the edge turns nothing, so that G_y is not needed

Orders m = 0 have neither odd weights nor a row of -m: a program reads in its table which kind it has, and takes one of two bodies.
What is heaviest stands first in the tables, so that light programs fill the end of a launch.

Aligned features are kept feature-major, [rows, E] with row = (degree, component, channel), so that the column of one feature over a
block of edges is contiguous, and rows begin on multiples of 16 edges (``feature_rows.py``); ``contract`` can also write them
edge-major, [E, rows], as attention in the frames and sums over the edges of a node read them.
Aligned weights are [.., C_in, K, C_out], the blocks of (m, parity, d_in, d_out) one after the other.

Cost per edge at 4 degrees, 32 channels, K = 32, forward: 2.9 MFLOP of matrix products and 0.15 MFLOP of multiply-adds; about 2 KB
read and written in half precision (x~, y~) and 64 bytes of h; every block of edges streams W (2.9 MB) from the second-level
cache, which bounds the kernel where blocks are small. Backward: three times the arithmetic. Gradient with respect to positions: 36
entries of generators of 32 channels, 5 kFLOP per edge and both sides, 4 kB read (g~, y~, gx~, x~): bound by memory.
``se3_fast.contraction.cost`` counts for any plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import table_fields as fields
from .edge_frames import tile_size, wigner_tile
from .launching import launch
from .precision import ROUNDINGS, Rounding, add_product, is_half, is_tf32, padded, product_constants, sum_type
from .resources import ArgumentType, CompileCase, signature

_GENERATOR_CHANNELS = 8  # channels side by side in a tile of the position gradient


class ContractionTable(NamedTuple):
    """Which products :func:`contract` sums, as int64 tables (``table_rows.py``).

    Attributes:
        items: :class:`Item` rows, one per output degree and order, heaviest first.
        terms: :class:`Term` rows, the inputs of the items, one after the other.
        channels: largest number of output channels.
        shared_channels: that of all items; 0 where they differ.
    """

    items: Tensor
    terms: Tensor
    channels: int
    shared_channels: int


class PairTable(NamedTuple):
    """The pairs of degrees at all orders, for the gradients of h and W.

    Attributes:
        pairs: :class:`PairRow` rows, those with m > 0 (of twice the work) and then those with m = 0, each by radial group.
        spans: :class:`Span` rows [groups * splits], the pairs that each program of :func:`hidden_gradient` takes.
        splits: how many programs share a radial group.
        channels_in: largest number of input channels.
        channels_out: largest number of output channels.
        shared_channels_out: that of all pairs; 0 where they differ.
    """

    pairs: Tensor
    spans: Tensor
    splits: int
    channels_in: int
    channels_out: int
    shared_channels_out: int


class GeneratorTable(NamedTuple):
    """The entries of the generators of rotations about x and z for all rows of y~ and x~.

    Attributes:
        entries: :class:`GeneratorEntry` rows: those of y~ about x, of y~ about z, of x~ about x and of x~ about z, one after the
            other.
        coefficients: [n] float64.
        bounds: where the second, third and fourth of these begin.
    """

    entries: Tensor
    coefficients: Tensor
    bounds: tuple[int, int, int]


@triton.jit
def _store_rows(outputs, row, edge, values, is_value, row_step, edge_step):
    tl.store(outputs + row[None] * row_step + edge[:, None] * edge_step, values.to(outputs.dtype.element_ty), mask=is_value)


@triton.jit
def _load_inputs(first_x, other_x, is_edge, i, channels_in, HAS_ODD: tl.constexpr):
    """x~+ and x~- of input channel i or, at m = 0, x~ of the channels i and i + 1, [BLOCK_EDGES] each; 0 past the last channel."""
    is_first = tl.where(i < channels_in, is_edge, False)
    is_other = is_first if HAS_ODD else tl.where(i + 1 < channels_in, is_edge, False)
    return tl.load(first_x, mask=is_first, other=0.0), tl.load(other_x, mask=is_other, other=0.0)


@triton.jit
def _contract_item(
    inputs, hidden, weights, outputs, item, terms, num_edges, pitch, row_step, edge_step,
    HAS_ODD: tl.constexpr, ODD_SIGN: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    is_edge = edge < num_edges
    first, stop = tl.load(item + fields.ITEM_FIRST), tl.load(item + fields.ITEM_STOP)
    row_plus, row_minus = tl.load(item + fields.ITEM_PLUS), tl.load(item + fields.ITEM_MINUS)
    channels_out = CHANNELS if CHANNELS > 0 else tl.load(item + fields.ITEM_CHANNELS)
    # Two products side by side: of the even and the odd weights of an input channel or, at m = 0, of the weights of two.
    side = tl.arange(0, 2 * BLOCK_CHANNELS) // BLOCK_CHANNELS
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, 2 * BLOCK_CHANNELS) % BLOCK_CHANNELS
    unit = tl.arange(0, WIDTH)
    plus = tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), SUM)
    minus = tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), SUM)
    nothing = tl.zeros((BLOCK_EDGES, 2 * BLOCK_CHANNELS), SUM)
    for index in range(first, stop):
        term = terms + index * fields.TERM_FIELDS
        group, in_plus, in_minus = (
            tl.load(term + fields.TERM_GROUP),
            tl.load(term + fields.TERM_PLUS),
            tl.load(term + fields.TERM_MINUS),
        )
        channels_in = tl.load(term + fields.TERM_CHANNELS).to(tl.int32)
        even = tl.multiple_of(tl.load(term + fields.TERM_EVEN), 16)
        odd = tl.multiple_of(tl.load(term + fields.TERM_ODD), 16)
        h = tl.load(hidden + (group * num_edges + edge)[:, None] * WIDTH + unit[None], mask=is_edge[:, None], other=0.0)
        step = odd - even if HAS_ODD else WIDTH * channels_out
        tile = weights + even + unit[:, None] * channels_out + (channel + side * step)[None]  # [WIDTH, 2 BLOCK_CHANNELS]
        first_x = inputs + in_plus * pitch + edge
        other_x = first_x + ((in_minus - in_plus) * pitch if HAS_ODD else pitch)
        # x~ of the next step is asked for before this step's products.
        x, x_other = _load_inputs(first_x, other_x, is_edge, 0, channels_in, HAS_ODD)
        for i in range(0, channels_in, 1 if HAS_ODD else 2):
            x_first, x_second = x.to(SUM)[:, None], x_other.to(SUM)[:, None]
            first_x += pitch if HAS_ODD else 2 * pitch
            other_x += pitch if HAS_ODD else 2 * pitch
            x, x_other = _load_inputs(first_x, other_x, is_edge, i + (1 if HAS_ODD else 2), channels_in, HAS_ODD)
            is_weight = channel < channels_out if HAS_ODD else (channel < channels_out) & (i + side < channels_in)
            radial = add_product(h, tl.load(tile, mask=is_weight[None], other=0.0), nothing, PRECISION, OPERAND)
            of_first, of_second = tl.split(tl.permute(tl.reshape(radial, (BLOCK_EDGES, 2, BLOCK_CHANNELS)), (0, 2, 1)))
            plus += of_first * x_first
            if HAS_ODD:
                minus += of_first * x_second
                of_second *= ODD_SIGN
                plus -= of_second * x_second
                minus += of_second * x_first
            else:
                plus += of_second * x_second
            tile += (1 if HAS_ODD else 2) * WIDTH * channels_out
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_value = is_edge[:, None] & (channel < channels_out)[None]
    _store_rows(outputs, row_plus + channel, edge, plus, is_value, row_step, edge_step)
    if HAS_ODD:
        _store_rows(outputs, row_minus + channel, edge, minus, is_value, row_step, edge_step)


@triton.jit(do_not_specialize=["num_edges"])
def _contract_kernel(
    inputs, hidden, weights, outputs, items, terms, num_edges, pitch, row_step, edge_step,
    ODD_SIGN: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    item = items + tl.program_id(1) * fields.ITEM_FIELDS
    if tl.load(item + fields.ITEM_HAS_ODD) == 0:
        _contract_item(
            inputs, hidden, weights, outputs, item, terms, num_edges, pitch, row_step, edge_step,
            False, ODD_SIGN, CHANNELS, WIDTH, BLOCK_EDGES, BLOCK_CHANNELS, PRECISION, SUM, OPERAND,
        )  # fmt: skip
    else:
        _contract_item(
            inputs, hidden, weights, outputs, item, terms, num_edges, pitch, row_step, edge_step,
            True, ODD_SIGN, CHANNELS, WIDTH, BLOCK_EDGES, BLOCK_CHANNELS, PRECISION, SUM, OPERAND,
        )  # fmt: skip


@triton.jit
def _as_left_operand(g, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr):
    """g [edges, BLOCK_CHANNELS] as it is; in half precision, as a product with the identity, in those registers where the matrix
    unit reads its left operand: what is made of it need not go through shared memory."""
    if g.dtype.primitive_bitwidth == 16:
        is_diagonal = tl.arange(0, BLOCK_CHANNELS)[:, None] == tl.arange(0, BLOCK_CHANNELS)[None]
        nothing = tl.zeros((g.shape[0], BLOCK_CHANNELS), SUM)
        g = add_product(g, tl.where(is_diagonal, 1.0, 0.0).to(g.dtype), nothing, PRECISION, OPERAND).to(g.dtype)
    return g


@triton.jit
def _add_hidden_gradient(
    total, inputs, gradient, weights, pairs, first, stop, edge, is_edge, pitch,
    HAS_ODD: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """The total and dh of the pairs from ``first`` up to ``stop``, [BLOCK_EDGES, WIDTH]."""
    unit = tl.arange(0, WIDTH)
    for index in range(first, stop):
        pair = pairs + index * fields.PAIR_FIELDS
        in_plus, in_minus = tl.load(pair + fields.PAIR_IN_PLUS), tl.load(pair + fields.PAIR_IN_MINUS)
        out_plus, out_minus = tl.load(pair + fields.PAIR_OUT_PLUS), tl.load(pair + fields.PAIR_OUT_MINUS)
        channels_in = tl.load(pair + fields.PAIR_CHANNELS_IN).to(tl.int32)
        channels_out = CHANNELS if CHANNELS > 0 else tl.load(pair + fields.PAIR_CHANNELS_OUT)
        even = tl.multiple_of(tl.load(pair + fields.PAIR_EVEN), 16)
        odd = tl.multiple_of(tl.load(pair + fields.PAIR_ODD), 16)
        for start in range(0, channels_out, BLOCK_CHANNELS):
            channel = start + tl.arange(0, BLOCK_CHANNELS)
            is_channel = channel < channels_out
            is_value = is_edge[:, None] & is_channel[None]
            tile = unit[None] * channels_out + channel[:, None]  # [BLOCK_CHANNELS, WIDTH]: W transposed
            g_plus = tl.load(gradient + (out_plus + channel)[None] * pitch + edge[:, None], mask=is_value, other=0.0)
            g_minus = g_plus
            if HAS_ODD:
                g_minus = tl.load(gradient + (out_minus + channel)[None] * pitch + edge[:, None], mask=is_value, other=0.0)
            g_plus = _as_left_operand(g_plus, BLOCK_CHANNELS, PRECISION, SUM, OPERAND)
            g_minus = _as_left_operand(g_minus, BLOCK_CHANNELS, PRECISION, SUM, OPERAND)
            place_plus, place_minus = inputs + in_plus * pitch + edge, inputs + in_minus * pitch + edge
            place = weights + even + tile
            next_plus = tl.load(place_plus, mask=is_edge, other=0.0)
            next_minus = next_plus
            if HAS_ODD:
                next_minus = tl.load(place_minus, mask=is_edge, other=0.0)
            for i in range(channels_in):
                x_plus, x_minus = next_plus.to(SUM)[:, None], next_minus.to(SUM)[:, None]
                is_next = tl.where(i + 1 < channels_in, is_edge, False)
                place_plus += pitch
                next_plus = tl.load(place_plus, mask=is_next, other=0.0)
                if HAS_ODD:
                    place_minus += pitch
                    next_minus = tl.load(place_minus, mask=is_next, other=0.0)
                weight = tl.load(place, mask=is_channel[:, None], other=0.0)
                radial = g_plus.to(SUM) * x_plus  # dR_even
                if HAS_ODD:
                    radial += g_minus.to(SUM) * x_minus
                total = add_product(radial.to(weight.dtype), weight, total, PRECISION, OPERAND)
                if HAS_ODD:
                    radial = g_minus.to(SUM) * x_plus - g_plus.to(SUM) * x_minus  # dR_odd
                    weight = tl.load(place + (odd - even), mask=is_channel[:, None], other=0.0)
                    total = add_product(radial.to(weight.dtype), weight, total, PRECISION, OPERAND)
                place += WIDTH * channels_out
    return total


@triton.jit(do_not_specialize=["num_edges", "splits"])
def _hidden_gradient_kernel(
    inputs, gradient, weights, partial, pairs, spans, num_edges, pitch, splits, num_groups,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_EDGES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    is_edge = edge < num_edges
    group, split = tl.program_id(1) // splits, tl.program_id(1) % splits
    span = spans + tl.program_id(1) * fields.SPAN_FIELDS
    total = tl.zeros((BLOCK_EDGES, WIDTH), SUM)
    # A loop for each kind, not one loop with a branch that the sums would have to cross; m = 0 first: else it spills on sm_100.
    total = _add_hidden_gradient(
        total, inputs, gradient, weights, pairs,
        tl.load(span + fields.SPAN_FIRST_EVEN), tl.load(span + fields.SPAN_STOP_EVEN), edge, is_edge, pitch,
        False, CHANNELS, WIDTH, BLOCK_CHANNELS, PRECISION, SUM, OPERAND,
    )  # fmt: skip
    total = _add_hidden_gradient(
        total, inputs, gradient, weights, pairs,
        tl.load(span + fields.SPAN_FIRST_ODD), tl.load(span + fields.SPAN_STOP_ODD), edge, is_edge, pitch,
        True, CHANNELS, WIDTH, BLOCK_CHANNELS, PRECISION, SUM, OPERAND,
    )  # fmt: skip
    place = (split * num_groups + group).to(tl.int64) * num_edges + edge
    unit = tl.arange(0, WIDTH)
    tl.store(partial + place[:, None] * WIDTH + unit[None], total.to(partial.dtype.element_ty), mask=is_edge[:, None])


@triton.jit
def _weight_gradient_slice(
    inputs, gradient, hidden, weight_gradient, pair, num_edges, pitch,
    HAS_ODD: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_EDGES: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    group, in_plus, in_minus = (
        tl.load(pair + fields.PAIR_GROUP),
        tl.load(pair + fields.PAIR_IN_PLUS),
        tl.load(pair + fields.PAIR_IN_MINUS),
    )
    out_plus, out_minus = tl.load(pair + fields.PAIR_OUT_PLUS), tl.load(pair + fields.PAIR_OUT_MINUS)
    channels_in = tl.load(pair + fields.PAIR_CHANNELS_IN).to(tl.int32)
    channels_out = CHANNELS if CHANNELS > 0 else tl.load(pair + fields.PAIR_CHANNELS_OUT).to(tl.int32)
    even, odd = tl.load(pair + fields.PAIR_EVEN), tl.load(pair + fields.PAIR_ODD)
    # The products of h and x~ times g~: rounding g~ x~ instead would lose the smallest gradients. At m > 0 the columns are those of
    # g+ and then those of g-.
    columns: tl.constexpr = 2 * BLOCK_OUT if HAS_ODD else BLOCK_OUT
    rows: tl.constexpr = BLOCK_IN * WIDTH  # one of a tile per input channel and unit
    unit, column = tl.arange(0, WIDTH), tl.arange(0, columns)
    channel_in = tl.program_id(0) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    channel_out = tl.program_id(1) * BLOCK_OUT + column % BLOCK_OUT
    from_x = inputs + (in_plus + tl.minimum(channel_in, channels_in - 1))[None] * pitch  # past the last channel nothing is stored
    from_g = gradient + (out_plus + tl.minimum(channel_out, channels_out - 1))[None] * pitch
    if HAS_ODD:
        from_g += (column // BLOCK_OUT)[None] * ((out_minus - out_plus) * pitch)
    row_in_block = tl.arange(0, BLOCK_EDGES)[:, None]
    from_h = hidden + group * num_edges * WIDTH + row_in_block * WIDTH + unit[None]
    plus = tl.zeros((rows, columns), SUM)
    minus = tl.zeros((rows, columns), SUM)
    for start in range(0, num_edges, BLOCK_EDGES):
        edge = start + row_in_block
        is_row = edge < pitch
        h = tl.load(from_h + tl.cast(start, tl.int64) * WIDTH, mask=edge < num_edges, other=0.0)[:, None]
        g = tl.load(from_g + edge, mask=is_row, other=0.0)  # [edges, columns]
        x = tl.load(from_x + edge, mask=is_row, other=0.0)[:, :, None]
        product = tl.reshape((h.to(SUM) * x.to(SUM)).to(g.dtype), (BLOCK_EDGES, rows))
        plus = add_product(tl.trans(product), g, plus, PRECISION, OPERAND)
        if HAS_ODD:
            x = tl.load(from_x + ((in_minus - in_plus) * pitch + edge), mask=is_row, other=0.0)[:, :, None]
            product = tl.reshape((h.to(SUM) * x.to(SUM)).to(g.dtype), (BLOCK_EDGES, rows))
            minus = add_product(tl.trans(product), g, minus, PRECISION, OPERAND)
    row = tl.arange(0, rows)
    channel_in = tl.program_id(0) * BLOCK_IN + row // WIDTH
    channel_out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    is_value = (channel_in < channels_in)[:, None] & (channel_out < channels_out)[None]
    place = weight_gradient + (channel_in * WIDTH + row % WIDTH)[:, None] * channels_out + channel_out[None]
    if HAS_ODD:
        plus_plus, plus_minus = tl.split(tl.permute(tl.reshape(plus, (rows, 2, BLOCK_OUT)), (0, 2, 1)))
        minus_plus, minus_minus = tl.split(tl.permute(tl.reshape(minus, (rows, 2, BLOCK_OUT)), (0, 2, 1)))
        tl.store(place + even, (plus_plus + minus_minus).to(weight_gradient.dtype.element_ty), mask=is_value)
        tl.store(place + odd, (plus_minus - minus_plus).to(weight_gradient.dtype.element_ty), mask=is_value)
    else:
        tl.store(place + even, plus.to(weight_gradient.dtype.element_ty), mask=is_value)


@triton.jit(do_not_specialize=["num_edges"])
def _weight_gradient_kernel(
    inputs, gradient, hidden, weight_gradient, pairs, num_edges, pitch,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_EDGES: tl.constexpr, BLOCK_IN: tl.constexpr, BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr, SUM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    pair = pairs + tl.program_id(2) * fields.PAIR_FIELDS
    if tl.load(pair + fields.PAIR_HAS_ODD) == 0:
        _weight_gradient_slice(
            inputs, gradient, hidden, weight_gradient, pair, num_edges, pitch,
            False, CHANNELS, WIDTH, BLOCK_EDGES, BLOCK_IN, BLOCK_OUT, PRECISION, SUM, OPERAND,
        )  # fmt: skip
    else:
        _weight_gradient_slice(
            inputs, gradient, hidden, weight_gradient, pair, num_edges, pitch,
            True, CHANNELS, WIDTH, BLOCK_EDGES, BLOCK_IN, BLOCK_OUT, PRECISION, SUM, OPERAND,
        )  # fmt: skip


@triton.jit
def _generator_overlap(
    left, right, entries, coefficients, first, stop, edge, is_edge, row_step, edge_step, pitch,
    BLOCK_EDGES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """The sum over some entries of the generators and all channels of left * entry * right, [BLOCK_EDGES]."""
    total = tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), SUM)
    for index in range(first, stop):
        entry = entries + index * fields.ENTRY_FIELDS
        left_row, right_row, channels = (
            tl.load(entry + fields.ENTRY_LEFT),
            tl.load(entry + fields.ENTRY_RIGHT),
            tl.load(entry + fields.ENTRY_CHANNELS),
        )
        coefficient = tl.load(coefficients + index).to(SUM)
        for start in range(0, channels, BLOCK_CHANNELS):
            channel = start + tl.arange(0, BLOCK_CHANNELS)
            is_value = is_edge[:, None] & (channel < channels)[None]
            left_values = tl.load(
                left + (left_row + channel)[None] * row_step + edge[:, None] * edge_step, mask=is_value, other=0.0
            )
            right_values = tl.load(right + (right_row + channel)[None] * pitch + edge[:, None], mask=is_value, other=0.0)
            total += coefficient * left_values.to(SUM) * right_values.to(SUM)
    return tl.sum(total, 1)


@triton.jit(do_not_specialize=["num_edges"])
def _position_gradient_kernel(
    gradient, outputs, input_gradient, inputs, entries, coefficients, rel_pos, angles, table, result,
    num_edges, pitch, row_step, edge_step, outputs_about_z, inputs_about_x, inputs_about_z, num_entries,
    BLOCK_EDGES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    edge = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    is_edge = edge < num_edges
    about_x = _generator_overlap(
        gradient, outputs, entries, coefficients, 0, outputs_about_z, edge, is_edge, pitch, 1, pitch,
        BLOCK_EDGES, BLOCK_CHANNELS, SUM,
    )  # fmt: skip
    about_z = _generator_overlap(
        gradient, outputs, entries, coefficients, outputs_about_z, inputs_about_x, edge, is_edge, pitch, 1, pitch,
        BLOCK_EDGES, BLOCK_CHANNELS, SUM,
    )  # fmt: skip
    about_x -= _generator_overlap(
        input_gradient, inputs, entries, coefficients, inputs_about_x, inputs_about_z, edge, is_edge, row_step, edge_step, pitch,
        BLOCK_EDGES, BLOCK_CHANNELS, SUM,
    )  # fmt: skip
    about_z -= _generator_overlap(
        input_gradient, inputs, entries, coefficients, inputs_about_z, num_entries, edge, is_edge, row_step, edge_step, pitch,
        BLOCK_EDGES, BLOCK_CHANNELS, SUM,
    )  # fmt: skip
    x = tl.load(rel_pos + 3 * edge, mask=is_edge, other=0.0).to(SUM)
    y = tl.load(rel_pos + 3 * edge + 1, mask=is_edge, other=0.0).to(SUM)
    z = tl.load(rel_pos + 3 * edge + 2, mask=is_edge, other=0.0).to(SUM)
    # Scaled by the largest component, so that squares neither overflow nor vanish.
    largest = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z))
    scale = tl.where(largest > 0, largest, 1.0)
    x, y, z = x / scale, y / scale, z / scale
    length = tl.where(largest > 0, scale * tl.sqrt(x * x + y * y + z * z), 1.0)
    block = wigner_tile(angles, table, edge, is_edge, num_edges, 1, 4, BLOCK_EDGES)  # zero where an edge has no direction
    component = tl.arange(0, 4)
    across = tl.where(component == 0, 1.0, 0.0).to(SUM)[None] * (-about_z / length)[:, None]
    across += tl.where(component == 2, 1.0, 0.0).to(SUM)[None] * (about_x / length)[:, None]
    turned = tl.sum(block * across[:, None, :], 2)
    is_value = is_edge[:, None] & (component < 3)[None]
    tl.store(result + 3 * edge[:, None] + component[None], turned.to(result.dtype.element_ty), mask=is_value)


def contract(
    inputs: Tensor, hidden: Tensor, weights: Tensor, table: ContractionTable, is_transposed: bool, outputs: Tensor
) -> None:
    """y~ = R(h) x~ in the frames, or its transpose.

    Args:
        inputs: [rows, E] aligned features (:mod:`se3_fast.kernels.feature_rows`, as in all that follows).
        hidden: [groups, E, K] h of each radial group, K a power of two from 16 on.
        weights: aligned weights in a row, [.., C_in, K, C_out]; for the transpose with both channel axes exchanged.
        table: what to sum.
        is_transposed: the transpose, whose odd terms have the other sign.
        outputs: [rows, E], the edges of a row side by side in memory or the rows of an edge; every row of every item is written.
    """
    num_edges = inputs.shape[1]
    if num_edges > 0:
        is_edge_major = outputs.stride(1) != 1
        tile = _contraction_tile(inputs.dtype, table.channels, is_edge_major or is_tf32(inputs.dtype))
        grid = (triton.cdiv(num_edges, tile.edges), len(table.items), triton.cdiv(table.channels, tile.channels))
        launch(_contract_kernel, grid,
            inputs, hidden, weights, outputs, table.items, table.terms, num_edges, inputs.stride(0), *outputs.stride(),
            ODD_SIGN=-1.0 if is_transposed else 1.0, CHANNELS=table.shared_channels, WIDTH=hidden.shape[2],
            BLOCK_EDGES=tile.edges, BLOCK_CHANNELS=tile.channels, **product_constants(inputs.dtype), num_warps=tile.warps,
        )  # fmt: skip


def hidden_gradient(
    inputs: Tensor, gradient: Tensor, weights: Tensor, table: PairTable, num_groups: int, width: int, dtype: torch.dtype
) -> Tensor:
    """dh of every radial group, as the partial sums of the programs that share one.

    Args:
        inputs: [rows, E] x~.
        gradient: [rows, E] gradient of y~.
        weights: aligned weights in a row.
        table: the pairs.
        num_groups: number of radial groups.
        width: K.
        dtype: that of the result; the sums themselves are float32 or float64.

    Returns:
        [splits, groups, E, K], whose sum over the splits is dh.
    """
    num_edges = inputs.shape[1]
    partial = torch.empty(table.splits, num_groups, num_edges, width, dtype=dtype, device=inputs.device)
    if num_edges > 0:
        tile = _hidden_gradient_tile(inputs.dtype, table.channels_out, is_tf32(inputs.dtype))
        launch(_hidden_gradient_kernel, (triton.cdiv(num_edges, tile.edges), num_groups * table.splits),
            inputs, gradient, weights, partial, table.pairs, table.spans, num_edges, inputs.stride(0), table.splits, num_groups,
            CHANNELS=table.shared_channels_out, WIDTH=width, BLOCK_EDGES=tile.edges, BLOCK_CHANNELS=tile.channels,
            **product_constants(inputs.dtype), num_warps=tile.warps,
        )  # fmt: skip
    return partial


def weight_gradient(inputs: Tensor, gradient: Tensor, hidden: Tensor, table: PairTable, num_weights: int) -> Tensor:
    """dW of the aligned weights.

    Args:
        inputs: [rows, E] x~.
        gradient: [rows, E] gradient of y~.
        hidden: [groups, E, K].
        table: the pairs.
        num_weights: length of the row of aligned weights.

    Returns:
        [num_weights] in the dtype of ``inputs``; summed in float32 or float64.
    """
    result = inputs.new_empty(num_weights)
    tile, block_in = _weight_gradient_tile(inputs.dtype, table.channels_out)
    # The pairs last: programs start by the first number fastest, those of the heaviest pairs are to start first.
    grid = (triton.cdiv(table.channels_in, block_in), triton.cdiv(table.channels_out, tile.channels), len(table.pairs))
    launch(_weight_gradient_kernel, grid,
        inputs, gradient, hidden, result, table.pairs, inputs.shape[1], inputs.stride(0),
        CHANNELS=table.shared_channels_out, WIDTH=hidden.shape[2],
        BLOCK_EDGES=tile.edges, BLOCK_IN=block_in, BLOCK_OUT=tile.channels,
        **product_constants(inputs.dtype), num_warps=tile.warps,
    )  # fmt: skip
    return result


def position_gradient(
    gradient: Tensor,
    outputs: Tensor,
    input_gradient: Tensor,
    inputs: Tensor,
    generators: GeneratorTable,
    rel_pos: Tensor,
    angles: Tensor,
    table: Tensor,
) -> Tensor:
    """The gradient with respect to positions through the directions, by the torque on every edge.

    Args:
        gradient: [rows, E] gradient of y~.
        outputs: [rows, E] y~.
        input_gradient: [rows, E] gradient of x~ (by source: of the columns of the Wigner blocks).
        inputs: [rows, E] x~ (by source: those columns).
        generators: what to sum.
        rel_pos: [E, 3] relative positions.
        angles: [4, E].
        table: Wigner table of degree 1.

    Returns:
        [E, 3] in the dtype of ``rel_pos``; 0 where an edge has no direction.
    """
    result = torch.empty_like(rel_pos, memory_format=torch.contiguous_format)
    num_edges = len(rel_pos)
    if num_edges > 0:
        block = 64
        launch(_position_gradient_kernel, (triton.cdiv(num_edges, block),),
            gradient, outputs, input_gradient, inputs, generators.entries, generators.coefficients, rel_pos.contiguous(), angles,
            table, result, num_edges, inputs.stride(0), *input_gradient.stride(), *generators.bounds, len(generators.entries),
            BLOCK_EDGES=block, BLOCK_CHANNELS=_GENERATOR_CHANNELS, SUM=sum_type(angles.dtype),
        )  # fmt: skip
    return result


class ContractionTile(NamedTuple):
    """Edges and channels of a program's tile, and its warps."""

    edges: int
    channels: int
    warps: int


def rotation_block(degree: int) -> int:
    """Edges of a rotation program: about six tiles of SIZE^2 values per edge are live, 8 registers a thread each."""
    return max(1024 // tile_size(degree) ** 2, 4) if degree > 0 else 128


def _contraction_tile(dtype: torch.dtype, channels: int, is_tall: bool) -> ContractionTile:
    """The tile of :func:`contract`; four tiles are live (two sums, two products).

    Half precision: 128 edges feed two warp groups' matrix instructions and halve the traffic of W; at 8 warps nothing spills. Full
    precision multiplies on the ordinary cores, whose operands sit in registers: 32 edges, and half of both in float64. Edge-major
    or with TF32 (``is_tall``), float32 would spill at 32 edges and 4 warps with more than 16 channels, but not at twice of both.
    Channels are padded to at least 16.
    """
    if is_half(dtype):
        return ContractionTile(128, padded(channels, 32), 8)
    if dtype == torch.float32:
        edges, warps = (64, 8) if is_tall and channels > 16 else (32, 4)
        return ContractionTile(edges, padded(channels, 32), warps)
    return ContractionTile(16, 16, 4)


def _hidden_gradient_tile(dtype: torch.dtype, channels: int, has_tf32: bool) -> ContractionTile:
    """The tile of :func:`hidden_gradient`: two gradient tiles stay in registers for all input channels of a pair.

    64 edges where the matrix unit has a product wide enough; 32 otherwise, where more would spill, as would 32 channels in float32
    where there are more of them, or 4 warps. With TF32 and 16 channels it is 32 edges by 4 warps that spill on sm_90, and not twice
    of both.
    """
    is_narrow = dtype == torch.float32 and channels > 32
    width = padded(channels, 16 if is_narrow or dtype == torch.float64 else 32)
    if width == 16 and (has_tf32 or is_narrow):
        return ContractionTile(64 if has_tf32 else 32, width, 8)
    return ContractionTile(64 if is_half(dtype) and width == 32 else 32, width, 4)


def _weight_gradient_tile(dtype: torch.dtype, channels: int) -> tuple[ContractionTile, int]:
    """The tile of :func:`weight_gradient`, and how many input channels it takes side by side.

    The more input channels, the fewer programs read h and the gradients again: 4 in half precision, where the matrix unit keeps the
    operands out of the registers; elsewhere 1.
    """
    if is_half(dtype):
        return ContractionTile(128, padded(channels, 32), 8), 4
    return ContractionTile(16, padded(channels, 32 if dtype == torch.float32 else 16), 4), 1


def compile_cases() -> list[CompileCase]:
    """Every kernel at the launches of the workloads, by workload and rounding."""
    cases = []
    for workload, channels in (("qm9", 32), ("protein_full", 16), ("protein_wide", 64)):
        for name in ROUNDINGS:
            cases += _product_cases(workload, name, channels)
            if name != "tf32":  # which rounds products only
                cases.append(_position_gradient_case(workload, name))
    return cases


def _product_cases(workload: str, name: str, channels: int) -> list[CompileCase]:
    rounding = ROUNDINGS[name]
    dtype = rounding.dtype
    hidden = _hidden_gradient_tile(dtype, channels, rounding.precision == "tf32")
    weight, block_in = _weight_gradient_tile(dtype, channels)
    launches: list[tuple[str, Any, Mapping[str, object], ContractionTile]] = []
    for kind, is_edge_major in (("contract", False), ("contract edge-major", True)):
        tile = _contraction_tile(dtype, channels, is_edge_major or rounding.precision == "tf32")
        contracted = {"ODD_SIGN": 1.0, "CHANNELS": channels, "BLOCK_EDGES": tile.edges, "BLOCK_CHANNELS": tile.channels}
        contracted["row_step" if is_edge_major else "edge_step"] = 1
        launches.append((kind, _contract_kernel, contracted, tile))
    hidden_shape = {"CHANNELS": channels, "BLOCK_EDGES": hidden.edges, "BLOCK_CHANNELS": hidden.channels}
    weight_shape = {"CHANNELS": channels, "BLOCK_EDGES": weight.edges, "BLOCK_IN": block_in, "BLOCK_OUT": weight.channels}
    launches += [
        ("hidden_gradient", _hidden_gradient_kernel, hidden_shape, hidden),
        ("weight_gradient", _weight_gradient_kernel, weight_shape, weight),
    ]
    cases = []
    for kind, kernel, shape, tile in launches:
        constants = {"WIDTH": 32, **rounding.product_constants(), **shape}
        cases.append(
            CompileCase(
                name=f"{kind} {workload} {name}",
                kernel=kernel,
                signature=signature(kernel, constants, argument_types(rounding), f"*{rounding.type_name}"),
                constants=constants,
                num_warps=tile.warps,
                num_stages=3,
                expects_matrix_instructions=rounding.uses_matrix_unit,
                multiples_of_16=tuple(step for step in _STEPS if step in kernel.arg_names and step not in constants),
            )
        )
    return cases


def _position_gradient_case(workload: str, name: str) -> CompileCase:
    rounding = ROUNDINGS[name]
    sums = rounding.product_constants()["SUM"]
    constants = {"row_step": 1, "BLOCK_EDGES": 64, "BLOCK_CHANNELS": _GENERATOR_CHANNELS, "SUM": sums}
    types = signature(_position_gradient_kernel, constants, argument_types(rounding), f"*{rounding.type_name}")
    steps = ("pitch", "edge_step")
    return CompileCase(
        f"position_gradient {workload} {name}", _position_gradient_kernel, types, constants, 4, 3, multiples_of_16=steps
    )


_STEPS = ("pitch", "row_step", "edge_step")
_TABLES = ("entries", "index", "items", "offsets", "order", "pairs", "spans", "terms")
_SUMS = ("angles", "partial", "rel_pos", "result", "table")
_SIZES = (
    *("num_edges", "pitch", "row_step", "edge_step", "num_entries", "num_groups", "row", "splits"),
    *("inputs_about_x", "inputs_about_z", "outputs_about_z"),
)


def argument_types(rounding: Rounding) -> dict[str, ArgumentType]:
    """Types of the arguments of the kernels that are not feature values: tables, sums and what has their type, sizes."""
    types: dict[str, ArgumentType] = dict.fromkeys(_TABLES, "*i64")
    return types | dict.fromkeys(_SUMS, f"*{rounding.sum_name}") | dict.fromkeys(_SIZES, "i32") | {"coefficients": "*fp64"}
