"""What the Triton convolution kernels do, written down as small int64 tables: made once per plan and device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise, product

import torch
from torch import Tensor

from se3_fast.aligned.tfn_conv import orders
from se3_fast.plan import ConvolutionPlan

SPLITS = 4
"""Programs that share the pairs of a radial group in the gradient of h, so that few edges still fill a GPU."""


@dataclass(frozen=True)
class FeatureRows:
    """Rows of aligned features, [rows, E]: by degree, component, channel."""

    channels: tuple[tuple[int, int], ...]

    @cached_property
    def starts(self) -> dict[int, int]:
        """First row of each degree."""
        starts, row = {}, 0
        for degree, channels in self.channels:
            starts[degree] = row
            row += (2 * degree + 1) * channels
        return starts

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum((2 * degree + 1) * channels for degree, channels in self.channels)

    def row(self, degree: int, order: int) -> int:
        """Row of the first channel of the component of order m."""
        return self.starts[degree] + (degree + order) * dict(self.channels)[degree]


@dataclass(frozen=True)
class Pair:
    """A pair of degrees at one order, and where its aligned weights begin."""

    group: int
    m: int
    degree_in: int
    degree_out: int
    channels_in: int
    channels_out: int
    even: int
    odd: int


@cache
def input_rows(plan: ConvolutionPlan) -> FeatureRows:
    """Rows of x~; the channels of edge features stand behind those of the node features of their degree."""
    appended = dict(plan.edge_channels)
    return FeatureRows(tuple((degree, channels + appended.get(degree, 0)) for degree, channels in plan.node_channels))


@cache
def output_rows(plan: ConvolutionPlan) -> FeatureRows:
    """Rows of y~."""
    return FeatureRows(plan.channels_out)


@cache
def pairs_of(plan: ConvolutionPlan, width: int) -> tuple[Pair, ...]:
    """All pairs at all orders, by radial group; ``width`` is that of h."""
    pairs, offset = [], 0
    for index, group in enumerate(plan.groups):
        size = group.channels_in * width * group.channels_out
        for order in orders(group):
            parity_step = len(order.degrees_in) * len(order.degrees_out) * size
            for place, (degree_in, degree_out) in enumerate(product(order.degrees_in, order.degrees_out)):
                even = offset + (order.start + place) * size
                channels = (group.channels_in, group.channels_out)
                pairs.append(Pair(index, order.m, degree_in, degree_out, *channels, even, even + parity_step))
        offset += group.num_paths * size
    return tuple(pairs)


@cache
def contraction_tables(
    plan: ConvolutionPlan, width: int, is_transposed: bool, device: torch.device
) -> list[tuple[Tensor, Tensor, int, bool]]:
    """Items, terms, largest channel count and whether m > 0, for m = 0 and for m > 0 (see ``kernels/tfn_conv.py``).

    Forward, an item is an output degree at an order and its terms are the input degrees; transposed it is the other way round.
    """
    rows_in, rows_out = input_rows(plan), output_rows(plan)
    if is_transposed:
        rows_in, rows_out = rows_out, rows_in
    tables = []
    for has_odd in (False, True):
        # Every component has an item, also one that no input reaches: the kernel writes its zeros.
        by_item: dict[tuple[int, int], list[list[int]]] = {
            (degree, m): [] for degree, _ in rows_out.channels for m in range(degree + 1) if (m > 0) == has_odd
        }
        for pair in pairs_of(plan, width):
            if (pair.m > 0) != has_odd:
                continue
            source, target = pair.degree_in, pair.degree_out
            channels_in = pair.channels_in
            if is_transposed:
                source, target, channels_in = target, source, pair.channels_out
            plus, minus = rows_in.row(source, pair.m), rows_in.row(source, -pair.m)
            term = [pair.group, plus, minus, channels_in, pair.even, pair.odd]
            by_item[target, pair.m].append(term)
        items: list[list[int]] = []
        terms: list[list[int]] = []
        for (target, m), item_terms in by_item.items():
            channels = dict(rows_out.channels)[target]
            first = len(terms)
            terms += item_terms
            items.append([first, len(terms), rows_out.row(target, m), rows_out.row(target, -m), channels])
        largest = max((item[-1] for item in items), default=0)
        tables.append((_table(items, 5, device), _table(terms, 6, device), largest, has_odd))
    return tables


@cache
def pair_tables(plan: ConvolutionPlan, width: int, device: torch.device) -> list[tuple[Tensor, Tensor, int, int, int, bool]]:
    """Pairs, spans, splits, largest channel counts and whether m > 0, for m = 0 and for m > 0 (see ``kernels/tfn_conv.py``)."""
    rows_in, rows_out = input_rows(plan), output_rows(plan)
    tables = []
    for has_odd in (False, True):
        chosen = [pair for pair in pairs_of(plan, width) if (pair.m > 0) == has_odd]
        rows = [
            [
                pair.group,
                rows_in.row(pair.degree_in, pair.m),
                rows_in.row(pair.degree_in, -pair.m),
                rows_out.row(pair.degree_out, pair.m),
                rows_out.row(pair.degree_out, -pair.m),
                pair.channels_in,
                pair.channels_out,
                pair.even,
                pair.odd,
            ]
            for pair in chosen
        ]
        spans = [span for group in range(len(plan.groups)) for span in _spans([pair.group for pair in chosen], group)]
        largest_in = max((pair.channels_in for pair in chosen), default=0)
        largest_out = max((pair.channels_out for pair in chosen), default=0)
        tables.append((_table(rows, 9, device), _table(spans, 2, device), SPLITS, largest_in, largest_out, has_odd))
    return tables


def _spans(groups: list[int], group: int) -> list[list[int]]:
    """The pairs of a group, which stand one after the other, shared out among the splits."""
    first, count = (groups.index(group), groups.count(group)) if group in groups else (0, 0)
    bounds = [first + count * split // SPLITS for split in range(SPLITS + 1)]
    return [[start, stop] for start, stop in pairwise(bounds)]


def _table(rows: list[list[int]], fields: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device).view(-1, fields)
