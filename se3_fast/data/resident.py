"""Molecules kept on the device that computes, from which batches are put together there.

A batch is made by index operations from the numbers of its molecules, with no loop over them and without waiting for the device:
the host knows every molecule's size. The edges by destination and by source, which the operations read, are sorted once for the
whole data set; those of a batch are looked up.

A batch may be padded to given numbers of nodes and edges, so that a recorded sequence of kernels fits many batches: one more graph
follows the molecules, whose nodes have the attributes of some atoms and whose edges join a node to itself along the z axis. It
shares no node with a molecule; its own results are to be dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from se3_fast.data.molecules import Molecules, first_of_each
from se3_fast.graph import EdgeOrder, Graph

PADDED_SIZES = 24
"""Batches are padded to multiples of a usual batch divided by this: few sizes, and little more to compute."""


class NumberedBatch(NamedTuple):
    """Which molecules make a batch, before it is assembled.

    Attributes:
        numbers: [B] int64, on the device of the molecules.
        num_nodes: their atoms in all.
        num_edges: their edges in all.
    """

    numbers: Tensor
    num_nodes: int
    num_edges: int


class AssembledMolecules(NamedTuple):
    """Molecules as one graph.

    Attributes:
        graph: with ``ndata['pos']`` [N, 3] and ``edata['rel_pos']`` [E, 3]; its edges are known by destination and by source.
        node_attr: [N, 6] as stored.
        edge_attr: [E, 4] as stored.
        edges: [E] int64, the edges' numbers in the data set.
        targets: [B], or [B, P] of several tasks.
    """

    graph: Graph
    node_attr: Tensor
    edge_attr: Tensor
    edges: Tensor
    targets: Tensor


class ResidentMolecules:
    """A data set on a device.

    Args:
        molecules: the whole data set; copied to the device unless it is there.
        device: where batches are put together.

    Attributes:
        n_node: [M] int64 on the host, atoms of each molecule.
        n_edge: [M] int64 on the host, edges of each molecule.
        has_zero_length_edges: whether two atoms that are joined stand at the same place.
    """

    def __init__(self, molecules: Molecules, device: torch.device | str = "cpu") -> None:
        self.n_node, self.n_edge = molecules.n_node.cpu(), molecules.n_edge.cpu()
        self._molecules = molecules.to(device)
        src, dst = _edges_of_all(self._molecules)
        pos = self._molecules.node_pos
        self.has_zero_length_edges = bool((pos[dst] == pos[src]).all(1).any())
        self._by_destination = _StoredOrder.of(dst, self._molecules)
        self._by_source = _StoredOrder.of(src, self._molecules)
        self._first_node = first_of_each(self._molecules.n_node)  # [M]
        self._first_edge = first_of_each(self._molecules.n_edge)  # [M]

    @property
    def device(self) -> torch.device:
        """Where the molecules are."""
        return self._molecules.numbers.device

    def relative_positions(self) -> Tensor:
        """Those of all edges of the data set, [E, 3]."""
        src, dst = _edges_of_all(self._molecules)
        return self._molecules.node_pos[dst] - self._molecules.node_pos[src]

    def assemble(self, batch: NumberedBatch, is_padded: bool = False) -> AssembledMolecules:
        """Put molecules together.

        Args:
            batch: its ``num_nodes`` and ``num_edges`` are what the molecules have, or more if ``is_padded``; then at least one node
                more if there is any edge more.
            is_padded: add the graph of padding nodes and edges, also where there are none.
        """
        everything, (numbers, num_nodes, num_edges) = self._molecules, batch
        nodes = _Rows.of(self._first_node[numbers], everything.n_node[numbers], num_nodes, is_padded)
        edges = _Rows.of(self._first_edge[numbers], everything.n_edge[numbers], num_edges, is_padded)
        if is_padded:
            nodes, edges = nodes.within_stored(everything.node_pos.shape[0]), edges.within_stored(everything.src.shape[0])
        src, dst = everything.src[edges.stored].long(), everything.dst[edges.stored].long()  # [E]
        by_destination = self._by_destination.of_batch(nodes, edges)
        by_source = self._by_source.of_batch(nodes, edges)
        if is_padded:
            padding = _Padding(nodes, edges)
            src, dst = padding.ends(src), padding.ends(dst)
            by_destination, by_source = padding.order(*by_destination), padding.order(*by_source)
        first_node = nodes.first[edges.owner]  # [E]
        src, dst = src + first_node, dst + first_node
        pos = everything.node_pos[nodes.stored]
        rel_pos = pos[dst] - pos[src]
        graph = Graph.from_orders(
            src,
            dst,
            incoming=_with_offsets(*by_destination),
            outgoing=_with_offsets(*by_source),
            batch_num_nodes=nodes.counts,
            batch_num_edges=edges.counts,
            ndata={"pos": pos},
            edata={"rel_pos": padding.along_z(rel_pos) if is_padded else rel_pos},
        )
        targets = everything.targets[numbers]
        return AssembledMolecules(
            graph, everything.node_attr[nodes.stored], everything.edge_attr[edges.stored], edges.stored, targets
        )


class _Rows(NamedTuple):
    """The nodes, or edges, of a batch.

    Attributes:
        counts: [B] how many each graph has.
        first: [B] the first of each graph in the batch.
        owner: [n] the graph of each.
        within: [n] its place in its graph.
        stored: [n] its row in the data set.
    """

    counts: Tensor
    first: Tensor
    owner: Tensor
    within: Tensor
    stored: Tensor

    @staticmethod
    def of(first_stored: Tensor, counts: Tensor, total: int, is_padded: bool) -> _Rows:
        if is_padded:
            counts = torch.cat([counts, total - counts.sum(0, keepdim=True)])
            first_stored = torch.cat([first_stored, first_stored.new_zeros(1)])
        first = first_of_each(counts)
        graphs = torch.arange(counts.shape[0], device=counts.device)
        owner = graphs.repeat_interleave(counts, output_size=total)
        within = torch.arange(total, device=counts.device) - first[owner]
        return _Rows(counts, first, owner, within, first_stored[owner] + within)

    def within_stored(self, count: int) -> _Rows:
        """The same where padding may want more rows than the ``count`` that the data set has."""
        return self._replace(stored=self.stored.clamp(max=count - 1))


class _StoredOrder(NamedTuple):
    """All edges of the data set by one of their end nodes.

    Attributes:
        edge: [E] at each place of a molecule's edges in that order, the edge's number in the molecule.
        degree: [N] edges of each node.
    """

    edge: Tensor
    degree: Tensor

    @staticmethod
    def of(node_of_edge: Tensor, molecules: Molecules) -> _StoredOrder:
        order = node_of_edge.argsort(stable=True)
        first_edge = first_of_each(molecules.n_edge).repeat_interleave(molecules.n_edge)  # [E]
        degree = node_of_edge.bincount(minlength=molecules.node_pos.shape[0])
        return _StoredOrder((order - first_edge).to(torch.int32), degree.to(torch.int32))

    def of_batch(self, nodes: _Rows, edges: _Rows) -> tuple[Tensor, Tensor]:
        """The order of a batch's edges, [E] int64, and the edges of each node, [N] int64."""
        return self.edge[edges.stored] + edges.first[edges.owner], self.degree[nodes.stored].long()


