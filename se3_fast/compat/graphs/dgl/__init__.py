"""What protein-design pipelines use of DGL, with :class:`se3_fast.Graph` as the graph: change ``import dgl`` to

    from se3_fast.compat import dgl

Graphs have ``edges()``, ``nodes()``, ``ndata``, ``edata``, ``num_nodes()``, ``num_edges()``, ``in_degrees()``, ``out_degrees()``,
``batch_size``, ``batch_num_nodes()``, ``batch_num_edges()``, ``device``, ``to()`` and ``cpu()``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from se3_fast.graph import Graph

__all__ = ["DGLGraph", "batch", "graph", "unbatch"]

DGLGraph = Graph


def graph(
    data: tuple[Tensor | Sequence[int], Tensor | Sequence[int]],
    *,
    num_nodes: int | Tensor | None = None,
    device: torch.device | str | None = None,
) -> Graph:
    """A graph from its edges.

    Args:
        data: ``(src, dst)``, integer tensors [E] or sequences.
        num_nodes: number of nodes; default: one more than the largest number among the edges.
        device: where the graph goes; default: where the edges are.

    Raises:
        TypeError: if ``data`` is not a pair, or an end is not an integer tensor.
        ValueError: if the ends differ in length, or an edge names a node that does not exist.
    """
    if not isinstance(data, tuple) or len(data) != 2:
        raise TypeError(f"data: expected a pair (src, dst), got {type(data).__name__}")
    src, dst = (torch.as_tensor(ends) if len(ends) else torch.zeros(0, dtype=torch.int64) for ends in data)
    if num_nodes is None:
        num_nodes = max((int(ends.max()) + 1 for ends in (src, dst) if len(ends)), default=0)
    made = Graph(src, dst, int(num_nodes))
    return made if device is None else made.to(device)


def batch(graphs: Sequence[Graph]) -> Graph:
    """One graph of all of ``graphs``, in order; node and edge data that all of them have are concatenated."""
    return Graph.batch(graphs)


def unbatch(g: Graph) -> list[Graph]:
    """The graphs that a batch was made of, with their node and edge data."""
    nodes, edges = g.batch_num_nodes().tolist(), g.batch_num_edges().tolist()
    ndata = {name: tensor.split(nodes) for name, tensor in g.ndata.items()}
    edata = {name: tensor.split(edges) for name, tensor in g.edata.items()}
    ends = zip(g.src.split(edges), g.dst.split(edges), strict=True)
    graphs, start = [], 0
    for number, (src, dst) in enumerate(ends):
        graphs.append(
            Graph(
                src - start,
                dst - start,
                nodes[number],
                ndata={name: parts[number] for name, parts in ndata.items()},
                edata={name: parts[number] for name, parts in edata.items()},
            )
        )
        start += nodes[number]
    return graphs


def __getattr__(name: str) -> Any:
    raise AttributeError(f"dgl.{name}: se3_fast stands in for dgl's {', '.join(__all__)} only; install DGL for the rest")
