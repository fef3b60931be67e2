"""Graphs made of graphs: loops added and removed, edges reversed, parts of a graph, random graphs.

As in DGL what adds or reorders edges gives one graph of no batch; :meth:`DGLGraph.set_batch_num_nodes` and ``..._edges`` say
otherwise. What only removes edges keeps the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from se3_fast.compat.message_passing.graph import DGLGraph, Ids
from se3_fast.compat.message_passing.ops import REDUCTIONS, reduce_groups
from se3_fast.graph import Graph

NID = EID = "_ID"
"""Under this name the nodes and edges of a part have their numbers in the whole graph."""


def rand_graph(num_nodes: int, num_edges: int, idtype: torch.dtype = torch.int64, device: torch.device | str = "cpu") -> DGLGraph:
    """A graph of edges drawn from all pairs of nodes, loops included, none twice, with PyTorch's random numbers.

    Args:
        num_nodes: N.
        num_edges: E, at most N * N.
        idtype: not used; numbers are int64.
        device: where the graph goes.

    Raises:
        ValueError: if there are not so many pairs.
    """
    pairs = num_nodes * num_nodes
    if not 0 <= num_edges <= pairs:
        raise ValueError(f"num_edges: expected at most {pairs} edges between {num_nodes} nodes, got {num_edges}")
    if pairs <= 4 * num_edges:
        drawn = torch.randperm(pairs)[:num_edges]
    else:
        drawn = torch.zeros(0, dtype=torch.int64)
        while len(drawn) < num_edges:
            drawn = torch.cat([drawn, torch.randint(pairs, (2 * num_edges,))]).unique()
        drawn = drawn[torch.randperm(len(drawn))[:num_edges]]
    src, dst = drawn // max(num_nodes, 1), drawn % max(num_nodes, 1)
    return DGLGraph.adopt(DGLGraph(src, dst, num_nodes).to(device))


def seed(val: int) -> None:
    """Seed PyTorch's random numbers, which :func:`rand_graph` draws from."""
    torch.manual_seed(val)


def remove_self_loop(g: Graph) -> DGLGraph:
    """The graph without edges from a node to itself; a batch stays one."""
    graph = DGLGraph.adopt(g)
    return graph.with_edges((graph.src != graph.dst).nonzero().view(-1), keeps_batch=True)


def add_self_loop(g: Graph, edge_feat_names: list[str] | None = None, fill_data: Any = 1.0) -> DGLGraph:
    """The graph with an edge from every node to itself appended.

    Args:
        g: the graph.
        edge_feat_names: edge data that ``fill_data`` is for; default: all. The others are 0 there.
        fill_data: edge data of the loops: a number, a tensor of one row, or ``sum``, ``mean``, ``max`` or ``min`` of those of the
            node's incoming edges.
    """
    graph = DGLGraph.adopt(g).clone()
    names = graph.edata.keys() if edge_feat_names is None else edge_feat_names
    data = {name: _loop_data(graph, graph.edata[name], fill_data) for name in names}
    graph.add_edges(graph.nodes(), graph.nodes(), data)
    return graph


def _loop_data(graph: DGLGraph, column: Tensor, fill_data: Any) -> Tensor:
    shape = (graph.num_nodes(), *column.shape[1:])
    if not isinstance(fill_data, str):
        return torch.as_tensor(fill_data, dtype=column.dtype, device=column.device).expand(shape)
    if fill_data not in REDUCTIONS:
        raise ValueError(f"fill_data: expected a number, a tensor, or one of {', '.join(REDUCTIONS)}, got {fill_data!r}")
    reduced = reduce_groups(column, graph.dst, graph.num_nodes(), fill_data)
    return reduced.masked_fill((graph.in_degrees() == 0).view(-1, *[1] * (column.ndim - 1)), 0)


def reverse(g: Graph, copy_ndata: bool = True, copy_edata: bool = False) -> DGLGraph:
    """The graph with every edge turned round."""
    ndata, edata = (g.ndata if copy_ndata else None), (g.edata if copy_edata else None)
    return DGLGraph(g.dst, g.src, g.num_nodes(), ndata=ndata, edata=edata)


def add_reverse_edges(g: Graph, copy_ndata: bool = True, copy_edata: bool = False, exclude_self: bool = True) -> DGLGraph:
    """The graph with its edges turned round appended.

    Args:
        g: the graph.
        copy_ndata: keep the node data.
        copy_edata: keep the edge data; a reversed edge has those of its edge.
        exclude_self: do not append loops.
    """
    numbers = torch.arange(g.num_edges(), device=g.device)
    turned = numbers[g.src != g.dst] if exclude_self else numbers
    both = torch.cat([numbers, turned])
    edata = {name: column[both] for name, column in g.edata.items()} if copy_edata else None
    src, dst = torch.cat([g.src, g.dst[turned]]), torch.cat([g.dst, g.src[turned]])
    return DGLGraph(src, dst, g.num_nodes(), ndata=g.ndata if copy_ndata else None, edata=edata)


