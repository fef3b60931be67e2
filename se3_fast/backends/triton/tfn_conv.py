"""The launches of the Triton convolution (``kernels/tfn_conv.py``), and the small int64 tables that tell the kernels what to do.

The tables are made once per plan and device; they serve every fuse level and every fiber. Here is the contraction by edge, and what
both orders share; :mod:`se3_fast.backends.triton.tfn_conv_by_source` has the other. :func:`cost` counts the work of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise, product

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.backends.torch.tfn_conv import orders
from se3_fast.contraction import ConvolutionPlan
from se3_fast.graph import EdgeOrder, Graph
from se3_fast.kernels import tfn_conv as kernels
from se3_fast.kernels.cost import Cost
from se3_fast.kernels.edge_frames import wigner_table
from se3_fast.so3 import axis_swap, generators

SPLITS = 4
"""Most programs that share the pairs of a radial group in the gradient of h, so that few edges still fill a GPU."""

ENOUGH_PROGRAMS = 1024
"""Programs that fill a large GPU: with as many blocks of edges nothing is split, and fewer partial sums go through memory."""

ROUNDING_ERROR = 1e-9
"""Entries of the generators below this are zero."""


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

    def place(self, degree: int, first_channel: int) -> tuple[int, int]:
        """Row of a channel of a degree's first component, and the rows from one component to the next."""
        return self.starts[degree] + first_channel, dict(self.channels)[degree]

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


