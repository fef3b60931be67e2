"""The rows of the int64 tables that tell kernels what to do, field by field: who writes a table and who reads it share these names.

A kernel reads field f of row r at ``table + r * <number of fields> + <number of f>``; :func:`field_numbers` has the numbers.
"""

from __future__ import annotations

from typing import NamedTuple


class Item(NamedTuple):
    """What a program of a contraction writes: a degree at an order m.

    Attributes:
        first: first of its terms, or pairs.
        stop: one past the last.
        plus: row of +m that is written.
        minus: row of -m.
        channels: how many rows there are of each.
        has_odd: 1 for m > 0, which has odd weights and a row of -m.
    """

    first: int
    stop: int
    plus: int
    minus: int
    channels: int
    has_odd: int


class Term(NamedTuple):
    """What an item sums: another degree at the same order.

    Attributes:
        group: radial group.
        plus: row of +m that is read.
        minus: row of -m.
        channels: how many rows there are of each.
        even: offset of the even weights.
        odd: offset of the odd weights.
    """

    group: int
    plus: int
    minus: int
    channels: int
    even: int
    odd: int


class PairRow(NamedTuple):
    """A pair of degrees at an order m, for the gradients of h and W.

    Attributes:
        group: radial group.
        in_plus: input row of +m.
        in_minus: input row of -m.
        out_plus: output row of +m.
        out_minus: output row of -m.
        channels_in: input channels.
        channels_out: output channels.
        even: offset of the even weights.
        odd: offset of the odd weights.
        has_odd: 1 for m > 0.
    """

    group: int
    in_plus: int
    in_minus: int
    out_plus: int
    out_minus: int
    channels_in: int
    channels_out: int
    even: int
    odd: int
    has_odd: int


class Span(NamedTuple):
    """The pairs that a program takes: those with m = 0 and those with m > 0, from the first to one past the last."""

    first_even: int
    stop_even: int
    first_odd: int
    stop_odd: int


class SourcePairRow(NamedTuple):
    """A pair of degrees at an order m, contracted by source node.

    Attributes:
        group: radial group.
        frame_plus: row of the Wigner block's column of +m.
        frame_minus: that of -m.
        components: 2d+1 of the input degree.
        start: where the input degree's part of a node's T begins, in values of a node.
        length: values of that part for each component.
        step: from a hidden unit k to k + 1.
        out_plus: output row of +m.
        out_minus: output row of -m.
        channels: output channels.
        even: offset of the even columns.
        odd: offset of the odd columns.
    """

    group: int
    frame_plus: int
    frame_minus: int
    components: int
    start: int
    length: int
    step: int
    out_plus: int
    out_minus: int
    channels: int
    even: int
    odd: int


class GeneratorEntry(NamedTuple):
    """An entry of a generator of rotations: the rows of the first channels on both sides, and the channels."""

    left: int
    right: int
    channels: int


class GradientParts(NamedTuple):
    """Where the gradient of h of a radial group is, which comes in parts.

    Attributes:
        first: the first part.
        count: how many there are.
        step: from one part to the next.
    """

    first: int
    count: int
    step: int


class WeightBlock(NamedTuple):
    """An aligned weight, or a published one, of all channels and hidden units.

    Attributes:
        tensor: which of the tensors of a launch is read.
        channels_in: input channels.
        channels_out: output channels.
        num_paths: paths of the radial group.
        first: first of its entries of the map.
        stop: one past the last.
        result: where it is written.
    """

    tensor: int
    channels_in: int
    channels_out: int
    num_paths: int
    first: int
    stop: int
    result: int
