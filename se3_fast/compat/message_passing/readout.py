"""From nodes and edges to whole graphs and back: sums, means and extremes over each graph of a batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from se3_fast.compat.message_passing.ops import segment_reduce, segment_softmax
from se3_fast.graph import Graph, as_graph


def readout_nodes(graph: Graph, feat: str, weight: str | None = None, *, op: str = "sum") -> Tensor:
    """Node data of every graph reduced: [N, ...] to [B, ...].

    Args:
        graph: the batch.
        feat: name of the data.
        weight: name of data that they are multiplied by first.
        op: ``sum``, ``mean``, ``max`` or ``min``.
    """
    values = graph.ndata[feat] if weight is None else graph.ndata[feat] * graph.ndata[weight]
    return segment_reduce(graph.batch_num_nodes(), values, op)


def readout_edges(graph: Graph, feat: str, weight: str | None = None, *, op: str = "sum") -> Tensor:
    """Edge data of every graph reduced: [E, ...] to [B, ...]; arguments as for :func:`readout_nodes`."""
    values = graph.edata[feat] if weight is None else graph.edata[feat] * graph.edata[weight]
    return segment_reduce(graph.batch_num_edges(), values, op)


def _readout(over: Callable[..., Tensor], kind: str, op: str) -> Callable[..., Tensor]:
    def readout(graph: Graph, feat: str, weight: str | None = None) -> Tensor:
        return over(graph, feat, weight, op=op)

    readout.__name__ = readout.__qualname__ = f"{op}_{kind}"
    readout.__doc__ = f"The {op} of data of the {kind} of every graph, [B, ...]."
    return readout


sum_nodes, mean_nodes, max_nodes = (_readout(readout_nodes, "nodes", op) for op in ("sum", "mean", "max"))
sum_edges, mean_edges, max_edges = (_readout(readout_edges, "edges", op) for op in ("sum", "mean", "max"))


def softmax_nodes(graph: Graph, feat: str) -> Tensor:
    """Softmax of node data over the nodes of every graph, [N, ...]."""
    return segment_softmax(graph.batch_num_nodes(), graph.ndata[feat])


def softmax_edges(graph: Graph, feat: str) -> Tensor:
    """Softmax of edge data over the edges of every graph, [E, ...]."""
    return segment_softmax(graph.batch_num_edges(), graph.edata[feat])


def broadcast_nodes(graph: Graph, graph_feat: Tensor) -> Tensor:
    """Data of graphs [B, ...] for every node of each, [N, ...]."""
    return graph_feat.repeat_interleave(graph.batch_num_nodes(), 0)


def broadcast_edges(graph: Graph, graph_feat: Tensor) -> Tensor:
    """Data of graphs [B, ...] for every edge of each, [E, ...]."""
    return graph_feat.repeat_interleave(graph.batch_num_edges(), 0)


class _Pooling(nn.Module):
    operation: str

    def forward(self, graph: Graph, feat: Tensor) -> Tensor:
        """Pool over the nodes of every graph: [N, ...] to [B, ...], 0 for a graph without nodes.

        Args:
            graph: the batch.
            feat: [N, ...].

        Raises:
            ValueError: if there is not a row for every node.
        """
        return segment_reduce(as_graph(graph).batch_num_nodes(), feat, self.operation)


class SumPooling(_Pooling):
    """The sum over the nodes of every graph."""

    operation = "sum"


class AvgPooling(_Pooling):
    """The mean over the nodes of every graph."""

    operation = "mean"


class MaxPooling(_Pooling):
    """The maximum over the nodes of every graph."""

    operation = "max"
