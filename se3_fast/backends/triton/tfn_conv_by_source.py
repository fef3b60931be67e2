"""The launches of the Triton convolution contracted by source node (``kernels/tfn_conv_by_source.py``), and when to take them.

T of all nodes would not fit: nodes are taken in chunks, in their order, whose T fits a buffer. The weights are one block per input
degree, [C_in, columns of T], with the columns of all radial groups side by side: T of a chunk is one matrix product per degree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain, pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant, made_beside
from se3_fast.backends.torch import tfn_conv as aligned
from se3_fast.backends.torch.tfn_conv import orders
from se3_fast.backends.triton.tfn_conv import FeatureRows, Launches, cost, output_rows
from se3_fast.contraction import ConvolutionPlan
from se3_fast.graph import EdgeOrder, Graph
from se3_fast.kernels import tfn_conv_by_source as kernels

BUFFER_BYTES = 64 << 20
"""Largest T of a chunk of nodes: about a second-level cache, so that most of it is read back from there."""

FLOP_PER_BYTE = {torch.float16: 150, torch.bfloat16: 150, torch.float32: 20, torch.float64: 10}
"""Operations of matrix products that take as long as one byte, from an H100's data sheet (989, 67 and 34 TFLOP/s; 3.35 TB/s) and
not measured: half the matrix unit's peak in half precision and that of the ordinary cores otherwise, over the bandwidth."""

TF32_FLOP_PER_BYTE = 75
"""The same where PyTorch is told that TF32 will do for float32."""

VECTOR_FLOP_PER_BYTE = 20
"""The same for all other arithmetic."""


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


class PairTables(NamedTuple):
    """What the launches read, each at m = 0 and at m > 0.

    Attributes:
        outputs: items are output degrees at an order.
        frames: items are input degrees at an order.
        groups: no items; pairs by radial group.
        spans: [groups, 2] int64, the pairs of each group in ``groups``.
    """

    outputs: list[kernels.PairTable]
    frames: list[kernels.PairTable]
    groups: list[kernels.PairTable]
    spans: list[Tensor]


def is_by_source_faster(plan: ConvolutionPlan, num_nodes: int, num_edges: int, width: int, dtype: torch.dtype) -> bool:
    """Choose the contraction order by the time of a training step, as if arithmetic and memory took turns.

    Counting multiply-adds alone, as backend ``torch`` does, would take the order by source from 6 edges per node on at 4 degrees
    and 32 channels. But T goes through memory, and a matrix unit does 150 FLOP in the time of a byte: R, which never leaves the
    chip, is cheaper there up to about 35 edges per node in half precision and 17 in float32. At the shapes of ``protein_*`` the
    order changes between 7 and 52 edges per node. Edge features of degree > 0 belong to edges, so they are contracted by edge.
    """
    if plan.edge_channels:
        return False
    is_tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return _is_faster(plan, num_nodes, num_edges, width, dtype, is_tf32)


@lru_cache(maxsize=1024)
def _is_faster(plan: ConvolutionPlan, num_nodes: int, num_edges: int, width: int, dtype: torch.dtype, is_tf32: bool) -> bool:
    flop_per_byte = TF32_FLOP_PER_BYTE if is_tf32 else FLOP_PER_BYTE[dtype]
    by_edge, by_source = (
        sum(
            part.matrix_flop / flop_per_byte + part.vector_flop / VECTOR_FLOP_PER_BYTE + part.bytes
            for part in cost(plan, num_nodes, num_edges, width, dtype, is_by_source)
        )
        for is_by_source in (False, True)
    )
    return by_source < by_edge


def weight_blocks(plan: ConvolutionPlan, weights: Sequence[Tensor]) -> list[Tensor]:
    """The aligned weights of each input degree, [C_in, columns of T], from the published weight of each group. Differentiable."""
    by_degree: dict[int, list[Tensor]] = {degree: [] for degree, _ in plan.node_channels}
    for group, weight in zip(plan.groups, weights, strict=True):
        for degree, block in zip(group.degrees_in, aligned.weight_blocks(group, weight, is_by_source=True), strict=True):
            by_degree[degree].append(block)
    return [torch.cat(blocks, 1) for blocks in by_degree.values()]


