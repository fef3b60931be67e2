"""Graph: directed edges between nodes, batched; builders from positions; adapters from DGL and PyTorch Geometric.

Convention (that of the published QM9 data): an edge points from its source to its destination, and
``graph.edata['rel_pos'] = pos[dst] - pos[src]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.modes import is_of_inference_mode, is_readable, outside_inference_mode
from se3_fast.autograd.transforms import is_batched, is_transformed, untransformed, values
from se3_fast.edge_orders import EdgeOrder, EdgeOrders, check_order
from se3_fast.neighbours import check_positions, neighbours_of_batch

__all__ = [
    "EdgeOrder",
    "Graph",
    "as_graph",
    "complete_graph",
    "nearest_neighbour_graph",
    "radius_graph",
    "relative_positions",
]


class Graph:
    """A batch of directed graphs.

    Edges may be changed in place: what was made of them before is then made again. A backward pass through edges that were changed
    since raises a ``RuntimeError``.

    Args:
        src: [E] int64 or int32, source node of each edge; any strides.
        dst: [E] int64 or int32, destination node of each edge; any strides.
        num_nodes: number of nodes N of the whole batch.
        batch_num_nodes: [B] nodes of each graph (nodes of graph 0 first); default: one graph.
        batch_num_edges: [B] edges of each graph (edges of graph 0 first); default: counted, and edges may come in any order.
        ndata: node data, tensors whose first axis is N (for example ``pos`` [N, 3], in Angstrom for molecules).
        edata: edge data, tensors whose first axis is E (``rel_pos`` [E, 3] is what the models read).

    Raises:
        TypeError: if ``src`` or ``dst`` is not an integer tensor.
        ValueError: if sizes disagree, an edge names a node that does not exist, or one that is to be counted joins two graphs (seen
            for tensors on the CPU).
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
        if is_transformed():
            src, dst = _unwrapped("src", src), _unwrapped("dst", dst)
        _check_edges(src, dst, self._num_nodes)
        with untransformed():
            self.src, self.dst = _index(src), _index(dst)
        self._batch_num_nodes = _batch_sizes("batch_num_nodes", batch_num_nodes, self._num_nodes, src.device)
        self._batch_num_edges = _edges_of_graphs(self.src, self.dst, self._batch_num_nodes, batch_num_edges)
        self.ndata = dict(ndata or {})
        self.edata = dict(edata or {})
        self._orders = EdgeOrders(self.src, self.dst, self._num_nodes)

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
        """A graph of which all is known that the operations read, taken as it is: no value is looked at, no device waited for.

        Without the sizes of a batch only the operations can take it, no layer that pools.

        Raises:
            TypeError: if ``src`` or ``dst`` is not an integer tensor.
            ValueError: if shapes, dtypes or devices do not fit each other.
        """
        _check_shapes(src, dst)
        num_nodes = incoming.offsets.shape[0] - 1
        given = (
            check_order("incoming", incoming, src.shape[0], num_nodes, src.device),
            check_order("outgoing", outgoing, src.shape[0], num_nodes, src.device),
        )
        src, dst = src.long().contiguous(), dst.long().contiguous()
        sizes = [src.new_empty(0) if part is None else part.long().contiguous() for part in (batch_num_nodes, batch_num_edges)]
        return Graph._known(EdgeOrders(src, dst, num_nodes, given), (src, dst), num_nodes, sizes, ndata or {}, edata or {})

    @staticmethod
    def _known(
        orders: EdgeOrders,
        edges: tuple[Tensor, Tensor],
        num_nodes: int,
        sizes: Sequence[Tensor],
        ndata: dict[str, Tensor],
        edata: dict[str, Tensor],
    ) -> Graph:
        """A graph of parts that fit each other."""
        graph = object.__new__(Graph)
        graph.src, graph.dst = edges
        graph._num_nodes = num_nodes
        graph._batch_num_nodes, graph._batch_num_edges = sizes
        graph.ndata, graph.edata = dict(ndata), dict(edata)
        graph._orders = orders
        return graph

    def without_data(self) -> Graph:
        """The edges alone, as layers read them: no node data, no edge data; the orders of the edges are kept for both graphs."""
        sizes = (self._batch_num_nodes, self._batch_num_edges)
        return Graph._known(self._orders, (self.src, self.dst), self._num_nodes, sizes, {}, {})

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
        return self._orders.incoming()

    def outgoing(self) -> EdgeOrder:
        """Edges grouped by source; made at the first call and kept."""
        return self._orders.outgoing()

    def sources_by_out_degree(self) -> tuple[Tensor, list[int]]:
        """Nodes that have outgoing edges, those with most first, and their out-degrees; made at the first call and kept."""
        return self._orders.sources_by_out_degree()

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Graph:
        """This graph with all its tensors on ``device`` (itself if they are there already)."""
        if torch.device(device) == self.device:
            return self
        with outside_inference_mode():
            return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Graph:
        """This graph in page-locked host memory (what a DataLoader with ``pin_memory=True`` calls)."""
        with outside_inference_mode():
            return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Any) -> Graph:
        src, dst = function(self.src), function(self.dst)
        return Graph._known(
            self._orders.map(function, src, dst),
            (src, dst),
            self._num_nodes,
            (function(self._batch_num_nodes), function(self._batch_num_edges)),
            {name: function(tensor) for name, tensor in self.ndata.items()},
            {name: function(tensor) for name, tensor in self.edata.items()},
        )

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

        Where some are periodic, the ``edata['offset']`` [E, 3] of the others is zero: forces are taken by it.

        Raises:
            ValueError: if ``graphs`` is empty.
        """
        if not graphs:
            raise ValueError("graphs: expected at least one graph, got none")
        starts = list(accumulate((graph.num_nodes() for graph in graphs), initial=0))
        with outside_inference_mode():
            return Graph(
                src=torch.cat([graph.src + start for graph, start in zip(graphs, starts, strict=False)]),
                dst=torch.cat([graph.dst + start for graph, start in zip(graphs, starts, strict=False)]),
                num_nodes=starts[-1],
                batch_num_nodes=torch.cat([graph.batch_num_nodes() for graph in graphs]),
                batch_num_edges=torch.cat([graph.batch_num_edges() for graph in graphs]),
                ndata=_concatenate([graph.ndata for graph in graphs]),
                edata=_concatenate(_with_offsets(graphs)),
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


def radius_graph(
    pos: Tensor,
    cutoff: float,
    batch_num_nodes: Sequence[int] | Tensor | None = None,
    cell: Tensor | None = None,
    pbc: bool | Sequence[bool] | Tensor = True,
) -> Graph:
    """The graph with an edge between every ordered pair of nodes of the same graph at most ``cutoff`` apart.

    A node is its own neighbour only where its image in a periodic cell is near. See :mod:`se3_fast.neighbours`.

    Args:
        pos: [N, 3] positions.
        cutoff: largest edge length, in the unit of ``pos``.
        batch_num_nodes: [B] nodes of each graph of a batch; default: one graph.
        cell: [3, 3], or [B, 3, 3] for a batch: lattice vectors in rows; None: not periodic.
        pbc: the periodic directions: one for all, [3], or [B, 3].

    Returns:
        A graph with ``ndata['pos']`` and ``edata['rel_pos']``, and where there is a cell ``edata['offset']`` [E, 3], the lattice
        translation that is part of ``rel_pos``: differentiable in positions and cell. Edges are ordered by source, then by
        destination.

    Raises:
        ValueError: if ``cutoff`` is not positive, the cell has no volume, or shapes do not fit each other.
    """
    check_positions(pos)
    if not (isinstance(cutoff, Real) and cutoff > 0):
        raise ValueError(f"cutoff: expected a positive length, got {cutoff!r:.50}")
    sizes = _batch_sizes("batch_num_nodes", batch_num_nodes, len(pos), pos.device)
    with outside_inference_mode():
        src, dst, offset, counts = neighbours_of_batch(pos, sizes, cutoff, cell, pbc)
        edata = {"rel_pos": _relative_positions(pos, src, dst)}
        if offset is not None:
            edata = {"rel_pos": edata["rel_pos"] + offset, "offset": offset}
        return Graph(src, dst, len(pos), sizes, counts, ndata={"pos": pos}, edata=edata)


def nearest_neighbour_graph(pos: Tensor, neighbours: int, batch_num_nodes: Sequence[int] | Tensor | None = None) -> Graph:
    """The graph in which every node has incoming edges from its nearest ``neighbours`` nodes of the same graph.

    Args:
        pos: [N, 3] positions.
        neighbours: incoming edges per node (all other nodes, where a graph has fewer; none in a graph of one node).
        batch_num_nodes: [B] nodes of each graph of a batch; default: one graph.

    Returns:
        A graph with ``ndata['pos']`` and ``edata['rel_pos']``; edges ordered by destination, nearest first.

    Raises:
        ValueError: if ``neighbours`` is no whole number, or less than 1.
    """
    if not (isinstance(neighbours, Integral) and neighbours >= 1):
        raise ValueError(f"neighbours: expected a whole number of at least 1, got {neighbours!r:.50}")
    neighbours = int(neighbours)

    def connect(block: Tensor) -> tuple[Tensor, Tensor]:
        count = min(neighbours, max(len(block) - 1, 0))
        distances = _distances(block).fill_diagonal_(torch.inf)
        nearest = distances.topk(count, dim=1, largest=False).indices  # [n, count]
        return nearest.flatten(), torch.arange(len(block), device=block.device).repeat_interleave(count)

    return _from_positions(pos, batch_num_nodes, connect)


def as_graph(graph: Any) -> Graph:
    """A :class:`Graph` from a Graph, a DGLGraph, or a PyTorch Geometric ``Data``/``Batch``.

    Neither library is imported. A DGLGraph's node and edge data are taken over. From PyTorch Geometric, ``edge_index``
    (row 0 source, row 1 destination), ``pos``, ``batch`` and ``ptr`` and, if there, ``rel_pos`` and ``offset`` (of shape [E, 3], a
    lattice translation) are read; without ``rel_pos`` it is ``pos[dst] - pos[src] + offset``. Without ``edge_index`` the edges are
    the entries of ``adj_t`` (row: destination, column: source), in their order there.

    Raises:
        TypeError: for anything else.
        ValueError: if a PyTorch Geometric graph has no edges in either form, ``batch`` does not have the nodes of each graph one
            after the other, or ``ptr`` says otherwise; and as :class:`Graph`.
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


