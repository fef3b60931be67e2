"""AttentionSE3 and AttentionBlockSE3: equivariant graph attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from se3_fast.fiber import Features, Fiber
from se3_fast.graph import Graph, as_graph
from se3_fast.layers.convolution import ConvSE3, ConvSE3FuseLevel
from se3_fast.layers.linear import LinearSE3
from se3_fast.layers.low_memory import recompute_in_backward
from se3_fast.ops.edge_attention import aligned_edge_attention, edge_attention, message_attention, takes_messages
from se3_fast.ops.edge_frames import EdgeGeometry

if TYPE_CHECKING:
    from se3_fast.fused.edge_attention import AlignedMessages

ChannelsDivisor = int | Mapping[int, int] | Mapping[str, int] | None


class AttentionSE3(nn.Module):
    """Multi-head attention over the incoming edges of each node. Formula: :mod:`se3_fast.reference.edge_attention`.

    The score is an inner product over all degrees, hence invariant; heads split the channels of each degree in contiguous groups.

    Args:
        num_heads: number of heads; must divide every channel count.
        key_fiber: structure of keys and queries.
        value_fiber: structure of the values.

    Raises:
        ValueError: if ``num_heads`` does not divide a channel count.
    """

    def __init__(self, num_heads: int, key_fiber: Fiber, value_fiber: Fiber) -> None:
        super().__init__()
        for name, fiber in (("key_fiber", key_fiber), ("value_fiber", value_fiber)):
            for degree, channels in fiber:
                if channels % num_heads:
                    raise ValueError(
                        f"num_heads: expected a divisor of the {channels} channels of degree {degree} in {name}, got {num_heads}"
                    )
        self.num_heads = num_heads
        self.key_fiber = key_fiber
        self.value_fiber = value_fiber

    def forward(self, value: Features | Tensor, key: Features | Tensor, query: Features | Tensor, graph: Any) -> Features:
        """Attend.

        Args:
            value: ``{d: [E, C, 2d+1]}`` with ``value_fiber``, or one tensor [E, C, sum of 2d+1], degrees ascending.
            key: the same with ``key_fiber``.
            query: ``{d: [N, C, 2d+1]}`` with ``key_fiber``, or one tensor.
            graph: Graph, DGLGraph or PyTorch Geometric data.

        Returns:
            ``{d: [N, C, 2d+1]}`` with ``value_fiber``; 0 for nodes without incoming edges.
        """
        graph = as_graph(graph)
        attended = edge_attention(
            self._heads(value, self.value_fiber),
            self._heads(key, self.key_fiber),
            self._heads(query, self.key_fiber),
            graph,
        )  # [N, H, value features / H]
        return self._by_degree(attended)

    def in_frames(self, messages: AlignedMessages, query: Features) -> Features:
        """Attend to the messages of a convolution, left in the frames of their edges: of each degree the value, then the key.

        Args:
            messages: of :meth:`ConvSE3.aligned_messages`, with the channels of ``value_fiber + key_fiber``.
            query: ``{d: [N, C, 2d+1]}`` with ``key_fiber``.

        Returns:
            As :meth:`forward`.
        """
        key_channels = tuple((degree, self.key_fiber[degree]) for degree in self.key_fiber.degrees)
        return self._by_degree(aligned_edge_attention(messages, self._heads(query, self.key_fiber), key_channels))

    def _by_degree(self, attended: Tensor) -> Features:
        widths = [self.value_fiber[degree] // self.num_heads * (2 * degree + 1) for degree in self.value_fiber.degrees]
        parts = attended.split(widths, -1)
        return {
            str(degree): part.reshape(part.shape[0], self.value_fiber[degree], 2 * degree + 1)
            for degree, part in zip(self.value_fiber.degrees, parts, strict=True)
        }

    def _heads(self, features: Features | Tensor, fiber: Fiber) -> Tensor:
        if isinstance(features, Tensor):
            widths = [2 * degree + 1 for degree in fiber.degrees]
            features = dict(zip(map(str, fiber.degrees), features.split(widths, -1), strict=True))
        return fiber.to_attention_heads(features, self.num_heads)


class AttentionBlockSE3(nn.Module):
    """Keys and values by one convolution, queries by a linear map, attention, and a projection of the result beside the input.

    Fuchs et al., SE(3)-Transformers (arXiv:2006.10503), equations 10 and 11.

    Args:
        fiber_in: structure of the input.
        fiber_out: structure of the output.
        fiber_edge: structure of the edge features, without the edge length.
        num_heads: number of attention heads.
        channels_div: keys and values have this many times fewer channels than ``fiber_out``; one number, or one for each degree
            (``{0: 4, 1: 1}``, keys may be strings); None: as many channels.
        use_layer_norm: layer normalisation in the radial profiles.
        max_degree: largest degree of the model.
        fuse_level: see :class:`ConvSE3FuseLevel`.
        low_memory: keep only the inputs of the block for the backward pass; keys and values are computed again there.

    Raises:
        ValueError: if ``channels_div`` does not divide a channel count of ``fiber_out``, or lacks one of its degrees.
    """

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber | None = None,
        num_heads: int = 4,
        channels_div: ChannelsDivisor = 2,
        use_layer_norm: bool = False,
        max_degree: int = 4,
        fuse_level: ConvSE3FuseLevel = ConvSE3FuseLevel.FULL,
        low_memory: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.fiber_in = fiber_in
        self.low_memory = low_memory
        self.value_fiber = _divided(fiber_out, channels_div)
        self.key_fiber = Fiber([(degree, channels) for degree, channels in self.value_fiber if fiber_in[degree] > 0])
        self.to_key_value = ConvSE3(
            fiber_in,
            self.value_fiber + self.key_fiber,
            fiber_edge if fiber_edge is not None else Fiber({}),
            pool=False,
            use_layer_norm=use_layer_norm,
            max_degree=max_degree,
            fuse_level=fuse_level,
        )
        self.to_query = LinearSE3(fiber_in, self.key_fiber)
        self.attention = AttentionSE3(num_heads, self.key_fiber, self.value_fiber)
        self.project = LinearSE3(self.value_fiber + fiber_in, fiber_out)

    def forward(
        self,
        node_features: Features,
        edge_features: Features,
        graph: Any,
        basis: EdgeGeometry | dict[str, Tensor],
    ) -> Features:
        """Apply the block: ``{d: [N, C, 2d+1]}`` with ``fiber_in`` to the same with ``fiber_out``.

        Args:
            node_features: ``{d: [N, C, 2d+1]}``.
            edge_features: ``{d: [E, C, 2d+1]}``, the edge length appended as last degree-0 channel.
            graph: Graph, DGLGraph or PyTorch Geometric data.
            basis: the geometry of the edges, or a published basis dict.

        Raises:
            ValueError: if features do not fit the fibers or the graph.
        """
        graph = as_graph(graph)
        self.fiber_in.check_features(node_features, "node_features")
        query = self.to_query(node_features)
        geometry = self.to_key_value.prepare_geometry(graph, basis)
        if self.low_memory:
            attended = recompute_in_backward(self._attend, query, node_features, edge_features, graph, geometry)
        else:
            attended = self._attend(query, node_features, edge_features, graph, geometry)
        beside_input = {
            degree: torch.cat([feature, node_features[degree].to(feature.dtype)], 1) if degree in node_features else feature
            for degree, feature in attended.items()
        }
        return self.project(beside_input)

    def _attend(
        self,
        query: Features,
        node_features: Features,
        edge_features: Features,
        graph: Graph,
        geometry: EdgeGeometry,
    ) -> Features:
        messages = self.to_key_value.aligned_messages(node_features, edge_features, graph, geometry)
        if messages is not None:
            return self.attention.in_frames(messages, query)
        key_value = self.to_key_value(node_features, edge_features, graph, geometry)
        if takes_messages(graph.device):
            return message_attention(key_value, query, graph, self.value_fiber, self.attention.num_heads)
        value = {str(degree): key_value[str(degree)][:, :channels] for degree, channels in self.value_fiber}
        key = {str(degree): key_value[str(degree)][:, self.value_fiber[degree] :] for degree, _ in self.key_fiber}
        return self.attention(value, key, query, graph)


def _divided(fiber: Fiber, channels_div: ChannelsDivisor) -> Fiber:
    """The fiber with the channels of every degree divided by its divisor."""
    if not isinstance(channels_div, Mapping):
        divisors = dict.fromkeys(fiber.degrees, 1 if channels_div is None else channels_div)
    else:
        divisors = {int(degree): divisor for degree, divisor in channels_div.items()}
    missing = sorted(set(fiber.degrees) - set(divisors))
    if missing:
        raise ValueError(f"channels_div: expected divisors for the degrees {fiber.degrees} of fiber_out, got none for {missing}")
    for degree, channels in fiber:
        if divisors[degree] < 1 or channels % divisors[degree]:
            raise ValueError(
                f"channels_div: expected a divisor of the {channels} channels of degree {degree} in fiber_out, "
                f"got {divisors[degree]}"
            )
    return Fiber([(degree, channels // divisors[degree]) for degree, channels in fiber])
