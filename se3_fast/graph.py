"""Graph: directed edges between nodes, batched; builders from positions; adapters from DGL and PyTorch Geometric.

Convention (that of the published QM9 data): an edge points from its source to its destination, and
``graph.edata['rel_pos'] = pos[dst] - pos[src]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class EdgeOrder(NamedTuple):
    """Edges grouped by one of their end nodes (compressed sparse rows).

    Attributes:
        order: [E] int64; edge numbers, those of node 0 first; edges of one node keep their order.
        offsets: [N + 1] int64; the edges of node n are ``order[offsets[n]:offsets[n + 1]]``.
    """

    order: Tensor
    offsets: Tensor


class Graph:
    """A batch of directed graphs.

    Args:
        src: [E] int64, source node of each edge.
        dst: [E] int64, destination node of each edge.
        num_nodes: number of nodes N of the whole batch.
        batch_num_nodes: [B] nodes of each graph (nodes of graph 0 first); default: one graph.
        batch_num_edges: [B] edges of each graph (edges of graph 0 first); default: one graph.
        ndata: node data, tensors whose first axis is N (for example ``pos`` [N, 3], in Angstrom for molecules).
        edata: edge data, tensors whose first axis is E (``rel_pos`` [E, 3] is what the models read).

    Raises:
        TypeError: if ``src`` or ``dst`` is not an integer tensor.
        ValueError: if sizes disagree or an edge names a node that does not exist (checked for tensors on the CPU).
    """

    def __init__(
        self,
        src: Tensor,
        dst: Tensor,
        num_nodes: int,
        batch_num_nodes: Tensor | Sequence[int] | None = None,
        batch_num_edges: Tensor | Sequence[int] | None = None,
        ndata: dict[str, Tensor] | None = None,
        edata: dict[str, Tensor] | None = None,
    ) -> None:
        self._num_nodes = num_nodes if isinstance(num_nodes, torch.SymInt) else int(num_nodes)
        _check_edges(src, dst, self._num_nodes)
        self.src = src.long()
        self.dst = dst.long()
        self._batch_num_nodes = _batch_sizes("batch_num_nodes", batch_num_nodes, self._num_nodes, src.device)
        self._batch_num_edges = _batch_sizes("batch_num_edges", batch_num_edges, src.shape[0], src.device)
        if self._batch_num_nodes.shape != self._batch_num_edges.shape:
            raise ValueError(
                f"batch_num_edges: expected {len(self._batch_num_nodes)} graphs as in batch_num_nodes, "
                f"got {len(self._batch_num_edges)}"
            )
        self.ndata = dict(ndata or {})
        self.edata = dict(edata or {})
        self._incoming: EdgeOrder | None = None
        self._outgoing: EdgeOrder | None = None
        self._sources: tuple[Tensor, list[int]] | None = None

    @staticmethod
    def from_orders(
        src: Tensor,
        dst: Tensor,
        incoming: EdgeOrder,
        outgoing: EdgeOrder,
        batch_num_nodes: Tensor | None = None,
        batch_num_edges: Tensor | None = None,
        ndata: dict[str, Tensor] | None = None,
        edata: dict[str, Tensor] | None = None,
    ) -> Graph:
        """A graph of which all is known that the operations read, taken as it is: nothing is checked, no device waited for.

        Without the sizes of a batch only the operations can take it, no layer that pools.
        """
        graph = object.__new__(Graph)
        graph.src, graph.dst = src, dst
        graph._num_nodes = incoming.offsets.shape[0] - 1
        graph._batch_num_nodes = src.new_empty(0) if batch_num_nodes is None else batch_num_nodes
        graph._batch_num_edges = src.new_empty(0) if batch_num_edges is None else batch_num_edges
        graph.ndata, graph.edata = dict(ndata or {}), dict(edata or {})
        graph._incoming, graph._outgoing, graph._sources = incoming, outgoing, None
        return graph

    @property
    def device(self) -> torch.device:
        """The device that the edges are on."""
        return self.src.device

    @property
    def batch_size(self) -> int:
        """Number of graphs in the batch."""
        return self._batch_num_nodes.shape[0]

    def num_nodes(self) -> int:
        """Number of nodes of the whole batch."""
        return self._num_nodes

    def num_edges(self) -> int:
        """Number of edges of the whole batch."""
        return self.src.shape[0]

    def number_of_nodes(self) -> int:
        """As :meth:`num_nodes`."""
        return self.num_nodes()

    def number_of_edges(self) -> int:
        """As :meth:`num_edges`."""
        return self.num_edges()

    def nodes(self) -> Tensor:
        """[N] int64, the numbers of all nodes."""
        return torch.arange(self._num_nodes, device=self.device)

    def edges(self) -> tuple[Tensor, Tensor]:
        """``(src, dst)``, each [E] int64."""
        return self.src, self.dst

    def batch_num_nodes(self) -> Tensor:
        """[B] int64, nodes of each graph."""
        return self._batch_num_nodes

    def batch_num_edges(self) -> Tensor:
        """[B] int64, edges of each graph."""
        return self._batch_num_edges

    def in_degrees(self) -> Tensor:
        """[N] int64, number of incoming edges of each node."""
        return self.incoming().offsets.diff()

    def out_degrees(self) -> Tensor:
        """[N] int64, number of outgoing edges of each node."""
        return self.outgoing().offsets.diff()

    def incoming(self) -> EdgeOrder:
        """Edges grouped by destination; made at the first call and kept."""
        if self._incoming is None:
            self._incoming = _group_by(self.dst, self._num_nodes)
        return self._incoming

    def outgoing(self) -> EdgeOrder:
        """Edges grouped by source; made at the first call and kept."""
        if self._outgoing is None:
            self._outgoing = _group_by(self.src, self._num_nodes)
        return self._outgoing

    def sources_by_out_degree(self) -> tuple[Tensor, list[int]]:
        """Nodes that have outgoing edges, those with most first, and their out-degrees; made at the first call and kept."""
        if self._sources is None:
            out_degrees, nodes = self.out_degrees().sort(descending=True, stable=True)
            counts = out_degrees[out_degrees > 0].tolist()
            self._sources = (nodes[: len(counts)], counts)
        return self._sources

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Graph:
        """This graph with all its tensors on ``device`` (itself if they are there already)."""
        if torch.device(device) == self.device:
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Graph:
        """This graph in page-locked host memory (what a DataLoader with ``pin_memory=True`` calls)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> Graph:
        mapped = object.__new__(Graph)
        mapped.src, mapped.dst = function(self.src), function(self.dst)
        mapped._num_nodes = self._num_nodes
        mapped._batch_num_nodes = function(self._batch_num_nodes)
        mapped._batch_num_edges = function(self._batch_num_edges)
        mapped.ndata = {name: function(tensor) for name, tensor in self.ndata.items()}
        mapped.edata = {name: function(tensor) for name, tensor in self.edata.items()}
        mapped._incoming = EdgeOrder(*map(function, self._incoming)) if self._incoming else None
        mapped._outgoing = EdgeOrder(*map(function, self._outgoing)) if self._outgoing else None
        mapped._sources = (function(self._sources[0]), self._sources[1]) if self._sources else None
        return mapped

    def __repr__(self) -> str:
        return (
            f"Graph(num_nodes={self._num_nodes}, num_edges={self.num_edges()}, batch_size={self.batch_size}, "
            f"ndata={sorted(self.ndata)}, edata={sorted(self.edata)}, device={self.device})"
        )

    def cpu(self) -> Graph:
        """This graph with all its tensors on the CPU (itself if they are there already)."""
        return self.to("cpu")

    @staticmethod
    def batch(graphs: Sequence[Graph]) -> Graph:
        """One graph holding all of ``graphs``, in order; node and edge data that all of them have are concatenated.

        Raises:
            ValueError: if ``graphs`` is empty.
        """
        if not graphs:
            raise ValueError("graphs: expected at least one graph, got none")
        starts = torch.tensor([0] + [graph.num_nodes() for graph in graphs]).cumsum(0).tolist()
        return Graph(
            src=torch.cat([graph.src + start for graph, start in zip(graphs, starts, strict=False)]),
            dst=torch.cat([graph.dst + start for graph, start in zip(graphs, starts, strict=False)]),
            num_nodes=starts[-1],
            batch_num_nodes=torch.cat([graph.batch_num_nodes() for graph in graphs]),
            batch_num_edges=torch.cat([graph.batch_num_edges() for graph in graphs]),
            ndata=_concatenate([graph.ndata for graph in graphs]),
            edata=_concatenate([graph.edata for graph in graphs]),
        )