def aligned_of_blocks(plan: ConvolutionPlan, blocks: Sequence[Tensor], width: int) -> list[Tensor]:
    """The aligned weights of each group, [aligned, C_in, K, C_out], from what :func:`weight_blocks` made; ``width`` is K."""
    by_group: list[list[Tensor]] = [[] for _ in plan.groups]
    for (degree, _), block in zip(plan.node_channels, blocks, strict=True):
        present = [number for number, group in enumerate(plan.groups) if degree in group.degrees_in]
        counts = [len(aligned.rows_of_input(plan.groups[number], degree, block.device)) for number in present]
        widths = [count * width * plan.groups[number].channels_out for number, count in zip(present, counts, strict=True)]
        for number, count, part in zip(present, counts, block.split(widths, 1), strict=True):
            by_group[number].append(part.unflatten(1, (width, count, -1)).permute(2, 0, 1, 3))
    results = []
    for group, parts in zip(plan.groups, by_group, strict=True):
        rows = torch.cat([aligned.rows_of_input(group, degree, parts[0].device) for degree in group.degrees_in])
        results.append(torch.cat(parts).index_select(0, rows.argsort()))
    return results


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
        found: list[tuple[int, int, int, int, int, tuple[int, int, int]]] = []
        length = 0
        for index, group in enumerate(plan.groups):
            if degree_in not in group.degrees_in:
                continue
            chosen = [order for order in orders(group) if degree_in in order.degrees_in]
            step = sum(order.num_parities * len(order.degrees_out) for order in chosen) * group.channels_out
            place = length
            for order in chosen:
                parity_step = len(order.degrees_out) * group.channels_out
                for degree_out in order.degrees_out:
                    columns = (step, place, place + parity_step)
                    found.append((index, order.m, degree_in, degree_out, group.channels_out, columns))
                    place += group.channels_out
                place += (order.num_parities - 1) * parity_step
            length += width * step
        for group_index, m, degree, degree_out, channels, (step, even, odd) in found:
            pairs.append(SourcePair(group_index, m, degree, degree_out, channels, start, length, step, even, odd))
        start += (2 * degree_in + 1) * length
    return tuple(pairs)


@cache
def values_per_node(plan: ConvolutionPlan, width: int) -> int:
    """Values of T of one node."""
    return sum((2 * pair.degree_in + 1) * width * pair.channels * (1 if pair.m == 0 else 2) for pair in source_pairs(plan, width))


@constant
def pair_tables(plan: ConvolutionPlan, width: int, device: torch.device) -> PairTables:
    """The pairs for all launches."""
    rows_frame, rows_out = frame_rows(plan), output_rows(plan)
    channels_out = dict(plan.channels_out)
    tables = PairTables([], [], [], [])
    for has_odd in (False, True):
        pairs = [pair for pair in source_pairs(plan, width) if (pair.m > 0) == has_odd]
        channels = max((pair.channels for pair in pairs), default=max(channels_out.values()))
        sizes = (channels, has_odd)

        def table(items: list[list[int]], ordered: list[SourcePair], sizes: tuple[int, bool]) -> kernels.PairTable:
            rows = [_pair_row(pair, rows_frame, rows_out) for pair in ordered]
            slices = {block: _table(_slices(ordered, block), 2, device) for block in kernels.COMPONENT_BLOCKS}
            return kernels.PairTable(_table(rows, 12, device), _table(items, 5, device), slices, *sizes)

        by_group = sorted(pairs, key=lambda pair: pair.group)
        counts = [sum(pair.group == index for pair in pairs) for index in range(len(plan.groups))]
        tables.groups.append(table([], by_group, sizes))
        tables.spans.append(_table(_bounds(counts), 2, device))
        # Every component has an item, also one that nothing reaches: the kernels write its zeros.
        targets = _targets([degree for degree, _ in plan.channels_out], has_odd)
        by_output = [[pair for pair in pairs if (pair.degree_out, pair.m) == target] for target in targets]
        items = _items(targets, by_output, rows_out)
        tables.outputs.append(table(items, list(chain(*by_output)), sizes))
        targets = _targets([degree for degree, _ in plan.node_channels], has_odd)
        by_input = [[pair for pair in pairs if (pair.degree_in, pair.m) == target] for target in targets]
        tables.frames.append(table(_items(targets, by_input, rows_frame), list(chain(*by_input)), sizes))
    return tables


