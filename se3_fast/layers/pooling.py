"""GPooling: one feature vector per graph."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from se3_fast.fiber import Features
from se3_fast.graph import Graph, as_graph


class GPooling(nn.Module):
    """Maximum or mean over the nodes of each graph.

    Args:
        feat_type: degree of the features to pool.
        pool: ``max`` (degree 0 only: a maximum of vector components is not equivariant) or ``avg``.

    Raises:
        ValueError: for another ``pool``, or ``max`` with a degree above 0.
    """

    def __init__(self, feat_type: int = 0, pool: Literal["max", "avg"] = "max") -> None:
        super().__init__()
        if pool not in ("max", "avg"):
            raise ValueError(f"pool: expected 'max' or 'avg', got {pool!r}")
        if pool == "max" and feat_type != 0:
            raise ValueError(f"pool: 'max' is for degree 0 only, expected 'avg' for feat_type {feat_type}")
        self.feat_type = feat_type
        self.pool = pool

    def forward(self, features: Features, graph: Any, **kwargs: Any) -> Tensor:
        """Pool ``features[str(feat_type)]``, [N, C, 2d+1].

        Returns:
            [B, C, 2d+1], for degree 0 [B, C]; 0 for a graph without nodes.
        """
        graph = as_graph(graph)
        feature = features[str(self.feat_type)]
        pooled = _maximum(feature, graph) if self.pool == "max" else _mean(feature, graph)
        return pooled.squeeze(-1)


def _graph_of_node(graph: Graph) -> Tensor:
    sizes = graph.batch_num_nodes()
    numbers = torch.arange(sizes.shape[0], device=sizes.device)
    return numbers.repeat_interleave(sizes, output_size=graph.num_nodes())


def _mean(feature: Tensor, graph: Graph) -> Tensor:
    sums = feature.new_zeros(graph.batch_size, *feature.shape[1:]).index_add(0, _graph_of_node(graph), feature)
    return sums / graph.batch_num_nodes().clamp(min=1).to(feature.dtype)[:, None, None]


def _maximum(feature: Tensor, graph: Graph) -> Tensor:
    """Maximum by node number, so that among tied nodes the first has the gradient."""
    num_nodes = graph.num_nodes()
    if num_nodes == 0:
        return feature.new_zeros(graph.batch_size, *feature.shape[1:])
    graph_of_node = _graph_of_node(graph)
    values = feature.detach().flatten(1)  # [N, C]
    index = graph_of_node[:, None].expand_as(values)
    start = values.new_zeros(graph.batch_size, values.shape[1])
    largest = start.scatter_reduce(0, index, values, "amax", include_self=False)
    numbers = torch.arange(num_nodes, device=values.device)[:, None]
    candidates = torch.where(values == largest[graph_of_node], numbers, num_nodes)
    chosen = torch.full_like(start, num_nodes, dtype=torch.int64).scatter_reduce(0, index, candidates, "amin")
    pooled = feature.flatten(1).gather(0, chosen.clamp(max=num_nodes - 1)).view(-1, *feature.shape[1:])
    return pooled * (graph.batch_num_nodes() > 0)[:, None, None]
