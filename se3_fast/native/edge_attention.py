"""Shapes of the C++ operations ``edge_attention`` and ``edge_attention_backward`` (``csrc/edge_attention.cpp``), for tracing."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("se3_fast_cpp::edge_attention")
def _forward_shapes(
    messages: list[Tensor], queries: list[Tensor], order: Tensor, offsets: Tensor, widths: list[int], heads: int
) -> list[Tensor]:
    num_nodes = offsets.shape[0] - 1
    return [message.new_empty(num_nodes, width) for message, width in zip(messages, widths, strict=True)]


@torch.library.register_fake("se3_fast_cpp::edge_attention_backward")
def _backward_shapes(
    gradients: list[Tensor],
    messages: list[Tensor],
    queries: list[Tensor],
    order: Tensor,
    offsets: Tensor,
    widths: list[int],
    heads: int,
) -> list[Tensor]:
    return [torch.empty_like(operand) for operand in (*messages, *queries)]