def _pair_row(pair: SourcePair, rows_frame: FeatureRows, rows_out: FeatureRows) -> list[int]:
    of_frames = [rows_frame.row(pair.degree_in, pair.m), rows_frame.row(pair.degree_in, -pair.m), 2 * pair.degree_in + 1]
    of_outputs = [rows_out.row(pair.degree_out, pair.m), rows_out.row(pair.degree_out, -pair.m), pair.channels]
    return [pair.group, *of_frames, pair.start, pair.length, pair.step, *of_outputs, pair.even, pair.odd]


def _slices(pairs: list[SourcePair], block: int) -> list[list[int]]:
    return [[number, first] for number, pair in enumerate(pairs) for first in range(0, 2 * pair.degree_in + 1, block)]


def _targets(degrees: list[int], has_odd: bool) -> list[tuple[int, int]]:
    return [(degree, m) for degree in degrees for m in range(degree + 1) if (m > 0) == has_odd]


def _items(targets: list[tuple[int, int]], pairs: list[list[SourcePair]], rows: FeatureRows) -> list[list[int]]:
    bounds = _bounds([len(chosen) for chosen in pairs])
    return [
        [*bound, rows.row(degree, m), rows.row(degree, -m), dict(rows.channels)[degree]]
        for bound, (degree, m) in zip(bounds, targets, strict=True)
    ]


def _bounds(counts: list[int]) -> list[list[int]]:
    """First and one past the last of things that stand one after the other."""
    starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
    return [[start, stop] for start, stop in pairwise(starts)]


def _table(rows: list[list[int]], fields: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device).view(-1, fields)


