"""Contractions as rows of integers: what the kernels of ``triton``, ``cuda`` and ``cpp`` are told to do.

A row is a NamedTuple of ``kernels/table_rows.py``, whose fields the Triton kernels read by the same names; ``csrc/`` reads
them in that order. Rows serve every fuse level and every fiber. Backends make tensors of them, once per
plan and device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.contraction import (
    SPLITS,
    ConvolutionPlan,
    FeatureRows,
    RadialGroup,
    input_rows,
    orders,
    output_rows,
    pairs_of,
)
from se3_fast.kernels.table_rows import GeneratorEntry, Item, PairRow, SourcePairRow, Span, Term
from se3_fast.so3 import alignment_map, generators

ROUNDING_ERROR = 1e-9
"""Entries of the generators below this are zero."""

TURNED_AXES = (0, 2)
"""The axes x and z: in an edge's frame nothing turns about y, which is the edge."""


def int64_table(rows: Sequence[Sequence[int]], kind: type[tuple[int, ...]] | int, device: torch.device) -> Tensor:
    """[n, fields] on a device; ``kind`` is that of the rows, or how many fields they have."""
    num_fields = kind if isinstance(kind, int) else len(kind._fields)  # type: ignore[attr-defined]
    return torch.tensor(rows, dtype=torch.int64, device=device).view(-1, num_fields)


# By edge ------------------------------------------------------------------------------------------------------------


class ItemTerms(NamedTuple):
    """An item, and what it sums; the item's ``first`` and ``stop`` are 0 until it is known where its terms stand."""

    item: Item
    terms: list[Term]

    @property
    def num_products(self) -> int:
        """Products for each edge and output channel: an input channel at m > 0 costs four, at m = 0 one."""
        return (1 + 3 * self.item.has_odd) * sum(term.channels for term in self.terms)


def contraction_items(plan: ConvolutionPlan, width: int, is_transposed: bool, has_odd: bool) -> list[ItemTerms]:
    """What a contraction sums at m = 0 or at m > 0.

    Forward, an item is an output degree at an order and its terms are the input degrees; transposed it is the other way round.
    """
    rows_in, rows_out = input_rows(plan), output_rows(plan)
    if is_transposed:
        rows_in, rows_out = rows_out, rows_in
    # Every component has an item, also one that no input reaches: the kernel writes its zeros.
    terms: dict[tuple[int, int], list[Term]] = {target: [] for target in _targets(rows_out, has_odd)}
    for pair in pairs_of(plan, width):
        if (pair.m > 0) == has_odd:
            source, target, channels = pair.degree_in, pair.degree_out, pair.channels_in
            if is_transposed:
                source, target, channels = target, source, pair.channels_out
            plus, minus = rows_in.row(source, pair.m), rows_in.row(source, -pair.m)
            terms[target, pair.m].append(Term(pair.group, plus, minus, channels, pair.even, pair.odd))
    return [ItemTerms(_item(rows_out, target, has_odd), of_item) for target, of_item in terms.items()]


def heaviest_first(items: Iterable[ItemTerms]) -> list[ItemTerms]:
    """The items with most to do first, so that light programs fill the end of a launch."""
    return sorted(items, key=lambda each: -each.num_products)


def with_places(items: Sequence[ItemTerms]) -> tuple[list[Item], list[Term]]:
    """The items with the places of their terms, and the terms one after the other."""
    bounds = _bounds([len(each.terms) for each in items])
    placed = [each.item._replace(first=first, stop=stop) for each, (first, stop) in zip(items, bounds, strict=True)]
    return placed, list(chain(*(each.terms for each in items)))


def _targets(rows: FeatureRows, has_odd: bool) -> list[tuple[int, int]]:
    """The degrees at the orders m = 0, or m > 0."""
    return [(degree, m) for degree, _ in rows.channels for m in range(degree + 1) if (m > 0) == has_odd]


def _item(rows: FeatureRows, target: tuple[int, int], has_odd: bool) -> Item:
    degree, m = target
    return Item(0, 0, rows.row(degree, m), rows.row(degree, -m), dict(rows.channels)[degree], int(has_odd))


