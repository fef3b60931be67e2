"""Attention over incoming edges by the compiled CPU operation (``csrc/edge_attention.cpp``).

It takes a convolution's messages degree by degree, each the value and the key in one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import in_at_least_float32, in_dtype
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.cpp.stored_dtype import stored_dtype
from se3_fast.backends.dense import edge_attention as formula
from se3_fast.backends.protocol import Support
from se3_fast.fiber import Features, Fiber
from se3_fast.graph import Graph

READS = "messages"


def support(is_compiled: bool) -> Support:
    """Not in compiled graphs, which the formula serves as well."""
    return Support.no("compiled graphs take the formula") if is_compiled else Support()


def edge_attention(value: Tensor, key: Tensor, query: Tensor, graph: Graph) -> Tensor:
    """See :func:`se3_fast.ops.edge_attention.edge_attention`."""
    message = torch.cat([value.flatten(1), key.flatten(1)], 1)[..., None]
    num_heads, width = value.shape[1:]
    (attended,) = _attend([message], [query.flatten(1)[..., None]], graph, [num_heads * width], num_heads)
    return attended.view(-1, num_heads, width)


def message_attention(messages: Features, query: Features, graph: Graph, value_fiber: Fiber, num_heads: int) -> Features:
    """See :func:`se3_fast.ops.edge_attention.message_attention`."""
    degrees = [str(degree) for degree in value_fiber.degrees]
    queries = [query[degree] for degree in degrees if degree in query]
    attended = _attend([messages[degree] for degree in degrees], queries, graph, value_fiber.channels, num_heads)
    return dict(zip(degrees, attended, strict=True))


def _attend(messages: list[Tensor], queries: list[Tensor], graph: Graph, value_channels: list[int], num_heads: int) -> list[Tensor]:
    """By the compiled CPU operation; see :class:`CppEdgeAttention`."""
    dtype = messages[0].dtype
    operands = [in_dtype(tensor, stored_dtype(dtype)).contiguous() for tensor in (*messages, *queries)]
    return [in_dtype(result, dtype) for result in CppEdgeAttention(graph, value_channels, num_heads).apply(*operands)]


@dataclass(frozen=True, eq=False)
class CppEdgeAttention(Operation):
    """Attention by the compiled CPU operation (``csrc/edge_attention.cpp``). Keeps its operands only; the softmax is made again.

    Operands: messages [E, channels of the value, then of the key, components] by degree, then queries [N, channels of the key,
    components] of the degrees with keys. Results: by degree [N, channels of the value, components].
    """

    graph: Graph
    value_channels: list[int]
    num_heads: int

    @property
    def constants(self) -> Sequence[Tensor]:
        """The edges."""
        return (self.graph.dst,)

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results."""
        messages, queries = operands[: len(self.value_channels)], operands[len(self.value_channels) :]
        arguments = (*self.graph.incoming(), self.value_channels, self.num_heads)
        return torch.ops.se3_fast_cpp.edge_attention(messages, queries, *arguments)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of messages and queries."""
        messages, queries = operands[: len(self.value_channels)], operands[len(self.value_channels) :]
        contiguous = [gradient.contiguous() for gradient in gradients]
        arguments = (*self.graph.incoming(), self.value_channels, self.num_heads)
        return torch.ops.se3_fast_cpp.edge_attention_backward(contiguous, messages, queries, *arguments)

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(_in_pytorch, self.graph, self.value_channels, self.num_heads))


def _in_pytorch(graph: Graph, value_channels: list[int], num_heads: int, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`CppEdgeAttention` computes, from its tensors."""
    messages, queries = operands[: len(value_channels)], operands[len(value_channels) :]
    split = [message.tensor_split([count], 1) for message, count in zip(messages, value_channels, strict=True)]
    value, key, query = (
        torch.cat([_per_head(part, num_heads) for part in parts], -1)
        for parts in ([value for value, _ in split], [key for _, key in split if key.shape[1]], queries)
    )
    attended = formula.attention(value, key, query, graph.dst)
    sizes = [(count, message.shape[2]) for message, count in zip(messages, value_channels, strict=True)]
    parts = attended.split([count // num_heads * components for count, components in sizes], -1)
    return [part.reshape(-1, *size) for part, size in zip(parts, sizes, strict=True)]


def _per_head(feature: Tensor, num_heads: int) -> Tensor:
    """[rows, C, 2d+1] to [rows, H, features of a head]."""
    rows, channels, components = feature.shape
    return feature.reshape(rows, num_heads, channels // num_heads * components)
