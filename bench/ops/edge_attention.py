"""Attention over incoming edges."""

from __future__ import annotations

import torch

from bench.problem import Problem, leaf
from bench.workloads import build
from se3_fast.kernels.edge_attention import cost
from se3_fast.ops.edge_attention import edge_attention


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """The attention of a hidden layer of a workload, on messages that were rotated out of the edges' frames."""
    workload = build(name)
    graph, attention = workload.graph, workload.block.attention
    heads = attention.num_heads
    value = leaf(graph.num_edges(), heads, attention.value_fiber.num_features // heads, dtype=dtype)
    key = leaf(graph.num_edges(), heads, attention.key_fiber.num_features // heads, dtype=dtype)
    query = leaf(graph.num_nodes(), heads, attention.key_fiber.num_features // heads, dtype=dtype)

    def forward() -> list[torch.Tensor]:
        return [edge_attention(value, key, query, graph)]

    sizes = (graph.num_nodes(), graph.num_edges(), heads, value.shape[2], key.shape[2], value.element_size())
    return Problem(forward, [value, key, query], cost(*sizes))