def complete_graph(pos: Tensor, batch_num_nodes: Sequence[int] | Tensor | None = None) -> Graph:
    """The graph with an edge between every ordered pair of distinct nodes of the same graph.

    Args:
        pos: [N, 3] positions.
        batch_num_nodes: [B] nodes of each graph of a batch; default: one graph.

    Returns:
        A graph with ``ndata['pos']`` and ``edata['rel_pos']``; edges ordered by source.
    """

    def connect(block: Tensor) -> tuple[Tensor, Tensor]:
        return _where(~torch.eye(len(block), dtype=torch.bool, device=block.device))

    return _from_positions(pos, batch_num_nodes, connect)


def radius_graph(pos: Tensor, cutoff: float, batch_num_nodes: Sequence[int] | Tensor | None = None) -> Graph:
    """The graph with an edge between every ordered pair of distinct nodes of the same graph at most ``cutoff`` apart.

    Args:
        pos: [N, 3] positions.
        cutoff: largest edge length, in the unit of ``pos``.
        batch_num_nodes: [B] nodes of each graph of a batch; default: one graph.

    Returns:
        A graph with ``ndata['pos']`` and ``edata['rel_pos']``; edges ordered by source.

    Raises:
        ValueError: if ``cutoff`` is not positive.
    """
    if cutoff <= 0:
        raise ValueError(f"cutoff: expected a positive length, got {cutoff}")

    def connect(block: Tensor) -> tuple[Tensor, Tensor]:
        distances = torch.cdist(block, block, compute_mode="donot_use_mm_for_euclid_dist")
        return _where((distances <= cutoff) & ~torch.eye(len(block), dtype=torch.bool, device=block.device))

    return _from_positions(pos, batch_num_nodes, connect)