def pair_rows(plan: ConvolutionPlan, width: int, has_odd: bool) -> list[PairRow]:
    """The pairs at m = 0 or at m > 0, by radial group."""
    rows_in, rows_out = input_rows(plan), output_rows(plan)
    return [
        PairRow(
            group=pair.group,
            in_plus=rows_in.row(pair.degree_in, pair.m),
            in_minus=rows_in.row(pair.degree_in, -pair.m),
            out_plus=rows_out.row(pair.degree_out, pair.m),
            out_minus=rows_out.row(pair.degree_out, -pair.m),
            channels_in=pair.channels_in,
            channels_out=pair.channels_out,
            even=pair.even,
            odd=pair.odd,
            has_odd=int(has_odd),
        )
        for pair in pairs_of(plan, width)
        if (pair.m > 0) == has_odd
    ]


def group_spans(rows: Sequence[PairRow], num_groups: int, splits: int, first: int = 0) -> list[tuple[int, int]]:
    """The pairs of each radial group shared out among the splits: of each split the first and one past the last, counted on from
    ``first``."""
    groups = [row.group for row in rows]
    return [(first + start, first + stop) for group in range(num_groups) for start, stop in _shares(groups, group, splits)]


def all_pairs(plan: ConvolutionPlan, width: int, splits: int = SPLITS) -> tuple[list[PairRow], list[Span]]:
    """The pairs at all orders, those with m > 0 first, and the spans of each radial group's splits."""
    odd, even = pair_rows(plan, width, True), pair_rows(plan, width, False)
    num_groups = len(plan.groups)
    odd_spans, even_spans = group_spans(odd, num_groups, splits), group_spans(even, num_groups, splits, first=len(odd))
    return odd + even, [Span(*of_even, *of_odd) for of_even, of_odd in zip(even_spans, odd_spans, strict=True)]


