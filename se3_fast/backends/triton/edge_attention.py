"""Attention over incoming edges by the Triton kernels (``kernels/edge_attention.py``, ``kernels/edge_attention_in_frames.py``).

There are two forms: of values and keys laid out per head, and of a convolution's messages as they are in the frames of their edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import in_at_least_float32
from se3_fast.autograd.operation import LinearOperation, Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends import compiled
from se3_fast.backends.dense import edge_attention as formula
from se3_fast.backends.dense.edge_frames import wigner_of_angles
from se3_fast.backends.operands import AlignedMessages
from se3_fast.backends.triton.edge_frames import axis_swaps
from se3_fast.graph import Graph
from se3_fast.kernels.edge_attention import attend, attend_backward
from se3_fast.kernels.edge_attention_in_frames import (
    FrameLayout,
    attend_in_frames,
    attend_in_frames_backward,
    by_edge,
    by_row,
    frame_layout,
)

READS = "frames"


def edge_attention(value: Tensor, key: Tensor, query: Tensor, graph: Graph) -> Tensor:
    """See :func:`se3_fast.ops.edge_attention.edge_attention`."""
    operands = [value, key, query, *graph.incoming()]
    if torch.compiler.is_compiling():
        return compiled.edge_attention("", operands)[0]
    return _EdgeAttention().apply(*operands)[0]


def run_node(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The node of compiled graphs."""
    return list(_EdgeAttention().apply(*operands))


def aligned_edge_attention(messages: AlignedMessages, query: Tensor, key_channels: tuple[tuple[int, int], ...]) -> Tensor:
    """See :func:`se3_fast.ops.edge_attention.aligned_edge_attention`."""
    of_key = dict(key_channels)
    value_channels = tuple((degree, channels - of_key.get(degree, 0)) for degree, channels in messages.channels)
    layout = frame_layout(query.shape[1], value_channels, key_channels)
    (of_edges,) = _ByEdge().apply(messages.values)
    assert of_edges is not None
    return _AlignedEdgeAttention(layout).apply(of_edges, query, messages.angles, *messages.graph.incoming())[0]


class _EdgeAttention(Operation):
    """Attention by the Triton kernels (``kernels/edge_attention.py``). Keeps its operands only; the softmax is made again.

    Operands: value, key, query; order and offsets as in :class:`se3_fast.graph.EdgeOrder`. Result: [N, H, V].
    """

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The result."""
        return [attend(*operands)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of value, key and query."""
        return *attend_backward(*operands, *gradients), None, None

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(_of_heads))


def _of_heads(operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`_EdgeAttention` computes, from its tensors."""
    value, key, query, order, offsets = operands
    return [formula.attention(value, key, query, _destinations(order, offsets))]


def _destinations(order: Tensor, offsets: Tensor) -> Tensor:
    """[E] int64, from the edges grouped by destination."""
    nodes = torch.arange(len(offsets) - 1, device=order.device)
    return torch.empty_like(order).scatter_(0, order, nodes.repeat_interleave(offsets.diff(), output_size=len(order)))


class _ByEdge(LinearOperation):
    """Aligned features [rows, E] as [E, rows], by a Triton kernel where they do not lie so already."""

    def evaluate(self, operands: Any) -> Tensors:
        """The result."""
        return [by_edge(*operands)]

    @property
    def transpose(self) -> _ByRow:
        """The way back."""
        return _ByRow()


class _ByRow(LinearOperation):
    """[E, rows] as [rows, E], as the convolution reads it."""

    def evaluate(self, operands: Any) -> Tensors:
        """The result."""
        return [by_row(*operands)]

    @property
    def transpose(self) -> _ByEdge:
        """The way there."""
        return _ByEdge()


@dataclass(frozen=True, eq=False)
class _AlignedEdgeAttention(Operation):
    """Attention in the frames of the edges by the Triton kernels.

    Keeps the messages, those of an edge side by side, and the query. The angles are constants: a convolution's gradient with
    respect to positions (the torque identity, DESIGN 1.2) takes all that its messages are used for into account.

    Operands: messages [E, rows], query, angles; order and offsets as in :class:`se3_fast.graph.EdgeOrder`. Result:
    [N, H, V].
    """

    layout: FrameLayout

    @property
    def swaps(self) -> tuple[float, ...]:
        """J of all degrees up to the largest."""
        return axis_swaps(max(self.layout.degrees[::3]))

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The result."""
        return [attend_in_frames(self.layout, self.swaps, *operands)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of messages and query."""
        return *attend_in_frames_backward(self.layout, self.swaps, *operands, *gradients), None, None, None

    @property
    def formula(self) -> PlainFormula:
        """The published one, of the messages turned out of the frames."""
        return PlainFormula(in_at_least_float32(_in_frames, self.layout))


def _in_frames(layout: FrameLayout, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`_AlignedEdgeAttention` computes, from its tensors."""
    of_edges, query, angles, order, offsets = operands
    degrees, (values, keys) = layout.degrees[::3], ([], [])
    blocks = wigner_of_angles(angles, max(degrees))
    first = 0
    for number, degree in enumerate(degrees):
        num_channels, num_components = layout.degrees[3 * number + 2], 2 * degree + 1
        rows = of_edges[:, first : first + num_channels * num_components]
        aligned = rows.unflatten(1, (num_components, num_channels)).transpose(1, 2)  # [E, C, 2d+1]
        turned = aligned @ blocks[degree].to(aligned.dtype).transpose(1, 2)
        num_values = layout.values[4 * number] * layout.heads
        values.append(turned[:, :num_values].reshape(len(turned), layout.heads, -1))
        keys.append(turned[:, num_values:].reshape(len(turned), layout.heads, -1))
        first += num_channels * num_components
    return [formula.attention(torch.cat(values, -1), torch.cat(keys, -1), query, _destinations(order, offsets))]