def nearest_neighbour_graph(pos: Tensor, neighbours: int, batch_num_nodes: Sequence[int] | Tensor | None = None) -> Graph:
    """The graph in which every node has incoming edges from its nearest ``neighbours`` nodes of the same graph.

    Args:
        pos: [N, 3] positions.
        neighbours: incoming edges per node (all other nodes, where a graph has fewer).
        batch_num_nodes: [B] nodes of each graph of a batch; default: one graph.

    Returns:
        A graph with ``ndata['pos']`` and ``edata['rel_pos']``; edges ordered by destination, nearest first.

    Raises:
        ValueError: if ``neighbours`` is less than 1.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours: expected at least 1, got {neighbours}")

    def connect(block: Tensor) -> tuple[Tensor, Tensor]:
        count = min(neighbours, len(block) - 1)
        distances = torch.cdist(block, block, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        nearest = distances.topk(count, dim=1, largest=False).indices  # [n, count]
        return nearest.flatten(), torch.arange(len(block), device=block.device).repeat_interleave(count)

    return _from_positions(pos, batch_num_nodes, connect)


def as_graph(graph: Any) -> Graph:
    """A :class:`Graph` from a Graph, a DGLGraph, or a PyTorch Geometric ``Data``/``Batch``.

    Neither library is imported. A DGLGraph's node and edge data are taken over. From PyTorch Geometric, ``edge_index``
    (row 0 source, row 1 destination), ``pos``, ``ptr`` and, if there, ``rel_pos`` are read; without ``rel_pos`` it is
    ``pos[dst] - pos[src]``.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(graph, Graph):
        return graph
    if hasattr(graph, "edge_index"):
        return _from_pyg(graph)
    if all(hasattr(graph, name) for name in ("edges", "ndata", "edata", "batch_num_nodes")):
        src, dst = graph.edges()
        return Graph(
            src=src,
            dst=dst,
            num_nodes=graph.num_nodes(),
            batch_num_nodes=graph.batch_num_nodes(),
            batch_num_edges=graph.batch_num_edges(),
            ndata=dict(graph.ndata),
            edata=dict(graph.edata),
        )
    raise TypeError(
        f"graph: expected a se3_fast.Graph, a DGLGraph or a PyTorch Geometric Data or Batch, got {type(graph).__name__}"
    )


