"""What equivariant networks use of DGL, with :class:`se3_fast.Graph` as the graph: change ``import dgl`` to

    from se3_fast.compat import dgl

Graphs (:class:`DGLGraph`) have node and edge data, batches, ``update_all``, ``apply_edges``, ``local_scope`` and what tells about
their edges; beside them there are ``dgl.function``, ``dgl.ops``, ``dgl.nn`` (pooling and ``edge_softmax``) and
``dgl.data.QM9EdgeDataset``. Graphs of several types of nodes or edges are refused.
"""

from __future__ import annotations

from typing import Any

from se3_fast.compat.message_passing.frames import EdgeBatch, NodeBatch
from se3_fast.compat.message_passing.graph import DGLGraph, batch, graph, heterograph, unbatch
from se3_fast.compat.message_passing.ops import ALL
from se3_fast.compat.message_passing.readout import (
    broadcast_edges,
    broadcast_nodes,
    max_edges,
    max_nodes,
    mean_edges,
    mean_nodes,
    readout_edges,
    readout_nodes,
    softmax_edges,
    softmax_nodes,
    sum_edges,
    sum_nodes,
)
from se3_fast.compat.message_passing.transforms import (
    EID,
    NID,
    add_edges,
    add_nodes,
    add_reverse_edges,
    add_self_loop,
    edge_subgraph,
    node_subgraph,
    rand_graph,
    remove_edges,
    remove_nodes,
    remove_self_loop,
    reverse,
    seed,
    to_bidirected,
    to_simple,
)

from . import data, function, nn, ops

__all__ = [
    "ALL",
    "EID",
    "NID",
    "DGLGraph",
    "EdgeBatch",
    "NodeBatch",
    "add_edges",
    "add_nodes",
    "add_reverse_edges",
    "add_self_loop",
    "batch",
    "broadcast_edges",
    "broadcast_nodes",
    "data",
    "edge_subgraph",
    "function",
    "graph",
    "heterograph",
    "max_edges",
    "max_nodes",
    "mean_edges",
    "mean_nodes",
    "nn",
    "node_subgraph",
    "ops",
    "rand_graph",
    "readout_edges",
    "readout_nodes",
    "remove_edges",
    "remove_nodes",
    "remove_self_loop",
    "reverse",
    "seed",
    "softmax_edges",
    "softmax_nodes",
    "sum_edges",
    "sum_nodes",
    "to_bidirected",
    "to_simple",
    "unbatch",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"dgl.{name}: se3_fast stands in for a part of dgl only, without it: install DGL")
