"""Attention over incoming edges. Formula: :mod:`se3_fast.backends.dense.edge_attention`.

Values and keys come laid out per head, or as the messages of a convolution in the form that the backend reads: degree by degree, or
in the frames of their edges.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype
from se3_fast.backends.choice import implementation
from se3_fast.backends.operands import AlignedMessages
from se3_fast.fiber import Features, Fiber
from se3_fast.graph import Graph


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
        ValueError: if a shape does not fit the others or the graph, or a dtype is none that is computed with.
    """
    _check_shapes(value, key, query, graph)
    return implementation("edge_attention", value.device).edge_attention(value, key, query, graph)


def takes_messages(device: torch.device) -> bool:
    """Whether :func:`message_attention` runs, for tensors on ``device``."""
    return implementation("edge_attention", device).READS == "messages"


def message_attention(messages: Features, query: Features, graph: Graph, value_fiber: Fiber, num_heads: int) -> Features:
    """Attention whose values and keys are the messages of a convolution, as it returns them; where :func:`takes_messages`.

    Args:
        messages: ``{d: [E, C, 2d+1]}`` for the degrees of ``value_fiber``: the channels of the value, then those of the key.
        query: ``{d: [N, C, 2d+1]}`` for the degrees that have keys.
        graph: N nodes, E edges.
        value_fiber: structure of the values.
        num_heads: H; divides all channel counts.

    Returns:
        ``{d: [N, C, 2d+1]}`` with ``value_fiber`` in the dtype of the messages; 0 for a node without incoming edges.

    Raises:
        ValueError: if a shape does not fit the others or the graph, or a dtype is none that is computed with.
    """
    expected = {}
    for degree in value_fiber.degrees:
        key, size = str(degree), 2 * degree + 1
        num_keys = messages[key].shape[1] - value_fiber[degree]
        expected[f"messages['{key}']"] = (messages[key], (graph.num_edges(), value_fiber[degree] + num_keys, size))
        if num_keys > 0:
            expected[f"query['{key}']"] = (query[key], (graph.num_nodes(), num_keys, size))
    _check(expected)
    return implementation("edge_attention", graph.device).message_attention(messages, query, graph, value_fiber, num_heads)


def aligned_edge_attention(messages: AlignedMessages, query: Tensor, key_channels: tuple[tuple[int, int], ...]) -> Tensor:
    """Attention whose values and keys are the messages of a convolution, still in the frames of their edges.

    Args:
        messages: of every degree the channels of the value, then those of the key.
        query: [N, H, K], degrees ascending, then channels, then components.
        key_channels: (degree, channels) of keys and query; H divides all channels of keys and of values.

    Returns:
        [N, H, V] in the dtype of the messages, ordered as the query; 0 for a node without incoming edges.

    Raises:
        ValueError: if a shape does not fit the others or the graph of the messages, or a dtype is none that is computed with.
    """
    of_key, num_heads = dict(key_channels), query.shape[1]
    rows = sum(channels * (2 * degree + 1) for degree, channels in messages.channels)
    key_width = sum(channels * (2 * degree + 1) for degree, channels in of_key.items()) // num_heads
    expected = {
        "messages": (messages.values, (rows, messages.graph.num_edges())),
        "query": (query, (messages.graph.num_nodes(), num_heads, key_width)),
    }
    _check(expected)
    return implementation("edge_attention", query.device).aligned_edge_attention(messages, query, key_channels)


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
        check_dtype(name, tensor)
