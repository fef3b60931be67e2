"""AttentionSE3 and AttentionBlockSE3: equivariant graph attention."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.backends.operands import AttentionBlock
from se3_fast.contraction import RADIAL_WIDTH
from se3_fast.fiber import Features, Fiber, HeadFeatures
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import Graph, as_graph
from se3_fast.layers.convolution import ConvSE3, ConvSE3FuseLevel
from se3_fast.layers.inputs import check_kinds, check_whole
from se3_fast.layers.linear import LinearSE3
from se3_fast.layers.low_memory import recompute_in_backward
from se3_fast.layers.plain import is_plain
from se3_fast.layers.prepared import JointParameters
from se3_fast.ops.attention_block import attention_block, may_be_whole
from se3_fast.ops.convolution_attention import attend_to_messages, convolve_and_attend, values_and_keys
from se3_fast.ops.edge_attention import edge_attention
from se3_fast.ops.shared_features import shared_features
from se3_fast.ops.tfn_conv import keeps_frames

ChannelsDivisor = int | Mapping[int, int] | Mapping[str, int] | None


class AttentionSE3(nn.Module):
    """Multi-head attention over the incoming edges of each node. Formula: :mod:`se3_fast.backends.dense.edge_attention`.

    The score is an inner product over all degrees, hence invariant; heads split the channels of each degree in contiguous groups.

    Args:
        num_heads: number of heads; must divide every channel count.
        key_fiber: structure of keys and queries.
        value_fiber: structure of the values.

    Raises:
        ValueError: if ``num_heads`` is not 1 or more, or does not divide a channel count.
    """

    def __init__(self, num_heads: int, key_fiber: Fiber, value_fiber: Fiber) -> None:
        super().__init__()
        check_whole("num_heads", num_heads, 1)
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

        Raises:
            ValueError: if features do not fit the fibers or the graph.
        """
        graph = as_graph(graph)
        attended = edge_attention(
            self._heads("value", value, self.value_fiber, graph),
            self._heads("key", key, self.key_fiber, graph),
            self._heads("query", query, self.key_fiber, graph),
            graph,
        )  # [N, H, value features / H]
        return HeadFeatures(attended, self._value_channels()).by_degree()

    def _value_channels(self) -> tuple[tuple[int, int], ...]:
        return tuple((degree, self.value_fiber[degree]) for degree in self.value_fiber.degrees)

    def _heads(self, name: str, features: Features | Tensor, fiber: Fiber, graph: Graph) -> Tensor:
        if isinstance(features, Tensor):
            widths = [2 * degree + 1 for degree in fiber.degrees]
            if features.ndim != 3 or features.shape[-1] != sum(widths):
                raise ValueError(f"{name}: expected 3 axes, of {sum(widths)} components, got shape {list(features.shape)}")
            features = dict(zip(map(str, fiber.degrees), features.split(widths, -1), strict=True))
        fiber.check_features(features, name)
        check_kinds(self, graph, {name: features})
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
        used_degrees: the degrees of the output that are read, default all; others are left out.

    Any other keyword argument, which variants of the published implementation have more of, is ignored with a warning.

    Raises:
        ValueError: if ``channels_div`` does not divide a channel count of ``fiber_out``, or lacks one of its degrees; or if
            ``fiber_in`` and ``fiber_out`` have no degree in common.
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
        used_degrees: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if kwargs:
            warnings.warn(f"AttentionBlockSE3 ignores the arguments {', '.join(sorted(kwargs))}", stacklevel=2)
        self.fiber_in = fiber_in
        self.low_memory = low_memory
        self.value_fiber = _divided(fiber_out, channels_div)
        self.key_fiber = Fiber([(degree, channels) for degree, channels in self.value_fiber if fiber_in[degree] > 0])
        if not self.key_fiber.degrees:
            raise ValueError(
                f"fiber_out: expected a degree among those of fiber_in {fiber_in.degrees}, for keys and queries, "
                f"got {fiber_out.degrees}"
            )
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
        self.project = LinearSE3(self.value_fiber + fiber_in, fiber_out, used_degrees)

    def forward(
        self,
        node_features: Features,
        edge_features: Features,
        graph: Any,
        basis: EdgeGeometry | dict[str, Tensor] | None = None,
        joint: JointParameters | None = None,
    ) -> Features:
        """Apply the block: ``{d: [N, C, 2d+1]}`` with ``fiber_in`` to the same with ``fiber_out``.

        Args:
            node_features: ``{d: [N, C, 2d+1]}``.
            edge_features: ``{d: [E, C, 2d+1]}``, the edge length appended as last degree-0 channel.
            graph: Graph, DGLGraph or PyTorch Geometric data.
            basis: the geometry of the edges, or a published basis dict; default: made from ``graph.edata['rel_pos']``.
            joint: what the model has made ready.

        Raises:
            ValueError: if features do not fit the fibers or the graph.
        """
        graph = as_graph(graph)
        self.fiber_in.check_features(node_features, "node_features")
        check_kinds(self, graph, {"node_features": node_features})
        geometry = (self.to_key_value.prepare_geometry if self.low_memory else self.to_key_value.geometry)(graph, basis)
        if joint is None and may_be_whole(graph, geometry):
            call = self.as_one_operation(node_features, edge_features, graph, geometry)
            found = None if call is None else attention_block(call)
            if found is not None:
                return found
        of_query, of_messages, beside = shared_features(node_features, 3)
        query: Features | HeadFeatures
        if (joint is not None or keeps_frames(geometry, RADIAL_WIDTH)) and self._leaves_frames():
            query = self.to_query.per_head(of_query, self.attention.num_heads, joint)
        else:
            query = self.to_query(of_query)
        if self.low_memory:
            is_as_made = is_plain(self.attention, AttentionSE3) and is_plain(self.to_key_value, ConvSE3)
            is_random = not is_as_made or self.to_key_value.may_be_random()
            attended = recompute_in_backward(self._attend, is_random, query, of_messages, edge_features, graph, geometry)
        else:
            attended = self._attend(query, of_messages, edge_features, graph, geometry, joint)
        if is_plain(self.project, LinearSE3):
            return self.project(attended, beside=beside, joint=joint)
        return self.project(_side_by_side(attended, beside))

    def as_one_operation(
        self, node_features: Features, edge_features: Features, graph: Graph, geometry: EdgeGeometry
    ) -> AttentionBlock | None:
        """The operation that this block is; None where one of its layers is not what it was made for.

        Arguments as for :meth:`forward`, which checks the node features.
        """
        are_plain = is_plain(self.to_query, LinearSE3) and is_plain(self.project, LinearSE3)
        if not (are_plain and is_plain(self.attention, AttentionSE3) and is_plain(self.to_key_value, ConvSE3)):
            return None
        convolution = self.to_key_value
        networks = convolution.networks()
        profiles = None if networks is None else networks.published()
        if networks is None or profiles is None:
            return None
        convolution.check_inputs(node_features, edge_features, graph)
        return AttentionBlock(
            plan=convolution.plan,
            graph=graph,
            geometry=geometry,
            node_features=node_features,
            edge_features=edge_features,
            profiles=profiles,
            weights=[linear.weight for linear in networks.last],
            query_weights=self.to_query.used_weights(),
            output_weights=self.project.used_weights(),
            value_fiber=self.value_fiber,
            num_heads=self.attention.num_heads,
            order=convolution.contraction_order,
        )

    def _leaves_frames(self) -> bool:
        """Whether parts of the layers can be called in the place of the layers: there are no hooks on them, and radial profiles end
        with a linear map of the usual width."""
        are_plain = is_plain(self.to_query, LinearSE3) and is_plain(self.attention, AttentionSE3)
        return are_plain and self.to_key_value.leaves_frames()

    def _attend(
        self,
        query: Features | HeadFeatures,
        node_features: Features,
        edge_features: Features,
        graph: Graph,
        geometry: EdgeGeometry,
        joint: JointParameters | None = None,
    ) -> Features | HeadFeatures:
        """Convolve and attend in one operation; or by calling the layers, where they are not what they were made for."""
        is_plain_attention = is_plain(self.attention, AttentionSE3)
        if is_plain_attention and is_plain(self.to_key_value, ConvSE3):
            self.to_key_value.check_inputs(node_features, edge_features, graph)
            call = self.to_key_value.convolution(node_features, edge_features, graph, geometry, joint)
            if call is not None:
                return convolve_and_attend(call, query, self.value_fiber, self.attention.num_heads)
        assert not isinstance(query, HeadFeatures)
        messages = self.to_key_value(node_features, edge_features, graph, geometry)
        if is_plain_attention:
            return attend_to_messages(messages, query, graph, self.value_fiber, self.attention.num_heads)
        return self.attention(*values_and_keys(messages, self.value_fiber), query, graph)


def _side_by_side(attended: Features | HeadFeatures, node_features: Features) -> Features:
    """What was attended to and, behind it, the node's own features of the same degrees: what the projection is made for."""
    by_degree = attended.by_degree() if isinstance(attended, HeadFeatures) else attended
    return {
        degree: torch.cat([feature, node_features[degree]], 1) if degree in node_features else feature
        for degree, feature in by_degree.items()
    }


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
