"""ConvSE3: the tensor field network convolution, and its radial profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import reduce
from itertools import compress
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from se3_fast.backends.dense.radial import LAYER_NORM_EPSILON
from se3_fast.backends.dense.tfn_conv import contract
from se3_fast.backends.operands import Convolution, PreparedRadial, Profiles, RadialLayer, Recipe
from se3_fast.contraction import RADIAL_WIDTH, ContractionOrder, ConvolutionPlan, RadialGroup
from se3_fast.fiber import Features, Fiber
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import Graph, as_graph, relative_positions
from se3_fast.layers.inputs import check_kinds
from se3_fast.layers.low_memory import recompute_in_backward
from se3_fast.layers.plain import is_called_plainly, is_plain
from se3_fast.layers.prepared import JointParameters
from se3_fast.ops.linear import linear
from se3_fast.ops.radial import radial, recipe
from se3_fast.ops.shared_features import shared_features
from se3_fast.ops.tfn_conv import prepare_geometry, tfn_conv, tfn_conv_by_formula


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
    published names. :class:`ConvSE3` evaluates a profile in parts that are fast together, the last layer within the contraction,
    where that is the same as to call it; a profile that was changed it calls.

    Args:
        num_freq: number of paths F of all pairs that the profile serves.
        channels_in: channels of each input degree.
        channels_out: channels of each output degree.
        edge_dim: number of invariant edge features, the edge length included.
        mid_dim: width of the hidden layers.
        use_layer_norm: whether the hidden layers are normalised.
    """

    def __init__(
        self,
        num_freq: int,
        channels_in: int,
        channels_out: int,
        edge_dim: int = 1,
        mid_dim: int = RADIAL_WIDTH,
        use_layer_norm: bool = False,
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for width in (edge_dim, mid_dim):
            modules.append(nn.Linear(width, mid_dim))
            if use_layer_norm:
                modules.append(nn.LayerNorm(mid_dim))
            modules.append(nn.ReLU())
        modules.append(nn.Linear(mid_dim, num_freq * channels_in * channels_out, bias=False))
        self.net = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """All weights of all edges: [E, edge_dim] to [E, C_out * C_in * F], ordered (output channel, input channel, path)."""
        return self.net(features)

    @property
    def last_weight(self) -> Tensor:
        """[C_out * C_in * F, K]; rows ordered (output channel, input channel, path)."""
        return self.net[-1].weight  # type: ignore[return-value]

    def hidden_layers(self) -> tuple[RadialLayer, RadialLayer] | None:
        """The parameters of the two hidden layers, if they are exactly as published."""
        return _published_layers(list(self.net)[:-1])


class RadialConvolution(nn.Module):
    """The convolution of one group of degree pairs; holds its radial profile under the published name ``radial_func``.

    Args:
        freq_sum: number of paths F of all pairs of the group.
        channels_in: channels of each input degree.
        channels_out: channels of each output degree.
        edge_dim: number of invariant edge features, the edge length included.
        use_layer_norm: layer normalisation in the radial profile.
        fuse_level: the parameterisation that the group belongs to.
    """

    def __init__(
        self,
        freq_sum: int,
        channels_in: int,
        channels_out: int,
        edge_dim: int,
        use_layer_norm: bool,
        fuse_level: ConvSE3FuseLevel,
    ) -> None:
        super().__init__()
        self.freq_sum, self.channels_in, self.channels_out = freq_sum, channels_in, channels_out
        self.fuse_level = fuse_level
        self.radial_func = RadialProfile(freq_sum, channels_in, channels_out, edge_dim, use_layer_norm=use_layer_norm)

    def forward(self, features: Tensor, invariant_edge_feats: Tensor, basis: Tensor | None) -> Tensor:
        """Messages [E, C_out, k] by the published formula, everything materialised.

        Args:
            features: [E, C_in, l], those of the edges' sources, the input degrees side by side.
            invariant_edge_feats: [E, edge_dim].
            basis: [E, l, F, k]; None for the pair of degrees (0, 0), l = F = k = 1.
        """
        weights = self.radial_func(invariant_edge_feats)
        return contract(features, basis, weights.view(len(features), self.channels_out, self.channels_in * self.freq_sum))


class RadialNetworks(NamedTuple):
    """The radial networks of a convolution taken apart: to call one is to call its modules one after the other.

    Attributes:
        hidden: of each network, all modules but the last.
        last: the last, linear maps without bias, all with the same number of inputs.
    """

    hidden: list[list[nn.Module]]
    last: list[nn.Linear]

    def published(self) -> Profiles | None:
        """The hidden layers, if all are exactly as published, and all with or all without layer norm."""
        if len(set(map(len, self.hidden))) != 1:
            return None
        layers = list(map(_published_layers, self.hidden))
        return None if None in layers else layers  # type: ignore[return-value]


_WITHOUT_NORM = 2 * [nn.Linear, nn.ReLU]
_WITH_NORM = 2 * [nn.Linear, nn.LayerNorm, nn.ReLU]


def _published_layers(modules: list[nn.Module]) -> tuple[RadialLayer, RadialLayer] | None:
    """The parameters of linear map, layer norm if there is one, and ReLU, twice, if they are exactly as they were made."""
    kinds = [type(module) for module in modules]
    if kinds not in (_WITH_NORM, _WITHOUT_NORM) or not all(map(is_called_plainly, modules)):
        return None
    found = []
    for number in (0, len(modules) // 2):
        linear, norm = modules[number], modules[number + 1]
        scale = shift = None
        if isinstance(norm, nn.LayerNorm):
            scale, shift = norm.weight, norm.bias
            if shift is None or norm.eps != LAYER_NORM_EPSILON or norm.normalized_shape != (RADIAL_WIDTH,):
                return None
        layer = RadialLayer(linear.weight, linear.bias, scale, shift)  # type: ignore[arg-type]
        if layer.bias is None or linear.out_features != RADIAL_WIDTH:
            return None
        found.append(layer)
    return found[0], found[1]


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
        used_degrees: the degrees of the output that are read, default all. Others are left out where they share no radial profile
            with these: parameters that serve them alone have no gradient then.

    Attributes:
        contraction_order: how the messages are contracted (DESIGN 1.3), by edge or by source; by default what is cheaper.
    """

    contraction_order: ClassVar[ContractionOrder] = "auto"

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
        used_degrees: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(fuse_level, ConvSE3FuseLevel):
            raise ValueError(f"fuse_level: expected a ConvSE3FuseLevel, got {fuse_level!r}")
        self.fiber_in, self.fiber_out, self.fiber_edge = fiber_in, fiber_out, fiber_edge
        self._fiber_with_length = Fiber(dict(fiber_edge.structure) | {0: fiber_edge[0] + 1})
        self.used_degrees = fiber_out.degrees if used_degrees is None else list(used_degrees)
        self.pool = pool
        self.sum_over_edge = sum_over_edge
        self.self_interaction = self_interaction
        self.max_degree = max_degree
        self.allow_fused_output = allow_fused_output
        self.low_memory = low_memory
        self.used_fuse_level, named_groups = _radial_groups(fiber_in, fiber_out, fiber_edge, max_degree, fuse_level)
        self._create_profiles(named_groups, use_layer_norm)
        self._is_group_used = [not set(group.degrees_out).isdisjoint(self.used_degrees) for group in named_groups.values()]
        groups = tuple(compress(named_groups.values(), self._is_group_used))
        self.plan = ConvolutionPlan(
            node_channels=tuple((degree, fiber_in[degree]) for degree in fiber_in.degrees),
            edge_channels=tuple((degree, fiber_edge[degree]) for degree in fiber_edge.degrees if degree > 0 and degree in fiber_in),
            channels_out=tuple(
                (degree, fiber_out[degree]) for degree in fiber_out.degrees if any(degree in group.degrees_out for group in groups)
            ),
            groups=groups,
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
        modules = {
            name: RadialConvolution(
                group.num_paths, group.channels_in, group.channels_out, edge_dim, use_layer_norm, self.used_fuse_level
            )
            for name, group in named_groups.items()
        }
        container, _, first_key = next(iter(modules)).partition(".")
        if first_key:
            self.add_module(container, nn.ModuleDict({name.partition(".")[2]: part for name, part in modules.items()}))
        else:
            self.add_module(container, modules[container])

    def forward(
        self,
        node_feats: Features,
        edge_feats: Features,
        graph: Any,
        basis: EdgeGeometry | dict[str, Tensor] | None = None,
        joint: JointParameters | None = None,
    ) -> Features | Tensor:
        """Convolve.

        Args:
            node_feats: ``{d: [N, C, 2d+1]}`` with ``fiber_in``.
            edge_feats: ``{d: [E, C, 2d+1]}`` with ``fiber_edge``, the edge length appended as last degree-0 channel.
            graph: Graph, DGLGraph or PyTorch Geometric data.
            basis: the geometry of the edges, or a published basis dict; default: made from ``graph.edata['rel_pos']``.
            joint: what the model has made ready.

        Returns:
            ``{d: [N, C, 2d+1]}`` with pooling, ``{d: [E, C, 2d+1]}`` without (or one tensor, see ``allow_fused_output``).

        Raises:
            ValueError: if features do not fit the fibers or the graph.
        """
        graph = as_graph(graph)
        self.check_inputs(node_feats, edge_feats, graph)
        of_messages, own = shared_features(node_feats, 2) if self.self_interaction else (node_feats, node_feats)
        if self.low_memory:
            geometry = self.prepare_geometry(graph, basis)
            messages = recompute_in_backward(self._messages, self.may_be_random(), of_messages, edge_feats, graph, geometry)
        else:
            messages = self._messages(of_messages, edge_feats, graph, self.geometry(graph, basis), joint)
        if self.self_interaction:
            messages = self._add_self_interaction(messages, own, graph, joint)
        if self.pool and not self.sum_over_edge:
            messages = _over_incoming_edges(messages, graph)
        if self.allow_fused_output and not self.pool and len(self.plan.groups[0].degrees_out) > 1:
            return torch.cat([messages[str(degree)] for degree in self.fiber_out.degrees], -1)
        return messages

    def geometry(self, graph: Graph, basis: EdgeGeometry | dict[str, Tensor] | None) -> EdgeGeometry:
        """The geometry of the edges: itself, from a published basis dict, or from the graph's relative positions.

        Raises:
            ValueError: if it has not as many edges as the graph.
        """
        if basis is None:
            return EdgeGeometry.from_relative_positions(relative_positions(graph), self.plan.max_degree)
        if isinstance(basis, EdgeGeometry):
            geometry = basis
        else:
            geometry = EdgeGeometry.from_bases(basis, self.max_degree, graph.edata.get("rel_pos"))
        expected, given = graph.num_edges(), geometry.num_edges
        if given != expected:
            raise ValueError(f"basis: expected that of the graph's {expected} edges, got that of {given} edges")
        return geometry

    def prepare_geometry(self, graph: Graph, basis: EdgeGeometry | dict[str, Tensor] | None) -> EdgeGeometry:
        """As :meth:`geometry`, with all made that this convolution reads of it, so that a recomputation need not make it."""
        geometry = self.geometry(graph, basis)
        prepare_geometry(self.plan, graph, geometry, by_formula=self.networks() is None)
        return geometry

    def convolution(
        self,
        node_feats: Features,
        edge_feats: Features,
        graph: Graph,
        geometry: EdgeGeometry,
        joint: JointParameters | None = None,
    ) -> Convolution | None:
        """The operation that this layer is, apart from self-interaction; None where its radial networks are of another kind.

        Arguments as for :meth:`forward`, which :meth:`check_inputs` looks at.
        """
        networks, prepared = self.networks(), joint.radial(self) if joint else None
        if networks is None:
            return None
        hidden, make_hidden = _hidden(networks, edge_feats, prepared)
        weights = [linear.weight for linear in networks.last]
        call = Convolution(self.plan, graph, geometry, node_feats, edge_feats, hidden, weights, self.pool, self.contraction_order)
        return call._replace(make_hidden=make_hidden, prepared=prepared)

    @property
    def radial_convolutions(self) -> list[nn.Module]:
        """The modules of the radial groups that are used, looked up under their published names, in the order of the plan."""
        found = next(self._modules[name] for name in ("conv", "conv_out", "conv_in") if name in self._modules)
        modules = list(found.values()) if isinstance(found, nn.ModuleDict) else [found]
        return list(compress(modules, self._is_group_used))  # type: ignore[arg-type]

    @property
    def radial_profiles(self) -> list[nn.Module]:
        """The radial profiles, in the order of the plan."""
        return [module.radial_func for module in self.radial_convolutions]  # type: ignore[misc]

    def networks(self) -> RadialNetworks | None:
        """The radial networks, whose last layers are contracted with the features; None where one is not of that kind, or where
        there are hooks that would not be called: then the modules of the radial groups are called as they are."""
        networks = RadialNetworks([], [])
        for convolution in self.radial_convolutions:
            profile = convolution._modules.get("radial_func")
            net = None if profile is None else profile._modules.get("net")
            are_plain = is_plain(convolution, RadialConvolution) and is_plain(profile, RadialProfile)
            if net is None or not are_plain or not is_plain(net, nn.Sequential):
                return None
            *hidden, last = net._modules.values() or [None]
            if not isinstance(last, nn.Linear) or last.bias is not None or not is_plain(last, nn.Linear):
                return None
            networks.hidden.append(hidden)
            networks.last.append(last)
        return networks if len({linear.in_features for linear in networks.last}) == 1 else None

    def leaves_frames(self) -> bool:
        """Whether the messages of :meth:`convolution` can be left in the edges' frames, for a geometry that keeps them."""
        networks = self.networks() if is_plain(self, ConvSE3) else None
        return networks is not None and networks.last[0].in_features == RADIAL_WIDTH

    def profiles(self) -> Profiles | None:
        """The hidden layers of all radial networks, if all are exactly as published."""
        networks = self.networks()
        return None if networks is None else networks.published()

    def last_weights(self) -> list[Tensor]:
        """The last weight of all radial profiles, [C_out * C_in * F, K]."""
        return [profile.last_weight for profile in self.radial_profiles]  # type: ignore[misc]

    def may_be_random(self) -> bool:
        """Whether radial networks do something else than they were made for, which may be dropout."""
        return self.profiles() is None

    def row_parameters(self) -> list[Tensor]:
        """The parameters of the self-interaction, if it has any, in the order of a row."""
        return list(self._self_weights().values()) if self.self_interaction else []

    def _messages(
        self, node_feats: Features, edge_feats: Features, graph: Graph, geometry: EdgeGeometry, joint: JointParameters | None = None
    ) -> Features:
        call = self.convolution(node_feats, edge_feats, graph, geometry, joint)
        return self._messages_by_modules(node_feats, edge_feats, graph, geometry) if call is None else tfn_conv(call)

    def _messages_by_modules(self, node_feats: Features, edge_feats: Features, graph: Graph, geometry: EdgeGeometry) -> Features:
        invariants = edge_feats["0"].squeeze(-1)

        def contraction(module: nn.Module) -> Callable[[Tensor, Tensor | None], Tensor]:
            return lambda features, basis: module(features, invariants, basis)

        contractions = [contraction(module) for module in self.radial_convolutions]
        return tfn_conv_by_formula(self.plan, graph, geometry, node_feats, edge_feats, contractions, self.pool)

    def _self_weights(self) -> dict[str, Tensor]:
        """The weights of the self-interaction by degree, those that are used."""
        return {degree: weight for degree, weight in self.to_kernel_self.items() if int(degree) in self.used_degrees}

    def _add_self_interaction(
        self, messages: Features, node_feats: Features, graph: Graph, joint: JointParameters | None
    ) -> Features:
        """Add W x[dst] to every message; summed over incoming edges that is the in-degree times W x."""
        result = dict(messages)
        row = joint.row(self) if joint else None
        for degree, own in linear(self._self_weights(), node_feats, row=row).items():  # [N, C_out, 2d+1]
            if self.pool:
                result[degree] = torch.addcmul(messages[degree], own, graph.in_degrees()[:, None, None].to(own.dtype))
            else:
                result[degree] = messages[degree] + own.index_select(0, graph.dst)
        return result

    def check_inputs(self, node_feats: Features, edge_feats: Features, graph: Graph) -> None:
        """Raise a ValueError if features do not fit the fibers or the graph."""
        num_nodes = self.fiber_in.check_features(node_feats, "node_feats")
        if num_nodes != graph.num_nodes():
            raise ValueError(f"node_feats: expected features of the graph's {graph.num_nodes()} nodes, got {num_nodes}")
        num_edges = self._fiber_with_length.check_features(edge_feats, "edge_feats")
        if num_edges != graph.num_edges():
            raise ValueError(f"edge_feats: expected features of the graph's {graph.num_edges()} edges, got {num_edges}")
        check_kinds(self, graph, {"node_feats": node_feats, "edge_feats": edge_feats})


def _hidden(
    networks: RadialNetworks, edge_feats: Features, prepared: PreparedRadial | None
) -> tuple[Sequence[Tensor] | Tensor, Recipe | None]:
    """h of all radial networks, and how to make it again if it need not be kept."""
    if prepared is not None:
        return prepared.hidden.detach()[0], None  # a constant: the kernels read h in its parts
    invariants, profiles = edge_feats["0"].squeeze(-1), networks.published()
    if profiles is not None:
        how = recipe(invariants, profiles)
        return (radial(invariants, profiles) if how is None else how.how.make(how.tensors)), how
    return [reduce(lambda values, module: module(values), modules, invariants) for modules in networks.hidden], None


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
