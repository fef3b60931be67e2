"""ConvSE3: the tensor field network convolution, and its radial profiles."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from se3_fast.fiber import Features, Fiber
from se3_fast.graph import Graph, as_graph
from se3_fast.layers.low_memory import recompute_in_backward
from se3_fast.ops.edge_frames import EdgeGeometry
from se3_fast.ops.linear import MAX_PARTS, linear
from se3_fast.ops.parameter_rows import LayerParameters, gradient_parts
from se3_fast.ops.radial import Profiles, RadialLayer, radial, recipe
from se3_fast.ops.shared_features import shared_features
from se3_fast.ops.tfn_conv import aligned_messages, prepare_geometry, tfn_conv
from se3_fast.plan import ConvolutionPlan, RadialGroup

if TYPE_CHECKING:
    from se3_fast.fused.edge_attention import AlignedMessages
    from se3_fast.layers.joint import JointParameters

RADIAL_WIDTH = 32
"""Width of the hidden radial layers."""


class ConvSE3FuseLevel(Enum):
    """How many pairs of degrees share one radial profile: the parameterisation of a convolution.

    FULL: one profile for all pairs; PARTIAL: one per output degree (or per input degree); NONE: one per pair. Where the
    fibers do not allow the level asked for, the next lower one that they allow is taken.
    """

    FULL = 2
    PARTIAL = 1
    NONE = 0


class RadialProfile(nn.Module):
    """The radial network: from the invariants of an edge to the weights of all its paths and channels.

    Two hidden layers (linear, layer norm if wanted, ReLU) and a linear map without bias; ``net`` holds them under the
    published names. The last layer is not applied here: the convolution contracts it with the features.

    Args:
        num_paths: number of paths F of all pairs that the profile serves.
        channels_in: channels of each input degree.
        channels_out: channels of each output degree.
        edge_dim: number of invariant edge features, the edge length included.
        use_layer_norm: whether the hidden layers are normalised.
    """

    def __init__(self, num_paths: int, channels_in: int, channels_out: int, edge_dim: int, use_layer_norm: bool) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for width in (edge_dim, RADIAL_WIDTH):
            modules.append(nn.Linear(width, RADIAL_WIDTH))
            if use_layer_norm:
                modules.append(nn.LayerNorm(RADIAL_WIDTH))
            modules.append(nn.ReLU())
        modules.append(nn.Linear(RADIAL_WIDTH, num_paths * channels_in * channels_out, bias=False))
        self.net = nn.Sequential(*modules)

    @property
    def last_weight(self) -> Tensor:
        """[C_out * C_in * F, 32]; rows ordered (output channel, input channel, path)."""
        return self.net[-1].weight  # type: ignore[return-value]

    def hidden_layers(self) -> tuple[RadialLayer, RadialLayer]:
        """The parameters of the two hidden layers."""
        step = (len(self.net) - 1) // 2
        modules = list(self.net)
        return _radial_layer(modules[:step]), _radial_layer(modules[step:])


def _radial_layer(modules: list[nn.Module]) -> RadialLayer:
    linear, norm = modules[0], modules[1]
    assert isinstance(linear, nn.Linear)
    if isinstance(norm, nn.LayerNorm):
        return RadialLayer(linear.weight, linear.bias, norm.weight, norm.bias)
    return RadialLayer(linear.weight, linear.bias, None, None)


class RadialConvolution(nn.Module):
    """Holds the radial profile of one group of degree pairs under the published name ``radial_func``."""

    def __init__(self, group: RadialGroup, edge_dim: int, use_layer_norm: bool) -> None:
        super().__init__()
        self.radial_func = RadialProfile(group.num_paths, group.channels_in, group.channels_out, edge_dim, use_layer_norm)


class ConvSE3(nn.Module):
    """TFN convolution: equivariant messages along the edges, optionally with self-interaction and pooled over incoming edges.

    Equation: DESIGN section 1; Thomas et al., Tensor field networks (arXiv:1802.08219); Fuchs et al., SE(3)-Transformers
    (arXiv:2006.10503), equation 8.

    Args:
        fiber_in: structure of the node features.
        fiber_out: structure of the output.
        fiber_edge: structure of the edge features, without the edge length. Degree 0 feeds the radial profiles; a degree d > 0 is
            appended to the source features of degree d, if ``fiber_in`` has that degree.
        pool: sum the messages of each node's incoming edges (or see ``sum_over_edge``); otherwise return one message per edge.
        use_layer_norm: layer normalisation in the radial profiles.
        self_interaction: add a linear map of the destination's own features to every message.
        max_degree: largest degree of the model; fusing needs degrees 0..max_degree.
        fuse_level: how many pairs share a radial profile.
        allow_fused_output: without pooling and where outputs are fused, return one tensor [E, C, sum of 2d+1] instead of a dict.
        low_memory: keep only the inputs for the backward pass and compute everything else again there.
        sum_over_edge: pooling sums (the default); otherwise it takes the mean over a node's incoming edges, 0 where there are none.
    """

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber,
        pool: bool = True,
        use_layer_norm: bool = False,
        self_interaction: bool = False,
        max_degree: int = 4,
        fuse_level: ConvSE3FuseLevel = ConvSE3FuseLevel.FULL,
        allow_fused_output: bool = False,
        low_memory: bool = False,
        sum_over_edge: bool = True,
    ) -> None:
        super().__init__()
        self.fiber_in, self.fiber_out, self.fiber_edge = fiber_in, fiber_out, fiber_edge
        self.pool = pool
        self.sum_over_edge = sum_over_edge
        self.self_interaction = self_interaction
        self.max_degree = max_degree
        self.allow_fused_output = allow_fused_output
        self.low_memory = low_memory
        self.used_fuse_level, named_groups = _radial_groups(fiber_in, fiber_out, fiber_edge, max_degree, fuse_level)
        self._create_profiles(named_groups, use_layer_norm)
        self.plan = ConvolutionPlan(
            node_channels=tuple((degree, fiber_in[degree]) for degree in fiber_in.degrees),
            edge_channels=tuple((degree, fiber_edge[degree]) for degree in fiber_edge.degrees if degree > 0 and degree in fiber_in),
            channels_out=tuple((degree, fiber_out[degree]) for degree in fiber_out.degrees),
            groups=tuple(named_groups.values()),
        )
        if self_interaction:
            self.to_kernel_self = nn.ParameterDict(
                [
                    (str(degree), nn.Parameter(torch.randn(channels, fiber_in[degree]) / fiber_in[degree] ** 0.5))
                    for degree, channels in fiber_out
                    if fiber_in[degree] > 0
                ]
            )

    def _create_profiles(self, named_groups: dict[str, RadialGroup], use_layer_norm: bool) -> None:
        edge_dim = self.fiber_edge[0] + 1
        modules = {name: RadialConvolution(group, edge_dim, use_layer_norm) for name, group in named_groups.items()}
        container, _, first_key = next(iter(modules)).partition(".")
        if first_key:
            self.add_module(container, nn.ModuleDict({name.partition(".")[2]: part for name, part in modules.items()}))
        else:
            self.add_module(container, modules[container])
        self.radial_profiles = [module.radial_func for module in modules.values()]

    def forward(
        self,
        node_feats: Features,
        edge_feats: Features,
        graph: Any,
        basis: EdgeGeometry | dict[str, Tensor],
        joint: JointParameters | None = None,
    ) -> Features | Tensor:
        """Convolve.

        Args:
            node_feats: ``{d: [N, C, 2d+1]}`` with ``fiber_in``.
            edge_feats: ``{d: [E, C, 2d+1]}`` with ``fiber_edge``, the edge length appended as last degree-0 channel.
            graph: Graph, DGLGraph or PyTorch Geometric data.
            basis: the geometry of the edges, or a published basis dict.
            joint: the parameters of the whole model made ready, see :mod:`se3_fast.layers.joint`.

        Returns:
            ``{d: [N, C, 2d+1]}`` with pooling, ``{d: [E, C, 2d+1]}`` without (or one tensor, see ``allow_fused_output``).

        Raises:
            ValueError: if features do not fit the fibers or the graph.
        """
        graph = as_graph(graph)
        self._check_inputs(node_feats, edge_feats, graph)
        geometry = self.prepare_geometry(graph, basis)
        of_messages, own = shared_features(node_feats, 2) if self.self_interaction else (node_feats, node_feats)
        if self.low_memory:
            messages = recompute_in_backward(self._messages, of_messages, edge_feats, graph, geometry)
        else:
            messages = self._messages(of_messages, edge_feats, graph, geometry, joint)
        if self.self_interaction:
            messages = self._add_self_interaction(messages, own, graph, joint)
        if self.pool and not self.sum_over_edge:
            messages = _over_incoming_edges(messages, graph)
        if self.allow_fused_output and not self.pool and len(self.plan.groups[0].degrees_out) > 1:
            return torch.cat([messages[str(degree)] for degree in self.fiber_out.degrees], -1)
        return messages

    def prepare_geometry(self, graph: Graph, basis: EdgeGeometry | dict[str, Tensor]) -> EdgeGeometry:
        """The geometry of the edges, from itself or from a published basis dict, with what this convolution reads of it made."""
        geometry = basis if isinstance(basis, EdgeGeometry) else EdgeGeometry.from_bases(basis, self.max_degree)
        prepare_geometry(self.plan, graph, geometry)
        return geometry

    def aligned_messages(
        self,
        node_feats: Features,
        edge_feats: Features,
        graph: Graph,
        geometry: EdgeGeometry,
        joint: JointParameters | None = None,
    ) -> AlignedMessages:
        """The messages per edge left in the frames of their edges, for the attention, where the geometry keeps them.

        Arguments as for :meth:`forward`; without pooling and self-interaction only. See :func:`se3_fast.ops.tfn_conv.keeps_frames`.
        """
        self._check_inputs(node_feats, edge_feats, graph)
        prepared = joint.radial(self) if joint else None
        hidden = radial(edge_feats["0"].squeeze(-1), self.profiles()) if prepared is None else prepared.values
        return aligned_messages(self.plan, graph, geometry, node_feats, edge_feats, hidden, self.last_weights(), prepared)

    def profiles(self) -> Profiles:
        """The hidden layers of all radial profiles."""
        return [profile.hidden_layers() for profile in self.radial_profiles]

    def last_weights(self) -> list[Tensor]:
        """The last weight of all radial profiles, [C_out * C_in * F, K]."""
        return [profile.last_weight for profile in self.radial_profiles]

    def row_parameters(self, device: torch.device) -> LayerParameters | None:
        """The parameters of the self-interaction, if it has any, in the order of a row."""
        if not self.self_interaction or not self.to_kernel_self:
            return None
        return LayerParameters(list(self.to_kernel_self.values()), gradient_parts(MAX_PARTS, device))

    def _messages(
        self, node_feats: Features, edge_feats: Features, graph: Graph, geometry: EdgeGeometry, joint: JointParameters | None = None
    ) -> Features:
        prepared = joint.radial(self) if joint else None
        invariants, profiles = edge_feats["0"].squeeze(-1), self.profiles()
        hidden = radial(invariants, profiles) if prepared is None else prepared.values
        arguments = (self.plan, graph, geometry, node_feats, edge_feats, hidden, self.last_weights(), self.pool)
        return tfn_conv(*arguments, make_hidden=recipe(invariants, profiles), prepared=prepared)

    def _add_self_interaction(
        self, messages: Features, node_feats: Features, graph: Graph, joint: JointParameters | None
    ) -> Features:
        """Add W x[dst] to every message; summed over incoming edges that is the in-degree times W x."""
        result = dict(messages)
        row = joint.row(self) if joint else None
        for degree, own in linear(dict(self.to_kernel_self.items()), node_feats, row=row).items():  # [N, C_out, 2d+1]
            if self.pool:
                result[degree] = torch.addcmul(messages[degree], own, graph.in_degrees()[:, None, None].to(own.dtype))
            else:
                result[degree] = messages[degree] + own.index_select(0, graph.dst)
        return result

    def _check_inputs(self, node_feats: Features, edge_feats: Features, graph: Graph) -> None:
        num_nodes = self.fiber_in.check_features(node_feats, "node_feats")
        if num_nodes != graph.num_nodes():
            raise ValueError(f"node_feats: expected features of the graph's {graph.num_nodes()} nodes, got {num_nodes}")
        expected = dict(self.fiber_edge.structure) | {0: self.fiber_edge[0] + 1}
        num_edges = Fiber(expected).check_features(edge_feats, "edge_feats")
        if num_edges != graph.num_edges():
            raise ValueError(f"edge_feats: expected features of the graph's {graph.num_edges()} edges, got {num_edges}")


def _over_incoming_edges(sums: Features, graph: Graph) -> Features:
    """Sums over each node's incoming edges divided by their number."""
    counts = graph.in_degrees().clamp(min=1)[:, None, None]
    return {degree: total / counts.to(total.dtype) for degree, total in sums.items()}


