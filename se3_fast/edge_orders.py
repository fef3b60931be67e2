"""A graph's edges grouped by their ends, as the operations read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.modes import has_changed, made_beside, version_of


class EdgeOrder(NamedTuple):
    """Edges grouped by one of their end nodes (compressed sparse rows).

    Attributes:
        order: [E] int64; edge numbers, those of node 0 first; edges of one node keep their order.
        offsets: [N + 1] int64; the edges of node n are ``order[offsets[n]:offsets[n + 1]]``.
    """

    order: Tensor
    offsets: Tensor


def check_order(name: str, order: EdgeOrder, num_edges: int, num_nodes: int, device: torch.device) -> EdgeOrder:
    """The order, contiguous, as kernels read it; what is in it is not looked at.

    Raises:
        ValueError: for other shapes, another dtype than int64, or another device, naming ``name``.
    """
    for part, tensor, size in (("order", order.order, num_edges), ("offsets", order.offsets, num_nodes + 1)):
        if tensor.dtype != torch.int64 or tensor.shape != (size,) or tensor.device != device:
            came = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name}.{part}: expected torch.int64 [{size}] on {device}, got {came}")
    return EdgeOrder(order.order.contiguous(), order.offsets.contiguous())


class EdgeOrders:
    """The orders of a graph's edges, each made when it is first asked for and kept; graphs that have the same edges share them.

    Edges may be changed in place: what was made of them before is then made again. Orders that are given stay.

    Args:
        src: [E] int64, source node of each edge.
        dst: [E] int64, destination node of each edge.
        num_nodes: N.
        given: the incoming and the outgoing order, if they are known.
    """

    def __init__(self, src: Tensor, dst: Tensor, num_nodes: int, given: tuple[EdgeOrder, EdgeOrder] | None = None) -> None:
        self._src, self._dst, self._num_nodes = src, dst, num_nodes
        self._is_given = given is not None
        self._incoming: EdgeOrder | None
        self._outgoing: EdgeOrder | None
        self._incoming, self._outgoing = given or (None, None)
        self._sources: tuple[Tensor, list[int]] | None = None
        self._versions = version_of(src), version_of(dst)

    def incoming(self) -> EdgeOrder:
        """Edges grouped by destination."""
        self._forget_changed_edges()
        if self._incoming is None:
            self._incoming = _group_by(self._dst, self._num_nodes)
        return self._incoming

    def outgoing(self) -> EdgeOrder:
        """Edges grouped by source."""
        self._forget_changed_edges()
        if self._outgoing is None:
            self._outgoing = _group_by(self._src, self._num_nodes)
        return self._outgoing

    def sources_by_out_degree(self) -> tuple[Tensor, list[int]]:
        """Nodes that have outgoing edges, those with most first, and their out-degrees."""
        self._forget_changed_edges()
        if self._sources is None:
            self._sources = made_beside(self._src, self._make_sources)
        return self._sources

    def _make_sources(self) -> tuple[Tensor, list[int]]:
        out_degrees, nodes = self.outgoing().offsets.diff().sort(descending=True, stable=True)
        counts = out_degrees[out_degrees > 0].tolist()
        return nodes[: len(counts)], counts

    def _forget_changed_edges(self) -> None:
        if self._is_given:
            return
        if has_changed(self._src, self._versions[0]) or has_changed(self._dst, self._versions[1]):
            self._incoming = self._outgoing = self._sources = None
            self._versions = version_of(self._src), version_of(self._dst)

    def map(self, function: Callable[[Tensor], Tensor], src: Tensor, dst: Tensor) -> EdgeOrders:
        """What has been made, by a function that moves tensors; ``src`` and ``dst`` are the edges there."""
        self._forget_changed_edges()
        mapped = EdgeOrders(src, dst, self._num_nodes)
        mapped._is_given = self._is_given
        mapped._incoming = EdgeOrder(*map(function, self._incoming)) if self._incoming else None
        mapped._outgoing = EdgeOrder(*map(function, self._outgoing)) if self._outgoing else None
        mapped._sources = (function(self._sources[0]), self._sources[1]) if self._sources else None
        return mapped


def _group_by(node_of_edge: Tensor, num_nodes: int) -> EdgeOrder:
    if torch.compiler.is_compiling():
        return EdgeOrder(*_edge_order(node_of_edge, num_nodes))
    return EdgeOrder(*made_beside(node_of_edge, lambda: _sorted_edges(node_of_edge, num_nodes)))


def _sorted_edges(node_of_edge: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    nodes, order = node_of_edge.sort(stable=True)
    return order, torch.searchsorted(nodes, torch.arange(num_nodes + 1, device=nodes.device))


@torch.library.custom_op("se3_fast::edge_order", mutates_args=())
def _edge_order(node_of_edge: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Order and offsets as one node of compiled graphs, which may run in inference mode while the graph keeps them for training."""
    with torch.inference_mode(False), torch.no_grad():
        return _sorted_edges(node_of_edge, num_nodes)


@_edge_order.register_fake
def _(node_of_edge: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(node_of_edge), node_of_edge.new_empty(num_nodes + 1)
