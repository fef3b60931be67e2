"""Shapes of what the compiled CPU operations return, for PyTorch's tracing; imported when the library is loaded.

The arguments are those of the operations' schemas, at the end of each ``csrc/<operation>.cpp``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Tensors = list[Tensor]


@torch.library.register_fake("se3_fast_cpp::tfn_conv")
def _tfn_conv(
    nodes: Tensors, edges: Tensors, hidden: Tensors, weights: Tensors, wigner: Tensor, src: Tensor, *rest: Any
) -> Tensors:
    _, _, _, description, _, pool = rest
    return _messages(nodes[0], nodes[0].shape[0] if pool else src.shape[0], description[1:], tables_before=2)


@torch.library.register_fake("se3_fast_cpp::tfn_conv_backward")
def _tfn_conv_backward(
    gradients: Tensors, nodes: Tensors, edges: Tensors, hidden: Tensors, weights: Tensors, *rest: Any
) -> Tensors:
    *_, rel_pos, _, _, _, with_weights, with_positions = rest
    operands = [*nodes, *edges, *hidden, *(weights if with_weights else []), *([rel_pos] if with_positions else [])]
    return [torch.empty_like(operand) for operand in operands]


@torch.library.register_fake("se3_fast_cpp::tfn_conv_by_source")
def _tfn_conv_by_source(nodes: Tensors, hidden: Tensors, weights: Tensors, wigner: Tensor, dst: Tensor, *rest: Any) -> Tensors:
    _, _, description, _, pool = rest
    return _messages(nodes[0], nodes[0].shape[0] if pool else dst.shape[0], description, tables_before=1)


@torch.library.register_fake("se3_fast_cpp::tfn_conv_by_source_backward")
def _tfn_conv_by_source_backward(
    gradients: Tensors, nodes: Tensors, hidden: Tensors, weights: Tensors, wigner: Tensor, *rest: Any
) -> Tensors:
    *_, with_weights, with_positions = rest
    torque = [wigner.new_empty(wigner.shape[0], 3)] if with_positions else []
    return [torch.empty_like(operand) for operand in (*nodes, *hidden, *(weights if with_weights else []))] + torque


def _messages(like: Tensor, count: int, description: list[int], tables_before: int) -> Tensors:
    """Messages by degree; the plan's integers hold tables (number of rows, then degree and channels of each) up to theirs."""
    start = 0
    for _ in range(tables_before):
        start += 1 + 2 * description[start]
    numbers = description[start + 1 : start + 1 + 2 * description[start]]
    return [like.new_empty(count, channels, 2 * degree + 1) for degree, channels in zip(numbers[::2], numbers[1::2], strict=True)]


@torch.library.register_fake("se3_fast_cpp::edge_attention")
def _edge_attention(
    messages: Tensors, queries: Tensors, order: Tensor, offsets: Tensor, value_channels: list[int], heads: int
) -> Tensors:
    pairs = zip(messages, value_channels, strict=True)
    return [message.new_empty(offsets.shape[0] - 1, channels, message.shape[2]) for message, channels in pairs]


@torch.library.register_fake("se3_fast_cpp::edge_attention_backward")
def _edge_attention_backward(gradients: Tensors, messages: Tensors, queries: Tensors, *rest: Any) -> Tensors:
    return [torch.empty_like(operand) for operand in (*messages, *queries)]


@torch.library.register_fake("se3_fast_cpp::radial")
def _radial(invariants: Tensor, parameters: Tensor, width: int, has_norm: bool, epsilon: float) -> Tensor:
    return invariants.new_empty(parameters.shape[0], invariants.shape[0], width)


@torch.library.register_fake("se3_fast_cpp::radial_backward")
def _radial_backward(gradient: Tensor, invariants: Tensor, parameters: Tensor, *rest: Any) -> Tensors:
    with_invariants = rest[-1]
    return [torch.empty_like(operand) for operand in ([parameters, invariants] if with_invariants else [parameters])]


@torch.library.register_fake("se3_fast_cpp::equivariant_norm")
def _equivariant_norm(features: Tensors, scale: Tensor, shift: Tensor, epsilon: float) -> Tensors:
    return [torch.empty_like(feature) for feature in features]


@torch.library.register_fake("se3_fast_cpp::equivariant_norm_backward")
def _equivariant_norm_backward(gradients: Tensors, features: Tensors, scale: Tensor, shift: Tensor, epsilon: float) -> Tensors:
    return [torch.empty_like(operand) for operand in (*features, scale, shift)]


@torch.library.register_fake("se3_fast_cpp::linear")
def _linear(parts: Tensors, counts: list[int], weights: Tensors) -> Tensors:
    first = [sum(counts[:index]) for index in range(len(counts))]
    examples = [parts[place] for place in first]
    return [part.new_empty(part.shape[0], weight.shape[0], part.shape[2]) for part, weight in zip(examples, weights, strict=True)]


@torch.library.register_fake("se3_fast_cpp::linear_backward")
def _linear_backward(
    gradients: Tensors, parts: Tensors, counts: list[int], weights: Tensors, with_parts: bool, with_weights: bool
) -> Tensors:
    return [torch.empty_like(operand) for operand in (*(parts if with_parts else []), *(weights if with_weights else []))]