def to_simple(g: Graph, return_counts: str | None = "count", copy_ndata: bool = True, copy_edata: bool = False) -> DGLGraph:
    """The graph in which every edge is there once, by source, then by destination.

    Args:
        g: the graph.
        return_counts: the edge data that say how often it was there; None: none.
        copy_ndata: keep the node data.
        copy_edata: keep the edge data, those of one of the edges that were the same.
    """
    graph = DGLGraph.adopt(g)
    keys, places, counts = graph._keys().unique(return_inverse=True, return_counts=True)
    size = max(graph.num_nodes(), 1)
    ndata = graph.ndata if copy_ndata else None
    simple = DGLGraph(keys // size, keys % size, graph.num_nodes(), ndata=ndata)
    if copy_edata:
        numbers = torch.arange(graph.num_edges(), device=graph.device)
        first = numbers.new_zeros(len(keys)).scatter_reduce(0, places, numbers, "amin", include_self=False)
        simple.edata.update({name: column[first] for name, column in graph.edata.items()})
    if return_counts is not None:
        simple.edata[return_counts] = counts
    return simple


def to_bidirected(g: Graph, copy_ndata: bool = False) -> DGLGraph:
    """The graph in which every edge is there once in each direction, by source, then by destination; without edge data."""
    return to_simple(add_reverse_edges(g, copy_ndata=copy_ndata), return_counts=None, copy_ndata=copy_ndata)


def node_subgraph(graph: Graph, nodes: Ids, *, relabel_nodes: bool = True, store_ids: bool = True) -> DGLGraph:
    """The graph of some nodes, numbered as they are given, and the edges among them.

    Args:
        graph: the graph.
        nodes: numbers of nodes, or [N] bool.
        relabel_nodes: whether other nodes are left out; else all nodes stay, with their numbers.
        store_ids: whether ``edata['_ID']``, and where nodes are left out ``ndata['_ID']``, are numbers in the whole graph.
    """
    numbers = _numbers(nodes, graph.device)
    place = torch.full((graph.num_nodes(),), -1, device=graph.device)
    place[numbers] = torch.arange(len(numbers), device=graph.device)
    kept = ((place[graph.src] >= 0) & (place[graph.dst] >= 0)).nonzero().view(-1)
    kept = kept[place[graph.src[kept]].argsort(stable=True)]
    return _part(graph, numbers, kept, place, store_ids) if relabel_nodes else _with_all_nodes(graph, kept, store_ids)


def edge_subgraph(graph: Graph, edges: Ids, *, relabel_nodes: bool = True, store_ids: bool = True) -> DGLGraph:
    """The graph of some edges and their ends, numbered as they first come, sources first.

    Args:
        graph: the graph.
        edges: numbers of edges, or [E] bool.
        relabel_nodes: as for :func:`node_subgraph`.
        store_ids: likewise.
    """
    kept = _numbers(edges, graph.device)
    if not relabel_nodes:
        return _with_all_nodes(graph, kept, store_ids)
    numbers = torch.tensor(list(dict.fromkeys([*graph.src[kept].tolist(), *graph.dst[kept].tolist()])), device=graph.device).long()
    place = torch.full((graph.num_nodes(),), -1, device=graph.device)
    place[numbers] = torch.arange(len(numbers), device=graph.device)
    return _part(graph, numbers, kept, place, store_ids)


def _part(graph: Graph, nodes: Tensor, edges: Tensor, place: Tensor, store_ids: bool) -> DGLGraph:
    ndata = {name: column[nodes] for name, column in graph.ndata.items()} | ({NID: nodes} if store_ids else {})
    edata = {name: column[edges] for name, column in graph.edata.items()} | ({EID: edges} if store_ids else {})
    return DGLGraph(place[graph.src[edges]], place[graph.dst[edges]], len(nodes), ndata=ndata, edata=edata)


def _with_all_nodes(graph: Graph, edges: Tensor, store_ids: bool) -> DGLGraph:
    part = DGLGraph.adopt(graph).with_edges(edges)
    if store_ids:
        part.edata[EID] = edges
    return part


def _numbers(numbers: Any, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(numbers, device=device)
    return tensor.nonzero().view(-1) if tensor.dtype == torch.bool else tensor.long().view(-1)


def add_edges(g: Graph, u: Ids, v: Ids, data: Mapping[str, Tensor] | None = None) -> DGLGraph:
    """Another graph with edges appended, see :meth:`DGLGraph.add_edges`."""
    graph = DGLGraph.adopt(g).clone()
    graph.add_edges(u, v, data)
    return graph


def add_nodes(g: Graph, num: int, data: Mapping[str, Tensor] | None = None) -> DGLGraph:
    """Another graph with nodes appended, see :meth:`DGLGraph.add_nodes`."""
    graph = DGLGraph.adopt(g).clone()
    graph.add_nodes(num, data)
    return graph


def remove_edges(g: Graph, eids: Ids) -> DGLGraph:
    """Another graph without some edges, see :meth:`DGLGraph.remove_edges`."""
    graph = DGLGraph.adopt(g).clone()
    graph.remove_edges(eids)
    return graph


def remove_nodes(g: Graph, nids: Ids) -> DGLGraph:
    """Another graph without some nodes and their edges, which is one graph of no batch."""
    is_kept = torch.ones(g.num_nodes(), dtype=torch.bool, device=g.device)
    is_kept[_numbers(nids, g.device)] = False
    rest = node_subgraph(g, is_kept)
    del rest.ndata[NID], rest.edata[EID]
    return rest


# Methods as well, added here because they make graphs.
for _name, _function in {
    "add_self_loop": add_self_loop,
    "remove_self_loop": remove_self_loop,
    "reverse": reverse,
    "to_simple": to_simple,
    "subgraph": node_subgraph,
    "edge_subgraph": edge_subgraph,
}.items():
    setattr(DGLGraph, _name, _function)
