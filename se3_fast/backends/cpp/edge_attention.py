"""Attention over incoming edges by the compiled CPU operation (``csrc/edge_attention.cpp``).

It takes a convolution's messages degree by degree, each the value and the key in one tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, in_at_least_float32
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
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
    message = torch.cat([value.flatten(1), key.flatten(1)], 1)
    num_heads, width = value.shape[1:]
    (attended,) = _attend([message], [query.flatten(1)], graph, [num_heads * width], num_heads)
    return attended.unflatten(1, (num_heads, width))


def message_attention(messages: Features, query: Features, graph: Graph, value_fiber: Fiber, num_heads: int) -> Features:
    """See :func:`se3_fast.ops.edge_attention.message_attention`."""
    degrees = [str(degree) for degree in value_fiber.degrees]
    widths = [value_fiber[degree] * (2 * degree + 1) for degree in value_fiber.degrees]
    queries = [query[degree].flatten(1) for degree in degrees if degree in query]
    attended = _attend([messages[degree].flatten(1) for degree in degrees], queries, graph, widths, num_heads)
    shapes = [(value_fiber[degree], 2 * degree + 1) for degree in value_fiber.degrees]
    return {degree: result.unflatten(1, shape) for degree, result, shape in zip(degrees, attended, shapes, strict=True)}


def _attend(messages: list[Tensor], queries: list[Tensor], graph: Graph, widths: list[int], num_heads: int) -> list[Tensor]:
    """By the compiled CPU operation, which computes in float32 or float64; see :class:`CppEdgeAttention`."""
    dtype = messages[0].dtype
    operands = [tensor.to(accumulation_dtype(dtype)).contiguous() for tensor in (*messages, *queries)]
    return [result.to(dtype) for result in CppEdgeAttention(graph, widths, num_heads).apply(*operands)]


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
    attended = formula.attention(torch.cat(values, -1), torch.cat(keys, -1), query, graph.dst)
    return [part.flatten(1) for part in attended.split([width // num_heads for width in widths], -1)]
