"""GPooling: one feature vector per graph."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from se3_fast.fiber import Features
from se3_fast.graph import as_graph
from se3_fast.ops.pooling import pooling


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
        self.pool: Literal["max", "avg"] = pool

    def forward(self, features: Features, graph: Any, **kwargs: Any) -> Tensor:
        """Pool ``features[str(feat_type)]``, [N, C, 2d+1].

        Returns:
            [B, C, 2d+1], for degree 0 [B, C]; 0 for a graph without nodes.

        Raises:
            ValueError: if the features are not there, or not those of the graph's nodes.
        """
        graph = as_graph(graph)
        key = str(self.feat_type)
        if key not in features:
            raise ValueError(f"features: expected degree '{key}', got {sorted(features)}")
        feature, num_nodes, size = features[key], graph.num_nodes(), 2 * self.feat_type + 1
        if feature.ndim != 3 or feature.shape[0] != num_nodes or feature.shape[2] != size:
            raise ValueError(f"features['{key}']: expected shape [{num_nodes}, C, {size}], got {list(feature.shape)}")
        return pooling(feature, graph.batch_num_nodes(), self.pool).squeeze(-1)