def relative_positions(graph: Graph) -> Tensor:
    """``edata['rel_pos']`` of a graph.

    Raises:
        ValueError: if it is not there, or not of shape [E, 3].
    """
    if "rel_pos" not in graph.edata:
        raise ValueError(f"graph: expected edata['rel_pos'] of shape [E, 3], got edata with {sorted(graph.edata)}")
    rel_pos = graph.edata["rel_pos"]
    if not isinstance(rel_pos, Tensor):
        came = type(rel_pos).__name__
        raise ValueError(f"graph: expected edata['rel_pos'] as a tensor of shape [E, 3], got an object of type {came}")
    if rel_pos.shape != (graph.num_edges(), 3):
        raise ValueError(f"graph: expected edata['rel_pos'] of shape [{graph.num_edges()}, 3], got {list(rel_pos.shape)}")
    return rel_pos


def _from_pyg(data: Any) -> Graph:
    src, dst = _pyg_edges(data)
    num_nodes = int(data.num_nodes)
    pos = getattr(data, "pos", None)
    rel_pos, offset = getattr(data, "rel_pos", None), getattr(data, "offset", None)
    edata = {"offset": offset} if isinstance(offset, Tensor) and offset.shape == (len(src), 3) else {}
    if rel_pos is None and pos is not None:
        rel_pos = _relative_positions(pos, src, dst) + edata.get("offset", 0)
    if rel_pos is not None:
        edata["rel_pos"] = rel_pos
    return Graph(
        src=src,
        dst=dst,
        num_nodes=num_nodes,
        batch_num_nodes=_pyg_graph_sizes(data, num_nodes),
        ndata={} if pos is None else {"pos": pos},
        edata=edata,
    )