class SourceOrder:
    """A graph's edges in the order of their source nodes.

    Attributes:
        graph: the same graph with its edges in this order.
        edges: [E] int64, the numbers that the edges have in the original.
        places: [E] int64, where an edge of the original stands in this order.
    """

    def __init__(self, graph: Graph) -> None:
        self.edges, offsets = graph.outgoing()
        in_order = torch.arange(graph.num_edges(), device=graph.device)
        self.places = torch.empty_like(self.edges).scatter_(0, self.edges, in_order)
        incoming = EdgeOrder(self.places[graph.incoming().order], graph.incoming().offsets)
        outgoing = EdgeOrder(in_order, offsets)
        self.graph = Graph.from_orders(graph.src[self.edges], graph.dst[self.edges], incoming, outgoing)
        self._tiles: dict[int, tuple[Tensor, Tensor]] = {}

    def tiles(self, size: int) -> tuple[Tensor, Tensor]:
        """The edges cut into tiles of one source and ``size`` edges at most; made at the first call and kept.

        Returns:
            tiles: [t, 2] int64, node and first place of each tile. Their number is a bound that needs no word from the device; the
                last ones may be empty.
            offsets: [N + 1] int64, the first tile of each node.
        """
        if size not in self._tiles:
            self._tiles[size] = made_beside(self.edges, lambda: self._make_tiles(size))
        return self._tiles[size]

    def _make_tiles(self, size: int) -> tuple[Tensor, Tensor]:
        num_nodes, num_edges = self.graph.num_nodes(), self.graph.num_edges()
        edge_offsets = self.graph.outgoing().offsets
        counts = (edge_offsets.diff() + size - 1) // size
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        number = torch.arange(num_edges // size + num_nodes, device=offsets.device)
        node = torch.searchsorted(offsets[1:], number, right=True)
        is_tile = node < num_nodes
        node = torch.where(is_tile, node, 0)
        first = torch.where(is_tile, edge_offsets[node] + (number - offsets[node]) * size, num_edges)
        return torch.stack([node, first], 1), offsets


_kept_orders: WeakKeyDictionary[Graph, SourceOrder] = WeakKeyDictionary()


def source_order(graph: Graph) -> SourceOrder:
    """The edges of a graph by source; made at the first call and kept as long as the graph."""
    if graph not in _kept_orders:
        _kept_orders[graph] = made_beside(graph.src, lambda: SourceOrder(graph))
    return _kept_orders[graph]


class SourceGradients(NamedTuple):
    """Gradients of a convolution contracted by source: of rel_pos where it was wanted, of h, of the weight blocks, of the nodes."""

    rel_pos: Tensor | None
    hidden: Tensor
    blocks: list[Tensor]
    features: list[Tensor]


class SourceLaunches:
    """The kernel launches of one convolution contracted by source. All tensors [rows, E] have the edges by source.

    Args:
        plan: what is coupled.
        order: the edges by source.
        angles: [4, E] of the edges' frames, the edges by source.
        pool: whether messages are summed over incoming edges.
        dtype: that of the features.
        keeps_frames: messages stay in the edges' frames, as one tensor [rows, E], and so do their gradients.

    Attributes:
        shared: what both orders share.
    """

    def __init__(
        self, plan: ConvolutionPlan, order: SourceOrder, angles: Tensor, pool: bool, dtype: torch.dtype, keeps_frames: bool = False
    ) -> None:
        self.plan = plan
        self.order = order
        self.graph = order.graph
        self.shared = Launches(plan, self.graph, angles, pool, dtype, order.edges, keeps_frames)
        self.rows_frame = frame_rows(plan)

    def contract(self, features: Sequence[Tensor], hidden: Tensor, blocks: Sequence[Tensor]) -> Tensor:
        """y~, [rows, E], from node features, h [groups, E, K] and the weight blocks."""
        messages = self.shared.empty(self.shared.rows_out.count, self.graph.num_edges())
        frames = self._frames()
        tables = pair_tables(self.plan, hidden.shape[2], hidden.device)
        for edges in self._chunks(hidden):
            products = self._products(features, blocks, edges, hidden.shape[2])
            kernels.contract(frames, hidden, products, edges, tables.outputs, messages)
        return messages

    def backward(
        self, features: Sequence[Tensor], hidden: Tensor, blocks: Sequence[Tensor], gradient: Tensor, rel_pos: Tensor | None
    ) -> SourceGradients:
        """All gradients, from that of y~; that of ``rel_pos`` [E, 3] unless it is None."""
        sums = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        hidden_gradient = torch.empty_like(hidden)
        block_gradients = [torch.zeros_like(block, dtype=sums) for block in blocks]
        feature_gradients = [torch.empty_like(feature) for feature in features]
        frames = self._frames()
        is_turning = rel_pos is not None and self.plan.max_degree > 0
        messages = self.shared.empty(self.shared.rows_out.count if is_turning else 0, self.graph.num_edges())
        frame_gradient = self.shared.empty(self.rows_frame.count if is_turning else 0, self.graph.num_edges())
        tables = pair_tables(self.plan, hidden.shape[2], hidden.device)
        for edges in self._chunks(hidden):
            products = self._products(features, blocks, edges, hidden.shape[2])
            kernels.hidden_gradient(frames, gradient, products, edges, tables.groups, tables.spans, hidden_gradient)
            if is_turning:
                kernels.contract(frames, hidden, products, edges, tables.outputs, messages)
                kernels.frame_gradient(gradient, hidden, products, edges, tables.frames, frame_gradient)
            # T is not needed any more: its gradient takes its place.
            kernels.product_gradient(frames, gradient, hidden, edges, tables.groups, products)
            self._add_gradients(features, blocks, edges, products, block_gradients, feature_gradients)
        rel_pos_gradient = None
        if is_turning and rel_pos is not None:
            turned = (gradient, messages, frame_gradient, frames, self.rows_frame)
            rel_pos_gradient = self.shared.position_gradient(rel_pos[self.order.edges], *turned)[self.order.places]
        elif rel_pos is not None:
            rel_pos_gradient = torch.zeros_like(rel_pos)
        of_blocks = [total.to(block.dtype) for total, block in zip(block_gradients, blocks, strict=True)]
        return SourceGradients(rel_pos_gradient, hidden_gradient, of_blocks, feature_gradients)

    def _frames(self) -> Tensor:
        """Columns of the Wigner blocks of the input degrees, [rows, E]."""
        frames = self.shared.empty(self.rows_frame.count, self.graph.num_edges())
        for degree, _ in self.plan.node_channels:
            kernels.frames(self.shared.angles, self.shared.wigner_table(degree), degree, frames, self.rows_frame.starts[degree])
        return frames

    def _chunks(self, hidden: Tensor) -> list[kernels.NodeEdges]:
        """The nodes in chunks whose T fits the buffer. One chunk asks nothing of the device; several wait for it once."""
        num_nodes, num_edges = self.graph.num_nodes(), self.graph.num_edges()
        size = max(1, BUFFER_BYTES // (values_per_node(self.plan, hidden.shape[2]) * hidden.element_size()))
        bounds = [*range(0, num_nodes, size), num_nodes]
        tile_edges = kernels.tile_edges(hidden.dtype, num_edges / max(num_nodes, 1))
        tiles, tile_offsets = self.order.tiles(tile_edges)
        places = tile_offsets[bounds].tolist() if len(bounds) > 2 else [0, len(tiles)]
        offsets = self.graph.outgoing().offsets
        return [
            kernels.NodeEdges(self.order.edges, offsets, tiles[first:last], start, stop - start, tile_edges)
            for (start, stop), (first, last) in zip(pairwise(bounds), pairwise(places), strict=True)
        ]

    def _products(self, features: Sequence[Tensor], blocks: Sequence[Tensor], edges: kernels.NodeEdges, width: int) -> Tensor:
        """T of some nodes: by input degree [nodes, 2d+1, columns], one after the other."""
        products = self.shared.empty(edges.num_nodes * values_per_node(self.plan, width))
        start = 0
        for feature, block in zip(features, blocks, strict=True):
            rows = _component_rows(feature, edges)
            stop = start + len(rows) * block.shape[1]
            torch.mm(rows, block, out=products[start:stop].view(len(rows), block.shape[1]))
            start = stop
        return products

    def _add_gradients(
        self,
        features: Sequence[Tensor],
        blocks: Sequence[Tensor],
        edges: kernels.NodeEdges,
        product_gradient: Tensor,
        block_gradients: list[Tensor],
        feature_gradients: list[Tensor],
    ) -> None:
        """What the gradient of T of some nodes gives to those of the weight blocks and of these nodes' features."""
        start = 0
        for feature, block, of_block, of_feature in zip(features, blocks, block_gradients, feature_gradients, strict=True):
            rows = _component_rows(feature, edges)
            stop = start + len(rows) * block.shape[1]
            part = product_gradient[start:stop].view(len(rows), block.shape[1])
            of_block += rows.T @ part
            of_rows = (part @ block.T).unflatten(0, (edges.num_nodes, feature.shape[2]))  # [nodes, 2d+1, C]
            of_feature[edges.first_node : edges.first_node + edges.num_nodes] = of_rows.transpose(1, 2)
            start = stop


def _component_rows(feature: Tensor, edges: kernels.NodeEdges) -> Tensor:
    """Features of some nodes, [nodes * (2d+1), C]."""
    return feature[edges.first_node : edges.first_node + edges.num_nodes].transpose(1, 2).flatten(0, 1)
