"""Attention over incoming edges.

Formula: :mod:`se3_fast.backends.dense.edge_attention`. Backends: that module, ``triton`` (``kernels/edge_attention.py``) and
``cpp`` (``csrc/edge_attention.cpp``). With backend ``triton`` there is a second form, which takes the messages of a convolution as
they are in the frames of their edges; with backend ``cpp`` one that takes them degree by degree, each the value and the key in one
tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype
from se3_fast.autograd.opaque import OpaqueOperation
from se3_fast.autograd.operation import LinearOperation, Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.choice import selected_backend
from se3_fast.backends.dense import edge_attention as reference
from se3_fast.backends.dense.edge_frames import wigner_of_angles
from se3_fast.fiber import Features, Fiber
from se3_fast.graph import Graph
from se3_fast.ops.second_derivatives import in_at_least_float32

if TYPE_CHECKING:
    from se3_fast.backends.triton.edge_attention import AlignedMessages
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
        return _opaque_attention("", operands)[0] if torch.compiler.is_compiling() else _EdgeAttention().apply(*operands)[0]
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
    operands = [tensor.to(accumulation_dtype(dtype)).contiguous() for tensor in (*messages, *queries)]
    return [result.to(dtype) for result in CppEdgeAttention(graph, widths, num_heads).apply(*operands)]


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
    from se3_fast.backends.triton.edge_attention import wigner_tables
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
    (by_edge,) = _Transposition().apply(messages.values)
    assert by_edge is not None
    return _AlignedEdgeAttention(layout).apply(by_edge, query, messages.angles, table, *messages.graph.incoming())[0]


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


class _EdgeAttention(Operation):
    """Attention by the Triton kernels (``kernels/edge_attention.py``). Keeps its operands only; the softmax is made again.

    Operands: value, key, query; order and offsets as in :class:`se3_fast.graph.EdgeOrder`. Result: [N, H, V].
    """

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The result."""
        from se3_fast.kernels.edge_attention import attend

        return [attend(*operands)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of value, key and query."""
        from se3_fast.kernels.edge_attention import attend_backward

        return *attend_backward(*operands, *gradients), None, None

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(_of_heads))


def _of_heads(operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`_EdgeAttention` computes, from its tensors."""
    value, key, query, order, offsets = operands
    return [reference.edge_attention(value, key, query, _destinations(order, offsets))]


def _destinations(order: Tensor, offsets: Tensor) -> Tensor:
    """[E] int64, from the edges grouped by destination."""
    nodes = torch.arange(len(offsets) - 1, device=order.device)
    return torch.empty_like(order).scatter_(0, order, nodes.repeat_interleave(offsets.diff(), output_size=len(order)))


@dataclass(frozen=True, eq=False)
class CppEdgeAttention(Operation):
    """Attention by the compiled CPU operation (``csrc/edge_attention.cpp``). Keeps its operands only; the softmax is made again.

    Operands: messages [E, width + key width] by degree, then queries [N, key width] of the degrees with keys. Results: by degree
    [N, width].
    """

    graph: Graph
    widths: list[int]
    num_heads: int

    @property
    def constants(self) -> Sequence[Tensor]:
        """The edges."""
        return (self.graph.dst,)

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results."""
        messages, queries = operands[: len(self.widths)], operands[len(self.widths) :]
        arguments = (*self.graph.incoming(), self.widths, self.num_heads)
        return torch.ops.se3_fast_cpp.edge_attention(messages, queries, *arguments)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of messages and queries."""
        messages, queries = operands[: len(self.widths)], operands[len(self.widths) :]
        contiguous = [gradient.contiguous() for gradient in gradients]
        arguments = (*self.graph.incoming(), self.widths, self.num_heads)
        return torch.ops.se3_fast_cpp.edge_attention_backward(contiguous, messages, queries, *arguments)

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(_in_pytorch, self.graph, self.widths, self.num_heads))


def _in_pytorch(graph: Graph, widths: list[int], num_heads: int, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`CppEdgeAttention` computes, from its tensors."""
    messages, queries = operands[: len(widths)], operands[len(widths) :]
    values = [message[:, :width].unflatten(1, (num_heads, -1)) for message, width in zip(messages, widths, strict=True)]
    keys = [message[:, width:].unflatten(1, (num_heads, -1)) for message, width in zip(messages, widths, strict=True)]
    query = torch.cat([query.unflatten(1, (num_heads, -1)) for query in queries], -1)
    attended = reference.edge_attention(torch.cat(values, -1), torch.cat(keys, -1), query, graph.dst)
    return [part.flatten(1) for part in attended.split([width // num_heads for width in widths], -1)]


class _Transposition(LinearOperation):
    """[m, n] to [n, m] contiguous, by a Triton kernel where it is not so already."""

    def evaluate(self, operands: Any) -> Tensors:
        """The result."""
        from se3_fast.kernels.edge_attention import transposed

        return [transposed(*operands).contiguous()]

    @property
    def transpose(self) -> _Transposition:
        """The same."""
        return self


@dataclass(frozen=True, eq=False)
class _AlignedEdgeAttention(Operation):
    """Attention in the frames of the edges by the Triton kernels.

    Keeps the messages, those of an edge side by side, and the query. The angles are constants: a convolution's gradient with
    respect to positions (the torque identity, DESIGN 1.2) takes all that its messages are used for into account.

    Operands: messages [E, rows], query, angles, Wigner tables; order and offsets as in :class:`se3_fast.graph.EdgeOrder`. Result:
    [N, H, V].
    """

    layout: FrameLayout

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The result."""
        from se3_fast.kernels.edge_attention import attend_in_frames

        return [attend_in_frames(self.layout, *operands)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of messages and query."""
        from se3_fast.kernels.edge_attention import attend_in_frames_backward

        return *attend_in_frames_backward(self.layout, *operands, *gradients), None, None, None, None

    @property
    def formula(self) -> PlainFormula:
        """The published one, of the messages turned out of the frames."""
        return PlainFormula(in_at_least_float32(_in_frames, self.layout))


def _in_frames(layout: FrameLayout, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`_AlignedEdgeAttention` computes, from its tensors."""
    by_edge, query, angles, _, order, offsets = operands
    degrees, (values, keys) = layout.degrees[::4], ([], [])
    blocks = wigner_of_angles(angles, max(degrees))
    first = 0
    for number, degree in enumerate(degrees):
        num_channels, num_components = layout.degrees[4 * number + 3], 2 * degree + 1
        rows = by_edge[:, first : first + num_channels * num_components]
        aligned = rows.unflatten(1, (num_components, num_channels)).transpose(1, 2)  # [E, C, 2d+1]
        turned = aligned @ blocks[degree].to(aligned.dtype).transpose(1, 2)
        num_values = layout.values[4 * number] * layout.heads
        values.append(turned[:, :num_values].reshape(len(turned), layout.heads, -1))
        keys.append(turned[:, num_values:].reshape(len(turned), layout.heads, -1))
        first += num_channels * num_components
    return [reference.edge_attention(torch.cat(values, -1), torch.cat(keys, -1), query, _destinations(order, offsets))]


_opaque_attention = OpaqueOperation(
    "edge_attention",
    run=lambda description, operands: list(_EdgeAttention().apply(*operands)),
    shapes=lambda description, operands: [operands[0].new_empty(operands[2].shape[0], *operands[0].shape[1:])],
)