def _from_pyg(data: Any) -> Graph:
    src, dst = data.edge_index
    num_nodes = int(data.num_nodes)
    pos = getattr(data, "pos", None)
    rel_pos = getattr(data, "rel_pos", None)
    if rel_pos is None and pos is not None:
        rel_pos = _relative_positions(pos, src, dst)
    batch_num_nodes = batch_num_edges = None
    pointer = getattr(data, "ptr", None)
    if pointer is not None:
        batch_num_nodes = pointer.diff()
        graph_of_edge = torch.bucketize(src, pointer[1:-1], right=True)
        batch_num_edges = torch.bincount(graph_of_edge, minlength=len(batch_num_nodes))
    return Graph(
        src=src,
        dst=dst,
        num_nodes=num_nodes,
        batch_num_nodes=batch_num_nodes,
        batch_num_edges=batch_num_edges,
        ndata={} if pos is None else {"pos": pos},
        edata={} if rel_pos is None else {"rel_pos": rel_pos},
    )


def _from_positions(pos: Tensor, batch_num_nodes: Sequence[int] | Tensor | None, connect: Any) -> Graph:
    if pos.ndim != 2 or pos.shape[1] != 3:
        raise ValueError(f"pos: expected shape [N, 3], got {list(pos.shape)}")
    sizes = _batch_sizes("batch_num_nodes", batch_num_nodes, len(pos), pos.device)
    sources, destinations, edge_counts = [], [], []
    start = 0
    for size in sizes.tolist():
        src, dst = connect(pos[start : start + size].detach())
        sources.append(src + start)
        destinations.append(dst + start)
        edge_counts.append(len(src))
        start += size
    src, dst = torch.cat(sources), torch.cat(destinations)
    return Graph(src, dst, len(pos), sizes, edge_counts, ndata={"pos": pos}, edata={"rel_pos": _relative_positions(pos, src, dst)})


def _relative_positions(pos: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return pos.index_select(0, dst) - pos.index_select(0, src)  # their gradients add in a fixed order


def _where(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    src, dst = adjacency.nonzero(as_tuple=True)
    return src, dst


def _group_by(node_of_edge: Tensor, num_nodes: int) -> EdgeOrder:
    nodes, order = node_of_edge.sort(stable=True)
    offsets = torch.searchsorted(nodes, torch.arange(num_nodes + 1, device=nodes.device))
    return EdgeOrder(order, offsets)


def _check_edges(src: Tensor, dst: Tensor, num_nodes: int) -> None:
    if not isinstance(num_nodes, torch.SymInt) and num_nodes < 0:
        raise ValueError(f"num_nodes: expected 0 or more, got {num_nodes}")
    for name, ends in (("src", src), ("dst", dst)):
        if not isinstance(ends, Tensor) or ends.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name}: expected an int64 tensor, got {getattr(ends, 'dtype', type(ends).__name__)}")
        if ends.shape != (src.shape[0],):
            raise ValueError(f"{name}: expected shape [{src.shape[0]}], got {list(ends.shape)}")
        if _is_readable(ends) and len(ends) and not 0 <= int(ends.min()) <= int(ends.max()) < num_nodes:
            raise ValueError(f"{name}: expected node numbers from 0 to {num_nodes - 1}, got {int(ends.min())} to {int(ends.max())}")


def _is_readable(tensor: Tensor) -> bool:
    """Whether values can be checked without waiting for a device, or breaking a graph that is being compiled."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _batch_sizes(name: str, sizes: Tensor | Sequence[int] | None, total: int, device: torch.device) -> Tensor:
    if sizes is None:
        return torch.tensor([total], device=device)
    sizes = torch.as_tensor(sizes, dtype=torch.int64, device=device)
    if _is_readable(sizes) and int(sizes.sum()) != total:
        raise ValueError(f"{name}: expected sizes that add up to {total}, got {int(sizes.sum())}")
    return sizes


def _concatenate(data: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    common = [name for name in data[0] if all(name in entry for entry in data)]
    return {name: torch.cat([entry[name] for entry in data]) for name in common}