def _shares(groups: list[int], group: int, splits: int) -> list[tuple[int, int]]:
    """The pairs of a group, which stand one after the other, shared out among the splits."""
    first, count = (groups.index(group), groups.count(group)) if group in groups else (0, 0)
    bounds = [first + count * split // splits for split in range(splits + 1)]
    return list(pairwise(bounds))


def generator_entries(rows: FeatureRows, axis: int) -> tuple[list[GeneratorEntry], list[float]]:
    """The generator of rotations about an axis on rows of aligned features: its entries, and their coefficients."""
    entries, coefficients = [], []
    for degree, channels in rows.channels:
        matrix = generators(degree)[axis]
        for left, right in (matrix.abs() > ROUNDING_ERROR).nonzero().tolist():
            entries.append(GeneratorEntry(rows.row(degree, left - degree), rows.row(degree, right - degree), channels))
            coefficients.append(float(matrix[left, right]))
    return entries, coefficients


# By source ----------------------------------------------------------------------------------------------------------


class SourcePair(NamedTuple):
    """A pair of degrees at one order, and where its columns stand in a node's T."""

    group: int
    m: int
    degree_in: int
    degree_out: int
    channels: int
    start: int
    length: int
    step: int
    even: int
    odd: int


@cache
def frame_rows(plan: ConvolutionPlan) -> FeatureRows:
    """Rows of the columns of the Wigner blocks: by input degree, component m, component l."""
    return FeatureRows(tuple((degree, 2 * degree + 1) for degree, _ in plan.node_channels))


@cache
def source_pairs(plan: ConvolutionPlan, width: int) -> tuple[SourcePair, ...]:
    """All pairs at all orders, by input degree; ``width`` is that of h."""
    pairs: list[SourcePair] = []
    start = 0
    for degree_in, _ in plan.node_channels:
        of_degree = _pairs_of_input(plan, degree_in, width)
        length = width * sum(_step(group, degree_in) for group in plan.groups)
        pairs += [pair._replace(start=start, length=length) for pair in of_degree]
        start += (2 * degree_in + 1) * length
    return tuple(pairs)


def _step(group: RadialGroup, degree_in: int) -> int:
    """Columns of T that an input degree has in a radial group, for each hidden unit."""
    paths = sum(order.num_parities * len(order.degrees_out) for order in orders(group) if degree_in in order.degrees_in)
    return paths * group.channels_out


def _pairs_of_input(plan: ConvolutionPlan, degree_in: int, width: int) -> list[SourcePair]:
    pairs = []
    group_start = 0
    for index, group in enumerate(plan.groups):
        step, place = _step(group, degree_in), group_start
        for order in orders(group):
            if degree_in not in order.degrees_in:
                continue
            parity_step = len(order.degrees_out) * group.channels_out
            for degree_out in order.degrees_out:
                columns = (step, place, place + parity_step)
                pairs.append(SourcePair(index, order.m, degree_in, degree_out, group.channels_out, 0, 0, *columns))
                place += group.channels_out
            place += (order.num_parities - 1) * parity_step
        group_start += width * step
    return pairs


@cache
def values_per_node(plan: ConvolutionPlan, width: int) -> int:
    """Values of T of one node."""
    return sum((2 * pair.degree_in + 1) * width * pair.channels * (1 if pair.m == 0 else 2) for pair in source_pairs(plan, width))


def source_pair_row(plan: ConvolutionPlan, pair: SourcePair) -> SourcePairRow:
    """A pair as the kernels read it."""
    frames, outputs = frame_rows(plan), output_rows(plan)
    return SourcePairRow(
        group=pair.group,
        frame_plus=frames.row(pair.degree_in, pair.m),
        frame_minus=frames.row(pair.degree_in, -pair.m),
        components=2 * pair.degree_in + 1,
        start=pair.start,
        length=pair.length,
        step=pair.step,
        out_plus=outputs.row(pair.degree_out, pair.m),
        out_minus=outputs.row(pair.degree_out, -pair.m),
        channels=pair.channels,
        even=pair.even,
        odd=pair.odd,
    )


def by_degree(
    pairs: Sequence[SourcePair], rows: FeatureRows, has_odd: bool, of_outputs: bool
) -> tuple[list[Item], list[SourcePair]]:
    """Items for the output degrees, or for the input degrees, at the orders m = 0 or m > 0; and the pairs in their order.

    Every component has an item, also one that nothing reaches: the kernels write its zeros.
    """
    targets = _targets(rows, has_odd)
    chosen = [
        [pair for pair in pairs if (pair.degree_out if of_outputs else pair.degree_in, pair.m) == target] for target in targets
    ]
    bounds = _bounds([len(of_target) for of_target in chosen])
    items = [
        _item(rows, target, has_odd)._replace(first=first, stop=stop) for target, (first, stop) in zip(targets, bounds, strict=True)
    ]
    return items, list(chain(*chosen))


def by_group(pairs: Sequence[SourcePair], num_groups: int) -> tuple[list[tuple[int, int]], list[SourcePair]]:
    """The first and one past the last pair of each radial group, and the pairs in that order."""
    counts = [sum(pair.group == index for pair in pairs) for index in range(num_groups)]
    return _bounds(counts), sorted(pairs, key=lambda pair: pair.group)


def component_slices(pairs: Sequence[SourcePair], block: int) -> list[tuple[int, int]]:
    """The pairs by number, in pieces of up to ``block`` components: the pair and the first of its components."""
    return [(number, first) for number, pair in enumerate(pairs) for first in range(0, 2 * pair.degree_in + 1, block)]


def _bounds(counts: Sequence[int]) -> list[tuple[int, int]]:
    """First and one past the last of things that stand one after the other."""
    starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
    return list(pairwise(starts))


# For csrc/*.cpp -----------------------------------------------------------------------------------------------------


class PathsOfPair(NamedTuple):
    """A pair of degrees as ``csrc/tfn_conv.cpp`` reads it."""

    group: int
    degree_in: int
    degree_out: int
    channels_in: int
    channels_out: int
    first_path: int
    num_paths: int


class AxisEntry(NamedTuple):
    """An entry of a generator as ``csrc/tfn_conv.cpp`` reads it; ``axis`` is 0 for x and 1 for z."""

    degree: int
    row: int
    column: int
    axis: int


class AlignedWeightRow(NamedTuple):
    """An aligned weight as ``csrc/tfn_conv_by_source.cpp`` reads it; degrees by their numbers in the plan."""

    group: int
    input_number: int
    output_number: int
    m: int
    is_odd: int
    first_path: int
    num_paths: int


def described_by_edge(plan: ConvolutionPlan, width: int) -> tuple[list[int], Tensor]:
    """A plan as ``csrc/tfn_conv.cpp`` reads it.

    Returns:
        The integers: K; numbers of node, edge and output degrees, each followed by (degree, channels); number of groups; number of
        pairs, followed by :class:`PathsOfPair`; number of generator entries, followed by :class:`AxisEntry`. And float64
        coefficients: the maps from paths to aligned weights by pair, then one for each generator entry.
    """
    pairs, coefficients = [], []
    for index, group in enumerate(plan.groups):
        for pair in group.pairs:
            degrees, channels = (pair.degree_in, pair.degree_out), (group.channels_in, group.channels_out)
            pairs.append(PathsOfPair(index, *degrees, *channels, pair.start, group.num_paths))
            coefficients.append(_map_of_pair(group, *degrees))
    entries = []
    for degree in range(1, plan.max_degree + 1):
        matrices = generators(degree)[list(TURNED_AXES)]
        for axis, row, column in (matrices.abs() > ROUNDING_ERROR).nonzero().tolist():
            entries.append(AxisEntry(degree, row, column, axis))
            coefficients.append(matrices[axis, row, column])
    channels_of_all = chain(*(_counted(channels) for channels in (plan.node_channels, plan.edge_channels, plan.channels_out)))
    integers = [width, *channels_of_all, len(plan.groups), *_counted(pairs), *_counted(entries)]
    return integers, torch.cat([values.flatten() for values in coefficients])


def described_by_source(plan: ConvolutionPlan) -> tuple[list[int], Tensor]:
    """A plan as ``csrc/tfn_conv_by_source.cpp`` reads it.

    Returns:
        The integers: numbers of input and of output degrees, each followed by (degree, channels); number of groups, followed by
        (C_in, C_out, paths); number of aligned weights, followed by :class:`AlignedWeightRow`, ordered by group and input; the
        largest degree. And float64 coefficients: of each aligned weight for its paths, then the generators of the degrees 0, 1, ...
    """
    groups = [(group.channels_in, group.channels_out, group.num_paths) for group in plan.groups]
    weights, coefficients = [], []
    for index, group in enumerate(plan.groups):
        for row, values in _aligned_weight_rows(plan, index, group):
            weights.append(row)
            coefficients.append(values)
    coefficients += [generators(degree).flatten() for degree in range(plan.max_degree + 1)]
    channels_of_all = chain(*(_counted(channels) for channels in (plan.node_channels, plan.channels_out)))
    integers = [*channels_of_all, *_counted(groups), *_counted(weights), plan.max_degree]
    return integers, torch.cat(coefficients)


def _aligned_weight_rows(plan: ConvolutionPlan, index: int, group: RadialGroup) -> list[tuple[AlignedWeightRow, Tensor]]:
    """The aligned weights of a group by input degree, with the coefficients of their paths."""
    inputs, outputs = ([degree for degree, _ in channels] for channels in (plan.node_channels, plan.channels_out))
    result = []
    for pair in sorted(group.pairs, key=lambda pair: pair.degree_in):
        numbers = (inputs.index(pair.degree_in), outputs.index(pair.degree_out))
        smaller = min(pair.degree_in, pair.degree_out)
        for place, coefficients in enumerate(_map_of_pair(group, pair.degree_in, pair.degree_out)):
            m, is_odd = (place, 0) if place <= smaller else (place - smaller, 1)
            result.append((AlignedWeightRow(index, *numbers, m, is_odd, pair.start, len(coefficients)), coefficients))
    return result


def _map_of_pair(group: RadialGroup, degree_in: int, degree_out: int) -> Tensor:
    """From the paths of a pair to its aligned weights."""
    mapped = alignment_map(degree_in, degree_out)
    return torch.ones_like(mapped) if group.is_basis_free else mapped


def _counted(rows: Sequence[Sequence[int]]) -> list[int]:
    """How many rows there are, then the rows one after the other."""
    return [len(rows), *chain(*rows)]
