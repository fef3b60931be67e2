"""Multi-head attention over the incoming edges of each node.

score[e, h] = <key[e, h], query[dst(e), h]> / sqrt(F)      F: key features over all degrees and heads
out[n, h] = sum over edges e into n of softmax(score)[e, h] value[e, h]
"""

from __future__ import annotations

import math

from torch import Tensor

from se3_fast.autograd.compute_dtype import at_least_float32
from se3_fast.graph import Graph

READS = "heads"


def edge_attention(value: Tensor, key: Tensor, query: Tensor, graph: Graph) -> Tensor:
    """See :func:`se3_fast.ops.edge_attention.edge_attention`."""
    return attention(value, key, query, graph.dst)


def attention(value: Tensor, key: Tensor, query: Tensor, dst: Tensor) -> Tensor:
    """Attention with the heads' features side by side.

    Args:
        value: [E, H, V].
        key: [E, H, K].
        query: [N, H, K].
        dst: [E] int64, destination of each edge.

    Returns:
        [N, H, V]; 0 for a node without incoming edges.
    """
    num_nodes, num_heads, width = query.shape
    # index_select, not query[dst]: the gradient of indexing adds in any order where several threads share the work. It adds a row
    # for each edge of a node, as the sums below do, which half precision is too coarse for.
    scores = (key * at_least_float32(query).index_select(0, dst)).sum(-1) / math.sqrt(num_heads * width)  # [E, H]
    weighted = _softmax_over_incoming(scores, dst, num_nodes)[..., None] * value
    return weighted.new_zeros(num_nodes, *value.shape[1:]).index_add(0, dst, weighted).to(value.dtype)


def _softmax_over_incoming(scores: Tensor, dst: Tensor, num_nodes: int) -> Tensor:
    """Softmax of [E, H] scores over the edges with the same destination."""
    index = dst[:, None].expand_as(scores)
    largest = scores.new_zeros(num_nodes, scores.shape[1]).scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
    exponentials = (scores - largest.index_select(0, dst)).exp()
    totals = exponentials.new_zeros(num_nodes, scores.shape[1]).index_add(0, dst, exponentials)
    return exponentials / totals.index_select(0, dst)