def _pyg_edges(data: Any) -> tuple[Tensor, Tensor]:
    """Source and destination of each edge, from ``edge_index`` or ``adj_t``."""
    edge_index, adjacency = data.edge_index, getattr(data, "adj_t", None)
    if edge_index is not None:
        edges = edge_index.as_tensor() if hasattr(edge_index, "as_tensor") else edge_index  # an EdgeIndex
        if not isinstance(edges, Tensor) or edges.ndim != 2 or edges.shape[0] != 2:
            raise ValueError(f"graph: expected edge_index of shape [2, E], got {_shape_or_type(edges)}")
        return edges[0], edges[1]
    if isinstance(adjacency, Tensor) and adjacency.layout != torch.strided:
        dst, src = adjacency.to_sparse_coo()._indices()[:2]
    elif adjacency is not None and hasattr(adjacency, "coo"):  # a SparseTensor
        dst, src, _ = adjacency.coo()
    else:
        raise ValueError(f"graph: expected edge_index of shape [2, E], or a sparse adj_t, got a {type(data).__name__} with neither")
    return src, dst


def _pyg_graph_sizes(data: Any, num_nodes: int) -> Tensor | None:
    """[B] nodes of each graph, from ``batch`` and ``ptr``; None where neither is there."""
    batch, pointer = getattr(data, "batch", None), getattr(data, "ptr", None)
    if pointer is not None and (batch is None or not is_readable(batch)):
        return pointer.diff()
    if batch is None:
        return None
    if batch.shape != (num_nodes,) or batch.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"graph: expected batch of shape [{num_nodes}], int64, got {list(batch.shape)}, {batch.dtype}")
    if bool((batch.diff() < 0).any()) or bool((batch[:1] < 0).any()):
        raise ValueError(
            "graph: expected batch to number the graphs in ascending order, node after node, got it unsorted; "
            "sort nodes, features and edge_index by data.batch.argsort(stable=True)"
        )
    sizes = torch.bincount(batch, minlength=0 if pointer is None else pointer.shape[0] - 1)
    if pointer is not None and sizes.tolist() != pointer.diff().tolist():
        raise ValueError(f"graph: expected ptr to give {_first_few(sizes)} nodes as batch does, got {_first_few(pointer.diff())}")
    return sizes


