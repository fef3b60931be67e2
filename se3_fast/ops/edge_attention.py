"""Attention over incoming edges.

Formula: :mod:`se3_fast.reference.edge_attention`. Backends: that module, ``triton`` (``kernels/edge_attention.py``) and ``cpp``
(``csrc/edge_attention.cpp``). With backend ``triton`` there is a second form, which takes the messages of a convolution as they are
in the frames of their edges; with backend ``cpp`` one that takes them degree by degree, each the value and the key in one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.fiber import Features, Fiber
from se3_fast.graph import Graph
from se3_fast.ops.backend import selected_backend
from se3_fast.ops.opaque import OpaqueOperation
from se3_fast.ops.second_derivatives import differentiable_gradients
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
    if takes_messages(value.device):
        message = torch.cat([value.flatten(1), key.flatten(1)], 1)
        num_heads, width = value.shape[1:]
        (attended,) = _by_cpp([message], [query.flatten(1)], graph, [num_heads * width], num_heads)
        return attended.unflatten(1, (num_heads, width))
    return reference.edge_attention(value, key, query, graph.dst)


def takes_messages(device: torch.device) -> bool:
    """Whether :func:`message_attention` runs, for tensors on ``device``: on backend ``cpp``, but not in compiled graphs."""
    return not torch.compiler.is_compiling() and selected_backend(device) == "cpp"


def message_attention(messages: Features, query: Features, graph: Graph, value_fiber: Fiber, num_heads: int) -> Features:
    """Attention whose values and keys are the messages of a convolution, as it returns them; backend ``cpp``.

    Args:
        messages: ``{d: [E, C, 2d+1]}`` for the degrees of ``value_fiber``: the channels of the value, then those of the key.
        query: ``{d: [N, C, 2d+1]}`` for the degrees that have keys.
        graph: N nodes, E edges.
        value_fiber: structure of the values.
        num_heads: H; divides all channel counts.

    Returns:
        ``{d: [N, C, 2d+1]}`` with ``value_fiber`` in the dtype of the messages; 0 for a node without incoming edges.

    Raises:
        ValueError: if a shape does not fit the others or the graph.
    """
    expected = {}
    for degree in value_fiber.degrees:
        key, size = str(degree), 2 * degree + 1
        num_keys = messages[key].shape[1] - value_fiber[degree]
        expected[f"messages['{key}']"] = (messages[key], (graph.num_edges(), value_fiber[degree] + num_keys, size))
        if num_keys > 0:
            expected[f"query['{key}']"] = (query[key], (graph.num_nodes(), num_keys, size))
    _check(expected)
    degrees = [str(degree) for degree in value_fiber.degrees]
    widths = [value_fiber[degree] * (2 * degree + 1) for degree in value_fiber.degrees]
    queries = [query[degree].flatten(1) for degree in degrees if degree in query]
    attended = _by_cpp([messages[degree].flatten(1) for degree in degrees], queries, graph, widths, num_heads)
    shapes = [(value_fiber[degree], 2 * degree + 1) for degree in value_fiber.degrees]
    return {degree: result.unflatten(1, shape) for degree, result, shape in zip(degrees, attended, shapes, strict=True)}


def _by_cpp(messages: list[Tensor], queries: list[Tensor], graph: Graph, widths: list[int], num_heads: int) -> list[Tensor]:
    """By the compiled CPU operation, which computes in float32 or float64; see :class:`CppEdgeAttention`."""
    dtype = messages[0].dtype
    compute_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    operands = [tensor.to(compute_dtype).contiguous() for tensor in (*messages, *queries)]
    return [result.to(dtype) for result in CppEdgeAttention.apply(graph, widths, num_heads, *operands)]


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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of value, key and query."""
        if torch.is_grad_enabled():  # to be differentiated again
            return tuple(differentiable_gradients(_of_heads, ctx.saved_tensors, ctx.needs_input_grad, [gradient]))
        from se3_fast.kernels.edge_attention import attend_backward

        return *attend_backward(*ctx.saved_tensors, gradient), None, None


def _of_heads(operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`_EdgeAttention` computes, from its tensors."""
    value, key, query, order, offsets = operands
    dst = torch.empty_like(order)
    dst[order] = torch.arange(len(query), device=order.device).repeat_interleave(offsets.diff(), output_size=len(order))
    return [reference.edge_attention(value, key, query, dst)]


class CppEdgeAttention(torch.autograd.Function):
    """Attention by the compiled CPU operation (``csrc/edge_attention.cpp``). Keeps its operands only; the softmax is made again."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, widths: list[int], num_heads: int, *operands: Tensor) -> tuple[Tensor, ...]:
        """By degree [N, width], from messages [E, width + key width] by degree, then queries [N, key width] of those with keys."""
        ctx.graph, ctx.widths, ctx.num_heads = graph, widths, num_heads
        ctx.save_for_backward(*operands)
        messages, queries = operands[: len(widths)], operands[len(widths) :]
        return tuple(torch.ops.se3_fast_cpp.edge_attention(messages, queries, *graph.incoming(), widths, num_heads))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of messages and queries."""
        widths, operands = ctx.widths, ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            evaluate = partial(_in_pytorch, ctx.graph, widths, ctx.num_heads)
            return None, None, None, *differentiable_gradients(evaluate, operands, ctx.needs_input_grad[3:], gradients)
        messages, queries = operands[: len(widths)], operands[len(widths) :]
        contiguous = [gradient.contiguous() for gradient in gradients]
        found = torch.ops.se3_fast_cpp.edge_attention_backward(
            contiguous, messages, queries, *ctx.graph.incoming(), widths, ctx.num_heads
        )
        return None, None, None, *found


def _in_pytorch(graph: Graph, widths: list[int], num_heads: int, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`CppEdgeAttention` computes, from its tensors."""
    messages, queries = operands[: len(widths)], operands[len(widths) :]
    values = [message[:, :width].unflatten(1, (num_heads, -1)) for message, width in zip(messages, widths, strict=True)]
    keys = [message[:, width:].unflatten(1, (num_heads, -1)) for message, width in zip(messages, widths, strict=True)]
    query = torch.cat([query.unflatten(1, (num_heads, -1)) for query in queries], -1)
    attended = reference.edge_attention(torch.cat(values, -1), torch.cat(keys, -1), query, graph.dst)
    return [part.flatten(1) for part in attended.split([width // num_heads for width in widths], -1)]


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
