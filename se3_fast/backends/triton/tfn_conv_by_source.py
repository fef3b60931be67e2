"""The launches of the Triton convolution contracted by source node (``kernels/tfn_conv_by_source.py``).

T of all nodes would not fit: nodes are taken in chunks, in their order, whose T fits a buffer. The weights are one block per input
degree, [C_in, columns of T], with the columns of all radial groups side by side: T of a chunk is one matrix product per degree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant, made_beside
from se3_fast.backends.launch_tables import (
    SourcePair,
    by_degree,
    by_group,
    component_slices,
    frame_rows,
    int64_table,
    source_pair_row,
    source_pairs,
    values_per_node,
)
from se3_fast.backends.triton.tfn_conv_by_edge import Launches, WithGradient
from se3_fast.contraction import ConvolutionPlan, output_rows
from se3_fast.graph import EdgeOrder, Graph
from se3_fast.kernels import tfn_conv_by_source as kernels
from se3_fast.kernels.table_rows import Item, SourcePairRow

BUFFER_BYTES = 64 << 20
"""Largest T of a chunk of nodes: about a second-level cache, so that most of it is read back from there."""


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


@constant
def pair_tables(plan: ConvolutionPlan, width: int, device: torch.device) -> PairTables:
    """The pairs for all launches."""
    tables = PairTables([], [], [], [])
    for has_odd in (False, True):
        pairs = [pair for pair in source_pairs(plan, width) if (pair.m > 0) == has_odd]
        channels = max((pair.channels for pair in pairs), default=max(dict(plan.channels_out).values()))

        def table(items: Sequence[Item], ordered: Sequence[SourcePair], channels: int, has_odd: bool) -> kernels.PairTable:
            rows = int64_table([source_pair_row(plan, pair) for pair in ordered], SourcePairRow, device)
            slices = {block: int64_table(component_slices(ordered, block), 2, device) for block in kernels.COMPONENT_BLOCKS}
            return kernels.PairTable(rows, int64_table(items, Item, device), slices, channels, has_odd)

        sizes = (channels, has_odd)
        spans, in_groups = by_group(pairs, len(plan.groups))
        tables.spans.append(int64_table(spans, 2, device))
        tables.groups.append(table([], in_groups, *sizes))
        tables.outputs.append(table(*by_degree(pairs, output_rows(plan), has_odd, of_outputs=True), *sizes))
        tables.frames.append(table(*by_degree(pairs, frame_rows(plan), has_odd, of_outputs=False), *sizes))
    return tables


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
        messages = self.shared.empty_rows(self.shared.rows_out)
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
        messages = self.shared.empty_rows(self.shared.rows_out) if is_turning else frames  # else not used, as what follows
        frame_gradient = self.shared.empty_rows(self.rows_frame) if is_turning else frames
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
            outputs = WithGradient(messages, gradient, self.shared.rows_out)
            columns = WithGradient(frames, frame_gradient, self.rows_frame)
            rel_pos_gradient = self.shared.position_gradient(rel_pos[self.order.edges], outputs, columns)[self.order.places]
        elif rel_pos is not None:
            rel_pos_gradient = torch.zeros_like(rel_pos)
        of_blocks = [total.to(block.dtype) for total, block in zip(block_gradients, blocks, strict=True)]
        return SourceGradients(rel_pos_gradient, hidden_gradient, of_blocks, feature_gradients)

    def _frames(self) -> Tensor:
        """Columns of the Wigner blocks of the input degrees, [rows, E]."""
        frames = self.shared.empty_rows(self.rows_frame)
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