def _from_positions(pos: Tensor, batch_num_nodes: Sequence[int] | Tensor | None, connect: Any) -> Graph:
    check_positions(pos)
    sizes = _batch_sizes("batch_num_nodes", batch_num_nodes, len(pos), pos.device)
    with outside_inference_mode():
        none = torch.zeros(0, dtype=torch.int64, device=pos.device)
        sources, destinations, edge_counts = [none], [none], []
        start = 0
        for size in sizes.tolist():
            src, dst = connect(pos[start : start + size].detach())
            sources.append(src + start)
            destinations.append(dst + start)
            edge_counts.append(len(src))
            start += size
        src, dst = torch.cat(sources), torch.cat(destinations)
        edata = {"rel_pos": _relative_positions(pos, src, dst)}
        return Graph(src, dst, len(pos), sizes, edge_counts, ndata={"pos": pos}, edata=edata)


def _distances(block: Tensor) -> Tensor:
    """Distances between all nodes, [n, n], in at least float32."""
    wide = block if block.dtype == torch.float64 else block.float()
    return torch.cdist(wide, wide, compute_mode="donot_use_mm_for_euclid_dist")


def _relative_positions(pos: Tensor, src: Tensor, dst: Tensor) -> Tensor:
    return pos.index_select(0, dst) - pos.index_select(0, src)  # their gradients add in a fixed order


def _where(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    src, dst = adjacency.nonzero(as_tuple=True)
    return src, dst


def _unwrapped(name: str, ends: Tensor) -> Tensor:
    """Ends of edges within ``torch.func`` transforms: node numbers are the same to all of them."""
    if is_batched(ends):
        raise ValueError(f"{name}: expected the same edges for all entries within vmap, got an edge list of each")
    return values(ends)


def _index(numbers: Tensor) -> Tensor:
    """As the operations read it, contiguous int64, and so that backward passes can keep it."""
    numbers = numbers.long().contiguous()
    if not is_of_inference_mode(numbers):
        return numbers
    with outside_inference_mode():
        return numbers.clone()


def _check_shapes(src: Tensor, dst: Tensor) -> None:
    for name, ends in (("src", src), ("dst", dst)):
        if not isinstance(ends, Tensor) or ends.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name}: expected an int64 tensor, got {getattr(ends, 'dtype', type(ends).__name__)}")
        if ends.ndim != 1 or ends.shape[0] != src.shape[0]:
            expected = "E" if ends is src else src.shape[0]
            raise ValueError(f"{name}: expected shape [{expected}], got {list(ends.shape)}")
        if ends.device != src.device:
            raise ValueError(f"{name}: expected a tensor on {src.device} as src, got one on {ends.device}")


