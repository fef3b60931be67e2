"""Maximum or mean over the nodes of each graph of a batch, which stand one after the other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def pooling(feature: Tensor, sizes: Tensor, pool: Literal["max", "avg"]) -> Tensor:
    """[N, C, 2d+1] to [B, C, 2d+1], by :func:`maximum` or :func:`mean`."""
    return maximum(feature, sizes) if pool == "max" else mean(feature, sizes)


def mean(feature: Tensor, sizes: Tensor) -> Tensor:
    """[N, C, 2d+1] to [B, C, 2d+1]; ``sizes`` [B] are the nodes of each graph; 0 for a graph without nodes."""
    sums = feature.new_zeros(sizes.shape[0], *feature.shape[1:]).index_add(0, _graph_of_node(feature, sizes), feature)
    return sums / sizes.clamp(min=1).to(feature.dtype)[:, None, None]


def maximum(feature: Tensor, sizes: Tensor) -> Tensor:
    """As :func:`mean`; the maximum by node number, so that among tied nodes the first has the gradient. NaN is larger than all."""
    num_nodes, num_graphs = feature.shape[0], sizes.shape[0]
    if num_nodes == 0:
        return mean(feature, sizes)  # zeros, with a gradient
    graph_of_node = _graph_of_node(feature, sizes)
    values = feature.detach().flatten(1)  # [N, C]
    index = graph_of_node[:, None].expand_as(values)
    start = values.new_zeros(num_graphs, values.shape[1])
    largest = start.scatter_reduce(0, index, values, "amax", include_self=False)
    numbers = torch.arange(num_nodes, device=values.device)[:, None]
    is_largest = (values == largest[graph_of_node]) | values.isnan()
    candidates = torch.where(is_largest, numbers, num_nodes)
    chosen = torch.full_like(start, num_nodes, dtype=torch.int64).scatter_reduce(0, index, candidates, "amin")
    pooled = feature.flatten(1).gather(0, chosen.clamp(max=num_nodes - 1)).view(-1, *feature.shape[1:])
    return pooled * (sizes > 0)[:, None, None]


def _graph_of_node(feature: Tensor, sizes: Tensor) -> Tensor:
    numbers = torch.arange(sizes.shape[0], device=sizes.device)
    return numbers.repeat_interleave(sizes, output_size=feature.shape[0])
