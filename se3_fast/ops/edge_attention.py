"""Attention over incoming edges. Formula: :mod:`se3_fast.reference.edge_attention`, which every backend but ``triton`` uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.graph import Graph
from se3_fast.ops.backend import selected_backend
from se3_fast.reference import edge_attention as reference


def edge_attention(value: Tensor, key: Tensor, query: Tensor, graph: Graph) -> Tensor:
    """Attention with the heads' features side by side.

    Args:
        value: [E, H, V].
        key: [E, H, K].
        query: [N, H, K].
        graph: N nodes, E edges.

    Returns:
        [N, H, V] in the dtype of ``value``; 0 for a node without incoming edges.

    Raises:
        ValueError: if a shape does not fit the others or the graph.
    """
    _check_shapes(value, key, query, graph)
    if selected_backend(value.device) == "triton":
        return _EdgeAttention.apply(value, key, query, *graph.incoming())
    return reference.edge_attention(value, key, query, graph.dst)


def _check_shapes(value: Tensor, key: Tensor, query: Tensor, graph: Graph) -> None:
    num_heads, width = query.shape[1:]
    expected = {
        "query": (query, (graph.num_nodes(), num_heads, width)),
        "key": (key, (graph.num_edges(), num_heads, width)),
        "value": (value, (graph.num_edges(), num_heads, value.shape[-1])),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


class _EdgeAttention(torch.autograd.Function):
    """Attention by the Triton kernels (``kernels/edge_attention.py``). Keeps its operands only; the softmax is made again."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, key: Tensor, query: Tensor, order: Tensor, offsets: Tensor) -> Tensor:
        """[N, H, V]; order and offsets as in :class:`se3_fast.graph.EdgeOrder`."""
        from se3_fast.kernels.edge_attention import attend

        ctx.save_for_backward(value, key, query, order, offsets)
        return attend(value, key, query, order, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of value, key and query."""
        from se3_fast.kernels.edge_attention import attend_backward

        return *attend_backward(*ctx.saved_tensors, gradient), None, None