def _check_edges(src: Tensor, dst: Tensor, num_nodes: int) -> None:
    if not isinstance(num_nodes, torch.SymInt) and num_nodes < 0:
        raise ValueError(f"num_nodes: expected 0 or more, got {num_nodes}")
    _check_shapes(src, dst)
    for name, ends in (("src", src), ("dst", dst)):
        if is_readable(ends) and len(ends) and not 0 <= int(ends.min()) <= int(ends.max()) < num_nodes:
            raise ValueError(f"{name}: expected node numbers from 0 to {num_nodes - 1}, got {int(ends.min())} to {int(ends.max())}")


def _batch_sizes(name: str, sizes: Tensor | Sequence[int] | None, total: int, device: torch.device) -> Tensor:
    if sizes is None:
        return _index(torch.tensor([total], device=device))
    given = _as_tensor(name, sizes, device)
    if given.ndim != 1 or given.is_complex() or (given.is_floating_point() and given.numel() > 0):
        raise ValueError(f"{name}: expected whole numbers of shape [B], got {_shape_or_type(given)}")
    numbers = _index(given)
    if is_readable(numbers) and (int(numbers.sum()) != total or bool((numbers < 0).any())):
        raise ValueError(
            f"{name}: expected sizes that add up to {total}, none negative, got {_first_few(numbers)}, {int(numbers.sum())} in all"
        )
    return numbers


def _as_tensor(name: str, sizes: Tensor | Sequence[int], device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(sizes, device=device)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected whole numbers of shape [B], got {sizes!r:.50}") from None


def _edges_of_graphs(src: Tensor, dst: Tensor, num_nodes: Tensor, num_edges: Tensor | Sequence[int] | None) -> Tensor:
    """[B] edges of each graph: as given, or counted."""
    given = None if num_edges is None else _batch_sizes("batch_num_edges", num_edges, src.shape[0], src.device)
    if given is not None and given.shape != num_nodes.shape:
        raise ValueError(f"batch_num_edges: expected {len(num_nodes)} graphs as in batch_num_nodes, got {len(given)}")
    if given is not None:
        return given
    if num_nodes.shape[0] == 1:
        return _index(torch.tensor([src.shape[0]], device=src.device))
    with outside_inference_mode():
        ends = num_nodes.cumsum(0)
        graph_of_edge = torch.searchsorted(ends, src, right=True)
        counts = torch.zeros_like(num_nodes).scatter_add(0, graph_of_edge, torch.ones_like(src))
    if is_readable(src):
        _check_within_graphs(graph_of_edge, torch.searchsorted(ends, dst, right=True))
    return counts


def _check_within_graphs(of_source: Tensor, of_destination: Tensor) -> None:
    joins_two = of_source != of_destination
    if bool(joins_two.any()):
        edge = int(joins_two.nonzero()[0])
        raise ValueError(
            f"batch_num_nodes: expected edges within the graphs, got edge {edge} from graph {int(of_source[edge])} "
            f"to graph {int(of_destination[edge])}"
        )


def _first_few(numbers: Tensor) -> str:
    """The beginning of a list, for a message."""
    listed = ", ".join(map(str, numbers[:8].tolist()))
    return f"[{listed}]" if len(numbers) <= 8 else f"[{listed}, ...]"


def _shape_or_type(value: Any) -> str:
    return f"{list(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else f"an object of type {type(value).__name__}"


def _with_offsets(graphs: Sequence[Graph]) -> list[dict[str, Tensor]]:
    """Edge data of all graphs, with an offset where others have one."""
    given = [graph.edata["offset"] for graph in graphs if "offset" in graph.edata]
    if not given or any(offset.shape[1:] != (3,) for offset in given):
        return [graph.edata for graph in graphs]
    return [{"offset": given[0].new_zeros(graph.num_edges(), 3)} | graph.edata for graph in graphs]


def _concatenate(data: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    common = [name for name in data[0] if all(name in entry for entry in data)]
    return {name: torch.cat([entry[name] for entry in data]) for name in common}