class _Padding:
    """The graph that follows the molecules: its edges in order, spread evenly over its nodes, each from a node to itself."""

    def __init__(self, nodes: _Rows, edges: _Rows) -> None:
        last = nodes.counts.shape[0] - 1
        self._num_nodes, self._num_edges = nodes.counts[last], edges.counts[last]
        self._has_node, self._has_edge = nodes.owner == last, edges.owner == last
        self._nodes, self._edges = nodes, edges

    def ends(self, end: Tensor) -> Tensor:
        """The node of each edge, counted in its graph, [E]."""
        node = self._edges.within * self._num_nodes // self._num_edges.clamp(min=1)
        return torch.where(self._has_edge, node, end)

    def order(self, order: Tensor, degree: Tensor) -> tuple[Tensor, Tensor]:
        """The order of the edges [E] and the edges of each node [N]."""
        place = torch.arange(order.shape[0], device=order.device)
        bound = self._num_nodes.clamp(min=1)
        first, stop = (-(-(self._nodes.within + end) * self._num_edges // bound) for end in (0, 1))
        return torch.where(self._has_edge, place, order), torch.where(self._has_node, stop - first, degree)

    def along_z(self, rel_pos: Tensor) -> Tensor:
        """Relative positions [E, 3] with a direction for every edge."""
        axis = torch.arange(3, device=rel_pos.device) == 2
        return torch.where(self._has_edge[:, None], axis.to(rel_pos.dtype), rel_pos)


def _with_offsets(order: Tensor, degree: Tensor) -> EdgeOrder:
    return EdgeOrder(order, torch.cat([degree.new_zeros(1), degree.cumsum(0)]))


def _edges_of_all(molecules: Molecules) -> tuple[Tensor, Tensor]:
    """Source and destination of every edge, [E] int64, counted over all molecules."""
    first_atom = first_of_each(molecules.n_node).repeat_interleave(molecules.n_edge)  # [E]
    return molecules.src + first_atom, molecules.dst + first_atom


def device_with_room(molecules: Molecules, device: torch.device | str, frame_values: int = 0) -> torch.device:
    """The device if molecules, with as many values of each edge's frame, take at most half of its free memory; else the host."""
    device = torch.device(device)
    if device.type != "cuda":
        return device
    stored = sum(getattr(molecules, field.name).nbytes for field in fields(molecules))
    orders = 8 * (molecules.src.shape[0] + molecules.node_pos.shape[0])
    frames = 4 * frame_values * molecules.src.shape[0]
    free, _ = torch.cuda.mem_get_info(device)
    return device if stored + orders + frames <= free // 2 else torch.device("cpu")


def _pinned(batch: Any) -> Any:
    """A batch in page-locked host memory, from which copies to a device do not wait."""
    if isinstance(batch, dict):
        return {name: value.pin_memory() for name, value in batch.items()}
    return tuple(map(_pinned, batch)) if isinstance(batch, tuple) else batch.pin_memory()


class Sampler(Protocol):
    """Which samples a process takes, and in which order."""

    def __len__(self) -> int:
        """How many they are."""

    def order(self) -> np.ndarray:
        """The sample numbers, [n] int64."""


class ResidentLoader:
    """The batches of a part of a data set; what a DataLoader is for data sets that are not resident.

    Args:
        molecules: the whole data set.
        numbers: [n] int64 on the host, the molecules of the part.
        sampler: the order, for this process.
        batch_size: molecules of a batch; the last one may have fewer.
        finish: makes the batch of assembled molecules; told also whether they are padded.

    Attributes:
        sampler: as given; ``sampler.set_epoch`` chooses the order of training.
    """

    def __init__(
        self,
        molecules: ResidentMolecules,
        numbers: Tensor,
        sampler: Sampler,
        batch_size: int,
        finish: Callable[[AssembledMolecules, bool], tuple[Any, ...]],
    ) -> None:
        self.molecules = molecules
        self.sampler = sampler
        self.batch_size = batch_size
        self._numbers = numbers
        self._finish = finish
        share = min(batch_size, len(numbers)) / max(len(numbers), 1) / PADDED_SIZES
        self._unit_nodes, self._unit_edges = (
            max(1, math.ceil(int(counts[numbers].sum()) * share)) for counts in (molecules.n_node, molecules.n_edge)
        )

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield the batches."""
        is_pinned = torch.cuda.is_available() and self.molecules.device.type == "cpu"
        for numbered in self.numbered_batches():
            batch = self.assemble(numbered)
            yield _pinned(batch) if is_pinned else batch

    def numbered_batches(self) -> Iterator[NumberedBatch]:
        """Yield the batches before they are assembled."""
        order = self._numbers[torch.from_numpy(self.sampler.order())]
        if len(order) == 0:
            return
        starts = np.arange(0, len(order), self.batch_size)
        num_nodes, num_edges = (
            np.add.reduceat(counts[order].numpy(), starts).tolist() for counts in (self.molecules.n_node, self.molecules.n_edge)
        )
        on_device = order.to(self.molecules.device)
        yield from map(NumberedBatch, on_device.split(self.batch_size), num_nodes, num_edges)

    def assemble(self, batch: NumberedBatch, is_padded: bool = False) -> tuple[Any, ...]:
        """The batch of some molecules, see :meth:`ResidentMolecules.assemble`."""
        return self._finish(self.molecules.assemble(batch, is_padded), is_padded)

    def padded_size(self, batch: NumberedBatch) -> tuple[int, int]:
        """The nodes and edges that a batch is padded to: the least that hold it of sizes a share of a usual batch apart."""
        steps = max(-(-(batch.num_nodes + 1) // self._unit_nodes), -(-batch.num_edges // self._unit_edges))
        return steps * self._unit_nodes, steps * self._unit_edges
