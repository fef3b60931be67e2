"""Attention over incoming edges. Formula: :mod:`se3_fast.reference.edge_attention`, which every backend but ``triton`` uses.

With backend ``triton`` there is a second form, which takes the messages of a convolution as they are in the frames of their edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.graph import Graph
from se3_fast.ops.backend import selected_backend
from se3_fast.ops.opaque import OpaqueOperation
from se3_fast.reference import edge_attention as reference

if TYPE_CHECKING:
    from se3_fast.fused.edge_attention import AlignedMessages
    from se3_fast.kernels.edge_attention import FrameLayout


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
        operands = [value, key, query, *graph.incoming()]
        return _opaque_attention("", operands)[0] if torch.compiler.is_compiling() else _EdgeAttention.apply(*operands)
    return reference.edge_attention(value, key, query, graph.dst)


def aligned_edge_attention(messages: AlignedMessages, query: Tensor, key_channels: tuple[tuple[int, int], ...]) -> Tensor:
    """Attention whose values and keys are the messages of a convolution, still in the frames of their edges; backend ``triton``.

    Args:
        messages: of every degree the channels of the value, then those of the key.
        query: [N, H, K], degrees ascending, then channels, then components.
        key_channels: (degree, channels) of keys and query; H divides all channels of keys and of values.

    Returns:
        [N, H, V] in the dtype of the messages, ordered as the query; 0 for a node without incoming edges.

    Raises:
        ValueError: if a shape does not fit the others or the graph of the messages.
    """
    from se3_fast.fused.edge_attention import wigner_tables
    from se3_fast.kernels.edge_attention import frame_layout

    of_key = dict(key_channels)
    value_channels = tuple((degree, channels - of_key.get(degree, 0)) for degree, channels in messages.channels)
    layout = frame_layout(query.shape[1], value_channels, key_channels)
    expected = {
        "messages": (messages.values, (layout.rows, messages.graph.num_edges())),
        "query": (query, (messages.graph.num_nodes(), layout.heads, layout.key_width)),
    }
    _check(expected)
    table = wigner_tables([degree for degree, _ in messages.channels], messages.angles)
    return _AlignedEdgeAttention.apply(layout, messages.values, query, messages.angles, table, *messages.graph.incoming())


def _check_shapes(value: Tensor, key: Tensor, query: Tensor, graph: Graph) -> None:
    num_heads, width = query.shape[1:]
    expected = {
        "query": (query, (graph.num_nodes(), num_heads, width)),
        "key": (key, (graph.num_edges(), num_heads, width)),
        "value": (value, (graph.num_edges(), num_heads, value.shape[-1])),
    }
    _check(expected)


def _check(expected: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
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


class _AlignedEdgeAttention(torch.autograd.Function):
    """Attention in the frames of the edges by the Triton kernels.

    Keeps the messages, those of an edge side by side, and the query. The angles are constants: a convolution's gradient with
    respect to positions (the torque identity, DESIGN 1.2) takes all that its messages are used for into account.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layout: FrameLayout,
        messages: Tensor,
        query: Tensor,
        angles: Tensor,
        table: Tensor,
        order: Tensor,
        offsets: Tensor,
    ) -> Tensor:
        """[N, H, V] from messages [rows, E]; order and offsets as in :class:`se3_fast.graph.EdgeOrder`."""
        from se3_fast.kernels.edge_attention import attend_in_frames, transposed

        by_edge = transposed(messages)
        ctx.layout = layout
        ctx.save_for_backward(by_edge, query, angles, table, order, offsets)
        return attend_in_frames(layout, by_edge, query, angles, table, order, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of messages, [rows, E] contiguous in the frames, and of the query."""
        from se3_fast.kernels.edge_attention import attend_in_frames_backward, transposed

        by_edge, query_gradient = attend_in_frames_backward(ctx.layout, *ctx.saved_tensors, gradient)
        return None, transposed(by_edge).contiguous(), query_gradient, None, None, None, None


_opaque_attention = OpaqueOperation(
    "edge_attention",
    run=lambda description, operands: [_EdgeAttention.apply(*operands)],
    shapes=lambda description, operands: [operands[0].new_empty(operands[2].shape[0], *operands[0].shape[1:])],
)