def contraction_items(
    plan: ConvolutionPlan, width: int, is_transposed: bool, has_odd: bool
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """What a contraction sums at m = 0 or at m > 0: the items, and the terms of each.

    Forward, an item is an output degree at an order and its terms are the input degrees; transposed it is the other way round.

    Returns:
        Of each item the output rows of +m and -m and the output channels; of each of its terms the radial group, the input rows of
        +m and -m, the input channels, and the offsets of the even and the odd weights.
    """
    rows_in, rows_out = input_rows(plan), output_rows(plan)
    if is_transposed:
        rows_in, rows_out = rows_out, rows_in
    # Every component has an item, also one that no input reaches: the kernel writes its zeros.
    by_item: dict[tuple[int, int], list[list[int]]] = {
        (degree, m): [] for degree, _ in rows_out.channels for m in range(degree + 1) if (m > 0) == has_odd
    }
    for pair in pairs_of(plan, width):
        if (pair.m > 0) == has_odd:
            source, target, channels = pair.degree_in, pair.degree_out, pair.channels_in
            if is_transposed:
                source, target, channels = target, source, pair.channels_out
            plus, minus = rows_in.row(source, pair.m), rows_in.row(source, -pair.m)
            by_item[target, pair.m].append([pair.group, plus, minus, channels, pair.even, pair.odd])
    channels_out = dict(rows_out.channels)
    items = [[rows_out.row(degree, m), rows_out.row(degree, -m), channels_out[degree]] for degree, m in by_item]
    return items, list(by_item.values())


@constant
def contraction_table(plan: ConvolutionPlan, width: int, is_transposed: bool, device: torch.device) -> kernels.ContractionTable:
    """What :func:`~se3_fast.kernels.tfn_conv.contract` sums, the items with most to do first."""
    found: list[tuple[int, list[int], list[list[int]]]] = []
    for has_odd in (False, True):
        items, terms = contraction_items(plan, width, is_transposed, has_odd)
        found += [(int(has_odd), item, of_item) for item, of_item in zip(items, terms, strict=True)]
    # An input channel at m > 0 costs four products, at m = 0 one.
    found.sort(key=lambda each: -(1 + 3 * each[0]) * sum(term[3] for term in each[2]))
    rows: list[list[int]] = []
    in_order: list[list[int]] = []
    for has_odd_terms, item, of_item in found:
        rows.append([len(in_order), len(in_order) + len(of_item), *item, has_odd_terms])
        in_order += of_item
    largest = max(item[-1] for _, item, _ in found)
    return kernels.ContractionTable(int64_table(rows, 6, device), int64_table(in_order, 6, device), largest)


def pair_rows(plan: ConvolutionPlan, width: int, has_odd: bool) -> list[list[int]]:
    """The pairs at m = 0 or at m > 0, by radial group: the group, input rows of +m and -m, output rows of +m and -m, input and
    output channels, and the offsets of the even and the odd weights."""
    rows_in, rows_out = input_rows(plan), output_rows(plan)
    return [
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
        for pair in pairs_of(plan, width)
        if (pair.m > 0) == has_odd
    ]


def group_spans(rows: list[list[int]], num_groups: int, splits: int, first: int = 0) -> list[list[int]]:
    """The pairs of each radial group shared out among the splits: of each split the first and one past the last, counted on from
    ``first``."""
    groups = [row[0] for row in rows]
    return [[first + start, first + stop] for group in range(num_groups) for start, stop in _spans(groups, group, splits)]


@constant
def pair_table(plan: ConvolutionPlan, width: int, device: torch.device, splits: int = SPLITS) -> kernels.PairTable:
    """The pairs for the gradients of h and W."""
    odd, even = pair_rows(plan, width, True), pair_rows(plan, width, False)
    num_groups = len(plan.groups)
    odd_spans, even_spans = group_spans(odd, num_groups, splits), group_spans(even, num_groups, splits, first=len(odd))
    spans = [[*of_even, *of_odd] for of_even, of_odd in zip(even_spans, odd_spans, strict=True)]
    rows = [[*row, 1] for row in odd] + [[*row, 0] for row in even]
    return kernels.PairTable(
        int64_table(rows, 10, device),
        int64_table(spans, 4, device),
        splits,
        max(row[5] for row in rows),
        max(row[6] for row in rows),
    )


@constant
def generator_table(outputs: FeatureRows, inputs: FeatureRows, device: torch.device) -> kernels.GeneratorTable:
    """The generators of rotations about x and z on all rows of y~ and x~."""
    entries: list[list[int]] = []
    coefficients: list[float] = []
    starts = []
    for rows, axis in product((outputs, inputs), (0, 2)):
        starts.append(len(entries))
        for degree, channels in rows.channels:
            matrix = generators(degree)[axis]
            for left, right in (matrix.abs() > ROUNDING_ERROR).nonzero().tolist():
                entries.append([rows.row(degree, left - degree), rows.row(degree, right - degree), channels])
                coefficients.append(float(matrix[left, right]))
    values = torch.tensor(coefficients, dtype=torch.float64, device=device)
    return kernels.GeneratorTable(int64_table(entries, 3, device), values, (starts[1], starts[2], starts[3]))


@constant
def _wigner_table(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return wigner_table(axis_swap(degree)).to(device, dtype)


def hidden_splits(num_edges: int, num_groups: int) -> int:
    """Programs that share the pairs of a group in the gradient of h; a program has 64 edges or half as many."""
    return min(max(ENOUGH_PROGRAMS * 64 // max(num_edges * num_groups, 1), 1), SPLITS)


def _spans(groups: list[int], group: int, splits: int) -> list[list[int]]:
    """The pairs of a group, which stand one after the other, shared out among the splits."""
    first, count = (groups.index(group), groups.count(group)) if group in groups else (0, 0)
    bounds = [first + count * split // splits for split in range(splits + 1)]
    return [[start, stop] for start, stop in pairwise(bounds)]


def int64_table(rows: list[list[int]], fields: int, device: torch.device) -> Tensor:
    """[n, fields] on a device."""
    return torch.tensor(rows, dtype=torch.int64, device=device).view(-1, fields)


class Launches:
    """The kernel launches of one convolution, with the tables and sizes that they share.

    Args:
        plan: what is coupled.
        graph: the edges.
        angles: [4, E] of the edges' frames.
        pool: whether messages are summed over incoming edges.
        dtype: that of the features.
        edge_numbers: [E] int64, where ``graph`` and ``angles`` have the edges in another order than messages per edge: their
            numbers there.
        keeps_frames: messages stay in the edges' frames, as one tensor [rows, E], and so do their gradients.
    """

    def __init__(
        self,
        plan: ConvolutionPlan,
        graph: Graph,
        angles: Tensor,
        pool: bool,
        dtype: torch.dtype,
        edge_numbers: Tensor | None = None,
        keeps_frames: bool = False,
    ) -> None:
        self.plan, self.graph, self.angles, self.pool, self.dtype = plan, graph, angles, pool, dtype
        self.edge_numbers, self.keeps_frames = edge_numbers, keeps_frames
        self.rows_in, self.rows_out = input_rows(plan), output_rows(plan)

    def wigner_table(self, degree: int) -> Tensor:
        """The constant table of one degree's Wigner blocks."""
        return _wigner_table(degree, self.angles.dtype, self.angles.device)

    def align_inputs(self, features: Sequence[Tensor]) -> Tensor:
        """x~, [rows, E], from node features and edge features."""
        aligned_features = self.empty_rows(self.rows_in)
        num_node_degrees = len(self.plan.node_channels)
        of_nodes = [
            self._block(self.rows_in, degree, 0, feature)
            for (degree, _), feature in zip(self.plan.node_channels, features[:num_node_degrees], strict=True)
        ]
        self._launch_align(of_nodes, self.graph.src, aligned_features)
        of_edges = [
            self._block(self.rows_in, degree, dict(self.plan.node_channels)[degree], feature)
            for (degree, _), feature in zip(self.plan.edge_channels, features[num_node_degrees:], strict=True)
        ]
        self._launch_align(of_edges, None, aligned_features)
        return aligned_features

    def align_gradients(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradient of y~, [rows, E], from those of the messages."""
        if self.keeps_frames:
            return grads[0].contiguous()
        gradient = self.empty_rows(self.rows_out)
        index = self.graph.dst if self.pool else self.edge_numbers
        blocks = [
            self._block(self.rows_out, degree, 0, grad) for (degree, _), grad in zip(self.plan.channels_out, grads, strict=True)
        ]
        self._launch_align(blocks, index, gradient)
        return gradient

    def contract(self, aligned_features: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """y~, [rows, E]; where messages stay in the frames the rows of an edge lie side by side, as the attention reads them."""
        if self.keeps_frames:
            messages = self.empty(self.graph.num_edges(), self.rows_out.count).t()
        else:
            messages = self.empty_rows(self.rows_out)
        table = contraction_table(self.plan, hidden.shape[2], False, hidden.device)
        kernels.contract(aligned_features, hidden, weights, table, False, messages)
        return messages

    def contract_transposed(self, gradient: Tensor, hidden: Tensor, weights: Tensor, transposed: Tensor | None) -> Tensor:
        """The gradient of x~, [rows, E]; ``transposed`` are the weights in the order [.., C_out, K, C_in]."""
        assert transposed is not None
        result = self.empty_rows(self.rows_in)
        table = contraction_table(self.plan, hidden.shape[2], True, hidden.device)
        kernels.contract(gradient, hidden, transposed, table, True, result)
        return result

    def radial_gradients(
        self, aligned_features: Tensor, gradient: Tensor, hidden: Tensor, weights: Tensor, splits: int
    ) -> tuple[Tensor, Tensor]:
        """Gradients of h, in so many parts [splits, groups, E, K], and of the aligned weights."""
        width = hidden.shape[2]
        table = pair_table(self.plan, width, hidden.device, splits)
        of_hidden = kernels.hidden_gradient(aligned_features, gradient, weights, table, len(hidden), width, self.dtype)
        return of_hidden, kernels.weight_gradient(aligned_features, gradient, hidden, table, len(weights))

    def rotate_outputs(self, messages: Tensor) -> list[Tensor]:
        """Messages by degree, per edge or summed over incoming edges; or y~ itself."""
        if self.keeps_frames:
            return [messages]
        if self.pool:
            return self._rotate_sum(messages, self.rows_out, self.plan.channels_out, self.graph.incoming())
        return [self._rotate(messages, self.rows_out, degree, 0, channels) for degree, channels in self.plan.channels_out]

    def rotate_input_gradients(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of the node features (summed over outgoing edges) and of the edge features, by degree."""
        of_nodes = self._rotate_sum(gradient, self.rows_in, self.plan.node_channels, self.graph.outgoing())
        first = dict(self.plan.node_channels)
        of_edges = [
            self._rotate(gradient, self.rows_in, degree, first[degree], channels) for degree, channels in self.plan.edge_channels
        ]
        return [*of_nodes, *of_edges]

    def position_gradient(
        self,
        rel_pos: Tensor,
        gradient: Tensor,
        messages: Tensor,
        input_gradient: Tensor,
        inputs: Tensor,
        input_rows: FeatureRows | None = None,
    ) -> Tensor:
        """The gradient of rel_pos through the directions, [E, 3], from y~, x~ and their gradients.

        ``input_rows`` are the rows of ``inputs`` if those are not x~.
        """
        table = generator_table(self.rows_out, input_rows or self.rows_in, self.angles.device)
        return kernels.position_gradient(
            gradient, messages, input_gradient, inputs, table, rel_pos, self.angles, self.wigner_table(1)
        )

    def _block(self, rows: FeatureRows, degree: int, first_channel: int, features: Tensor) -> kernels.DegreeBlock:
        table = self.wigner_table(degree)
        return kernels.DegreeBlock(degree, features.contiguous(), table, *rows.place(degree, first_channel))

    def _rotate(self, values: Tensor, rows: FeatureRows, degree: int, first_channel: int, channels: int) -> Tensor:
        output = self.empty(self.graph.num_edges(), channels, 2 * degree + 1)
        self._launch_rotate(values, output, degree, rows.place(degree, first_channel))
        return output

    def _rotate_sum(
        self, values: Tensor, rows: FeatureRows, channels_by_degree: tuple[tuple[int, int], ...], edges: EdgeOrder
    ) -> list[Tensor]:
        outputs = [self.empty(self.graph.num_nodes(), channels, 2 * degree + 1) for degree, channels in channels_by_degree]
        blocks = [self._block(rows, degree, 0, output) for (degree, _), output in zip(channels_by_degree, outputs, strict=True)]
        self._launch_rotate_sum(blocks, values, edges)
        return outputs

    def _launch_align(self, blocks: list[kernels.DegreeBlock], index: Tensor | None, into: Tensor) -> None:
        kernels.align(blocks, index, self.angles, into)

    def _launch_rotate(self, values: Tensor, output: Tensor, degree: int, place: tuple[int, int]) -> None:
        kernels.rotate(values, self.edge_numbers, self.angles, self.wigner_table(degree), output, *place)

    def _launch_rotate_sum(self, blocks: list[kernels.DegreeBlock], values: Tensor, edges: EdgeOrder) -> None:
        kernels.rotate_sum(blocks, values, self.angles, *edges)

    def empty_rows(self, rows: FeatureRows) -> Tensor:
        """Memory for aligned features, [rows, E]."""
        return self.empty(rows.count, self.graph.num_edges())

    def empty(self, *shape: int) -> Tensor:
        """Memory to be written, in the dtype of the features."""
        return torch.empty(*shape, dtype=self.dtype, device=self.angles.device)


def cost(
    plan: ConvolutionPlan,
    num_nodes: int,
    num_edges: int,
    width: int,
    dtype: torch.dtype,
    is_by_source: bool,
    pool: bool = True,
) -> tuple[Cost, Cost]:
    """The work of a convolution, forward and backward (without the gradient with respect to positions).

    Every launch is taken to read each of its inputs once, and nothing to stay in a cache between launches.

    Args:
        plan: what is coupled.
        num_nodes: N.
        num_edges: E.
        width: K.
        dtype: that of the features.
        is_by_source: the contraction order.
        pool: whether the messages are summed over incoming edges.

    Returns:
        The costs of the forward and of the backward pass.
    """
    sizes = _Sizes.of(plan, num_nodes, num_edges, width, dtype, pool)
    return (_forward_by_source(sizes), _backward_by_source(sizes)) if is_by_source else (_forward(sizes), _backward(sizes))


@dataclass(frozen=True)
class _Sizes:
    """What the cost of a convolution depends on; counts of values, but for ``item`` and ``sum_item``, bytes of a value."""

    nodes: int
    edges: int
    width: int
    item: int
    sum_item: int
    hidden: int  # of all groups, per edge
    splits: int  # programs that share a group's pairs in the gradient of h
    rows_in: int
    rows_node: int
    rows_out: int
    written: int  # messages, in all
    weights: int
    radial: tuple[int, int]  # values of R per edge, at m = 0 and at m > 0
    products: tuple[int, int]  # values of T per node, at m = 0 and at m > 0
    product_flop: int  # of T, per node
    frames: int  # values of the input degrees' Wigner blocks, per edge
    turns_in: int  # FLOP of the rotations per edge
    turns_out: int

    @staticmethod
    def of(plan: ConvolutionPlan, num_nodes: int, num_edges: int, width: int, dtype: torch.dtype, pool: bool) -> _Sizes:
        radial, products, product_flop = _pair_counts(plan, width)
        rows_in, rows_out = input_rows(plan), output_rows(plan)
        item = torch.empty((), dtype=dtype).element_size()
        return _Sizes(
            nodes=num_nodes,
            edges=num_edges,
            width=width,
            item=item,
            sum_item=max(item, 4),
            hidden=len(plan.groups) * width,
            splits=hidden_splits(num_edges, len(plan.groups)),
            rows_in=rows_in.count,
            rows_node=FeatureRows(plan.node_channels).count,
            rows_out=rows_out.count,
            written=rows_out.count * (num_nodes if pool else num_edges),
            weights=width * sum(radial),
            radial=radial,
            products=products,
            product_flop=product_flop,
            frames=sum((2 * degree + 1) ** 2 for degree, _ in plan.node_channels),
            turns_in=_turn_flop(rows_in),
            turns_out=_turn_flop(rows_out),
        )

    def angles(self, rows: int) -> int:
        """Bytes per edge of a rotation that reads and writes some rows: angles, the number of a node, and the rows."""
        return 4 * self.sum_item + 8 + 2 * rows * self.item


@cache
def _pair_counts(plan: ConvolutionPlan, width: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Values of R per edge and of T per node, at m = 0 and at m > 0, and FLOP of T per node."""
    radial, products, product_flop = [0, 0], [0, 0], 0
    for pair in pairs_of(plan, width):
        parities = 1 if pair.m == 0 else 2
        radial[pair.m > 0] += parities * pair.channels_in * pair.channels_out
        values = parities * (2 * pair.degree_in + 1) * width * pair.channels_out
        products[pair.m > 0] += values
        product_flop += 2 * pair.channels_in * values
    return (radial[0], radial[1]), (products[0], products[1]), product_flop


def _turn_flop(rows: FeatureRows) -> int:
    """The blocks are made where they are used: 4 (d+1) (2d+1)^2, and 2 (2d+1)^2 for each channel."""
    return sum((2 * degree + 1) ** 2 * (4 * (degree + 1) + 2 * channels) for degree, channels in rows.channels)


def _forward(sizes: _Sizes) -> Cost:
    even, odd = sizes.radial
    per_edge = sizes.angles(sizes.rows_in) + sizes.angles(0) + (sizes.rows_in + sizes.hidden + 2 * sizes.rows_out) * sizes.item
    return Cost(
        matrix_flop=sizes.edges * 2 * sizes.width * (even + odd),
        vector_flop=sizes.edges * (2 * even + 4 * odd + sizes.turns_in + sizes.turns_out),
        bytes=sizes.edges * per_edge + (sizes.written + sizes.weights) * sizes.item,
    )


def _backward(sizes: _Sizes) -> Cost:
    even, odd = sizes.radial
    rows = 3 * sizes.rows_out + 4 * sizes.rows_in  # g~ read by all three; x~ by two; dx~ written and read
    partial_sums = 2 * sizes.splits * sizes.hidden * sizes.item
    per_edge = sizes.angles(sizes.rows_out) + sizes.angles(0) + (rows + 3 * sizes.hidden) * sizes.item + partial_sums
    return Cost(
        matrix_flop=3 * sizes.edges * 2 * sizes.width * (even + odd),
        vector_flop=sizes.edges * (4 * even + 10 * odd + sizes.turns_in + sizes.turns_out),
        bytes=sizes.edges * per_edge + sizes.nodes * sizes.rows_node * sizes.item + 3 * sizes.weights * sizes.item,
    )


def _forward_by_source(sizes: _Sizes) -> Cost:
    even, odd = sizes.products
    values = sizes.nodes * (even + odd)
    per_edge = sizes.angles(0) + 8 + (2 * sizes.frames + sizes.hidden + 2 * sizes.rows_out) * sizes.item + sizes.angles(0)
    in_all = sizes.written + sizes.weights + sizes.nodes * sizes.rows_node + 2 * values
    return Cost(
        matrix_flop=sizes.nodes * sizes.product_flop + sizes.edges * 2 * (even + odd),
        vector_flop=sizes.edges * ((2 * even + 4 * odd) // sizes.width + sizes.turns_out),
        bytes=sizes.edges * per_edge + in_all * sizes.item,
    )


def _backward_by_source(sizes: _Sizes) -> Cost:
    even, odd = sizes.products
    values = sizes.nodes * (even + odd)
    rows = 2 * sizes.rows_out + 3 * sizes.frames + 2 * sizes.hidden
    per_edge = sizes.angles(sizes.rows_out) + 8 + rows * sizes.item + sizes.angles(0)
    in_all = 2 * sizes.weights + 2 * sizes.nodes * sizes.rows_node + 5 * values  # T written and read, dT written and read twice
    return Cost(
        matrix_flop=3 * sizes.nodes * sizes.product_flop + 2 * sizes.edges * 2 * (even + odd),
        vector_flop=sizes.edges * (2 * (even + 3 * odd) // sizes.width + sizes.turns_out),
        bytes=sizes.edges * per_edge + in_all * sizes.item + sizes.weights * sizes.sum_item,
    )
