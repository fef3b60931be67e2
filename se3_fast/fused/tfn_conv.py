"""The launches of the Triton convolution (``kernels/tfn_conv.py``), and the small int64 tables that tell the kernels what to do.

The tables are made once per plan and device; they serve every fuse level and every fiber.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise, product

import torch
from torch import Tensor

from se3_fast.aligned.tfn_conv import orders
from se3_fast.graph import Graph
from se3_fast.kernels import tfn_conv as kernels
from se3_fast.kernels.edge_frames import wigner_table
from se3_fast.plan import ConvolutionPlan
from se3_fast.so3 import axis_swap

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
) -> list[kernels.ContractionTable]:
    """What :func:`~se3_fast.kernels.tfn_conv.contract` sums, for m = 0 and for m > 0.

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
        tables.append(kernels.ContractionTable(_table(items, 5, device), _table(terms, 6, device), largest, has_odd))
    return tables


@cache
def pair_tables(plan: ConvolutionPlan, width: int, device: torch.device) -> list[kernels.PairTable]:
    """The pairs for the gradients of h and W, for m = 0 and for m > 0."""
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
        sizes = (SPLITS, largest_in, largest_out, has_odd)
        tables.append(kernels.PairTable(_table(rows, 9, device), _table(spans, 2, device), *sizes))
    return tables


def _spans(groups: list[int], group: int) -> list[list[int]]:
    """The pairs of a group, which stand one after the other, shared out among the splits."""
    first, count = (groups.index(group), groups.count(group)) if group in groups else (0, 0)
    bounds = [first + count * split // SPLITS for split in range(SPLITS + 1)]
    return [[start, stop] for start, stop in pairwise(bounds)]


def _table(rows: list[list[int]], fields: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device).view(-1, fields)


class Launches:
    """The kernel launches of one convolution, with the tables and sizes that they share."""

    def __init__(self, plan: ConvolutionPlan, graph: Graph, angles: Tensor, pool: bool, dtype: torch.dtype) -> None:
        self.plan, self.graph, self.angles, self.pool, self.dtype = plan, graph, angles, pool, dtype
        self.rows_in, self.rows_out = input_rows(plan), output_rows(plan)
        self.wigner_tables = {
            degree: wigner_table(axis_swap(degree)).to(angles)
            for degree in {degree for degree, _ in plan.node_channels + plan.channels_out}
        }

    def align_inputs(self, features: Sequence[Tensor]) -> Tensor:
        """x~, [rows, E], from node features and edge features."""
        aligned_features = self._empty(self.rows_in.count, self.graph.num_edges())
        remaining = iter(features)
        for degree, _ in self.plan.node_channels:
            self._align(next(remaining), self.graph.src, aligned_features, self.rows_in, degree, 0)
        for degree, _ in self.plan.edge_channels:
            first = dict(self.plan.node_channels)[degree]
            self._align(next(remaining), None, aligned_features, self.rows_in, degree, first)
        return aligned_features

    def align_gradients(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradient of y~, [rows, E], from those of the messages."""
        gradient = self._empty(self.rows_out.count, self.graph.num_edges())
        index = self.graph.dst if self.pool else None
        for (degree, _), grad in zip(self.plan.channels_out, grads, strict=True):
            self._align(grad, index, gradient, self.rows_out, degree, 0)
        return gradient

    def contract(self, aligned_features: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """y~, [rows, E]."""
        messages = self._empty(self.rows_out.count, self.graph.num_edges())
        kernels.contract(aligned_features, hidden, weights, self._contraction(hidden, False), False, messages)
        return messages

    def contract_transposed(self, gradient: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """The gradient of x~, [rows, E]."""
        result = self._empty(self.rows_in.count, self.graph.num_edges())
        transposed = self._transpose(weights, hidden.shape[2])
        kernels.contract(gradient, hidden, transposed, self._contraction(hidden, True), True, result)
        return result

    def radial_gradients(
        self, aligned_features: Tensor, gradient: Tensor, hidden: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of h and of the aligned weights."""
        width = hidden.shape[2]
        tables = pair_tables(self.plan, width, hidden.device)
        of_hidden = kernels.hidden_gradient(aligned_features, gradient, weights, tables, len(hidden), width)
        of_weights = kernels.weight_gradient(aligned_features, gradient, hidden, tables, len(weights))
        return of_hidden.to(self.dtype), of_weights.to(self.dtype)

    def rotate_outputs(self, messages: Tensor) -> list[Tensor]:
        """Messages by degree, per edge or summed over incoming edges."""
        outputs = []
        for degree, channels in self.plan.channels_out:
            outputs.append(self._rotate(messages, self.rows_out, degree, 0, channels, is_summed=self.pool, by_source=False))
        return outputs

    def rotate_input_gradients(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of the node features (summed over outgoing edges) and of the edge features, by degree."""
        results = []
        for degree, channels in self.plan.node_channels:
            results.append(self._rotate(gradient, self.rows_in, degree, 0, channels, is_summed=True, by_source=True))
        for degree, channels in self.plan.edge_channels:
            first = dict(self.plan.node_channels)[degree]
            results.append(self._rotate(gradient, self.rows_in, degree, first, channels, is_summed=False, by_source=False))
        return results

    def _align(
        self,
        features: Tensor,
        index: Tensor | None,
        into: Tensor,
        rows: FeatureRows,
        degree: int,
        first_channel: int,
    ) -> None:
        start, stride = rows.starts[degree] + first_channel, dict(rows.channels)[degree]
        table = self.wigner_tables[degree]
        kernels.align(features.contiguous(), index, self.angles, table, into, start, stride)

    def _rotate(
        self,
        values: Tensor,
        rows: FeatureRows,
        degree: int,
        first_channel: int,
        channels: int,
        is_summed: bool,
        by_source: bool,
    ) -> Tensor:
        start, stride = rows.starts[degree] + first_channel, dict(rows.channels)[degree]
        table = self.wigner_tables[degree]
        count = self.graph.num_nodes() if is_summed else self.graph.num_edges()
        output = self._empty(count, channels, 2 * degree + 1)
        if is_summed:
            order, offsets = self.graph.outgoing() if by_source else self.graph.incoming()
            kernels.rotate_sum(values, self.angles, table, order, offsets, output, start, stride)
        else:
            kernels.rotate(values, self.angles, table, output, start, stride)
        return output

    def _contraction(self, hidden: Tensor, is_transposed: bool) -> list[kernels.ContractionTable]:
        return contraction_tables(self.plan, hidden.shape[2], is_transposed, hidden.device)

    def _transpose(self, weights: Tensor, width: int) -> Tensor:
        """The aligned weights with both channel axes exchanged, in a row."""
        parts, start = [], 0
        for group in self.plan.groups:
            size = group.num_paths * group.channels_in * width * group.channels_out
            block = weights[start : start + size].view(-1, group.channels_in, width, group.channels_out)
            parts.append(block.transpose(1, 3).flatten())
            start += size
        return torch.cat(parts)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.angles.device)