def _radial_groups(
    fiber_in: Fiber, fiber_out: Fiber, fiber_edge: Fiber, max_degree: int, asked: ConvSE3FuseLevel
) -> tuple[ConvSE3FuseLevel, dict[str, RadialGroup]]:
    """The fuse level that the fibers allow, and its groups by parameter name, in the published order of creation."""
    channels_in = {degree: channels + (fiber_edge[degree] if degree > 0 else 0) for degree, channels in fiber_in}
    channels_out = dict(fiber_out.structure)
    all_degrees = list(range(max_degree + 1))
    is_input_uniform = fiber_in.degrees == all_degrees and len(set(channels_in.values())) == 1
    is_output_uniform = fiber_out.degrees == all_degrees and len(set(channels_out.values())) == 1
    degrees_in, degrees_out = tuple(fiber_in.degrees), tuple(fiber_out.degrees)

    if asked is ConvSE3FuseLevel.FULL and is_input_uniform and is_output_uniform:
        group = RadialGroup(degrees_in, degrees_out, channels_in[0], channels_out[0])
        return ConvSE3FuseLevel.FULL, {"conv": group}
    if asked is not ConvSE3FuseLevel.NONE and is_input_uniform:
        by_output = {
            f"conv_out.{degree}": RadialGroup(degrees_in, (degree,), channels_in[0], channels) for degree, channels in fiber_out
        }
        return ConvSE3FuseLevel.PARTIAL, by_output
    if asked is not ConvSE3FuseLevel.NONE and is_output_uniform:
        by_input = {
            f"conv_in.{degree}": RadialGroup((degree,), degrees_out, channels, channels_out[0])
            for degree, channels in channels_in.items()
        }
        return ConvSE3FuseLevel.PARTIAL, by_input
    pairs = {
        f"conv.{degree_in},{degree_out}": RadialGroup(
            (degree_in,), (degree_out,), channels, channels_out[degree_out], is_basis_free=degree_in == degree_out == 0
        )
        for degree_in, channels in channels_in.items()
        for degree_out, _ in fiber_out
    }
    return ConvSE3FuseLevel.NONE, pairs
