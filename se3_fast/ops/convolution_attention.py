"""Convolve and attend: one operation, as far as the backend has one.

A backend's attention reads the messages of a convolution left in the frames of their edges, or degree by degree, or laid out per
head (:class:`se3_fast.backends.protocol.EdgeAttention`).
"""

from __future__ import annotations

from se3_fast.backends.operands import Convolution
from se3_fast.fiber import Features, Fiber, HeadFeatures
from se3_fast.graph import Graph
from se3_fast.ops.edge_attention import aligned_edge_attention, edge_attention, message_attention, takes_messages
from se3_fast.ops.tfn_conv import aligned_messages, tfn_conv


def convolve_and_attend(
    call: Convolution, query: Features | HeadFeatures, value_fiber: Fiber, num_heads: int
) -> Features | HeadFeatures:
    """Attention over the incoming edges of each node, to the messages of a convolution.

    Args:
        call: the convolution, per edge; of each degree the channels of the value, then those of the key.
        query: ``{d: [N, C, 2d+1]}`` for the degrees that have keys; or laid out per head where
            :func:`~se3_fast.ops.tfn_conv.keeps_frames`, and the messages are left in the edges' frames.
        value_fiber: structure of the values.
        num_heads: H; divides all channel counts.

    Returns:
        Features of the N nodes with ``value_fiber``, laid out as the query; 0 for nodes without incoming edges.

    Raises:
        ValueError: if a shape does not fit the others or the graph.
    """
    if not isinstance(query, HeadFeatures):
        return attend_to_messages(tfn_conv(call), query, call.graph, value_fiber, num_heads)
    attended = aligned_edge_attention(aligned_messages(call), query.values, query.channels)
    return HeadFeatures(attended, _channels(value_fiber))


def attend_to_messages(messages: Features, query: Features, graph: Graph, value_fiber: Fiber, num_heads: int) -> Features:
    """As :func:`convolve_and_attend`, to messages ``{d: [E, C, 2d+1]}`` that are there already."""
    if takes_messages(graph.device):
        return message_attention(messages, query, graph, value_fiber, num_heads)
    value, key = values_and_keys(messages, value_fiber)
    key_fiber = Fiber({int(degree): feature.shape[1] for degree, feature in key.items()})
    heads = (value_fiber.to_attention_heads(value, num_heads), key_fiber.to_attention_heads(key, num_heads))
    attended = edge_attention(*heads, key_fiber.to_attention_heads(query, num_heads), graph)
    return HeadFeatures(attended, _channels(value_fiber)).by_degree()


def values_and_keys(messages: Features, value_fiber: Fiber) -> tuple[Features, Features]:
    """Messages taken apart: of each degree the channels of the value, and those behind them, if there are any."""
    value = {str(degree): messages[str(degree)][:, : value_fiber[degree]] for degree in value_fiber.degrees}
    rest = {str(degree): messages[str(degree)][:, value_fiber[degree] :] for degree in value_fiber.degrees}
    return value, {degree: key for degree, key in rest.items() if key.shape[1] > 0}


def _channels(fiber: Fiber) -> tuple[tuple[int, int], ...]:
    return tuple((degree, fiber[degree]) for degree in fiber.degrees)
