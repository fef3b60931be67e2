"""SE3Transformer and SE3TransformerPooled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from se3_fast.fiber import Features, Fiber
from se3_fast.geometry import EdgeGeometry, edge_lengths
from se3_fast.graph import as_graph, relative_positions
from se3_fast.layers import AttentionBlockSE3, ConvSE3, ConvSE3FuseLevel, GPooling, LinearSE3, NormSE3
from se3_fast.layers.attention import ChannelsDivisor
from se3_fast.layers.head import Head
from se3_fast.layers.inputs import check_kinds, check_whole
from se3_fast.layers.joint import JointLayers, join_parameters, takes_joint
from se3_fast.parameter_layout import convert_on_loading, fuse_levels, level_of_blocks, without_wrappers, wrapper_prefix

ModelType = TypeVar("ModelType", bound=nn.Module)

EdgeLength = Literal["lin", "arcsin", "log", "zero"]
FinalLayer = Literal["conv", "lin", "att"]


class Sequential(nn.Sequential):
    """Modules in sequence, each called with the same further arguments (graph, edge features, basis)."""

    def forward(self, input: Features, *args: Any, joint: JointLayers | None = None, **kwargs: Any) -> Features:
        """Pass the features through all modules; ``joint`` is what has been made ready for the layers among them."""
        for module in self:
            ready = {"joint": joint} if joint is not None and takes_joint(module) else {}
            input = module(input, *args, **kwargs, **ready)
        return input


class SE3Transformer(nn.Module):
    """Equivariant graph attention network (Fuchs et al., arXiv:2006.10503), with the published arguments and parameter names.

    Args:
        num_layers: number of attention blocks.
        fiber_in: structure of the node features.
        fiber_hidden: structure between the layers.
        fiber_out: structure of the output.
        num_heads: attention heads; must divide the channels of keys and values.
        channels_div: keys and values have this many times fewer channels than ``fiber_hidden``; one number, or a number for each
            degree, or None (see :class:`AttentionBlockSE3`).
        fiber_edge: structure of the edge features, without the edge length (the model appends it).
        return_type: return only the features of this degree, as a tensor.
        pooling: pool the features of ``return_type`` over the nodes of each graph, ``avg`` or ``max``.
        norm: a :class:`NormSE3` after each attention block.
        use_layer_norm: layer normalisation in the radial profiles.
        tensor_cores: choose fuse level FULL; otherwise PARTIAL.
        low_memory: choose fuse level NONE, and keep only the inputs of each layer for the backward pass.
        fuse_level: choose the parameterisation whatever ``tensor_cores`` and ``low_memory`` say.
        final_fuse_level: that of the last layer, which is FULL in older versions of the published implementation; default: that of
            the others.
        final_layer: ``conv``, a convolution with self-interaction; ``lin``, a linear map; ``att``, an attention block with one
            head, in which only the channels of degree 0 are divided.
        populate_edge: what is appended to the edge features of degree 0: ``lin``, the edge length r; ``arcsin``,
            arsinh(max(r, 4) - 4) / 3; ``log``, log(1 + r); ``zero``, 0.
        sum_over_edge: the final convolution sums over the incoming edges of a node; otherwise it takes their mean.
        compute_gradients: False: gradients reach the positions through the edge lengths alone, not through directions. Otherwise
            they are complete wherever ``rel_pos`` requires grad.
        nonlinearity: takes the place of every ReLU, in the norms between the layers and in the radial profiles.

    The last arguments are those of variants of the published implementation, most of them for protein design. Any other keyword
    argument is ignored with a warning, as code written for the published implementation may pass more.

    Raises:
        ValueError: if ``pooling`` is given without ``return_type``, an option is not among those named, fibers, heads and
            divisors do not fit each other, or one of them is none.
    """

    def __init__(
        self,
        num_layers: int,
        fiber_in: Fiber,
        fiber_hidden: Fiber,
        fiber_out: Fiber,
        num_heads: int,
        channels_div: ChannelsDivisor,
        fiber_edge: Fiber | None = None,
        return_type: int | None = None,
        pooling: Literal["avg", "max"] | None = None,
        norm: bool = True,
        use_layer_norm: bool = True,
        tensor_cores: bool = False,
        low_memory: bool = False,
        fuse_level: ConvSE3FuseLevel | None = None,
        final_fuse_level: ConvSE3FuseLevel | None = None,
        final_layer: FinalLayer = "conv",
        populate_edge: EdgeLength = "lin",
        sum_over_edge: bool = True,
        compute_gradients: bool | None = None,
        nonlinearity: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        _check_options({"final_layer": (final_layer, FinalLayer), "populate_edge": (populate_edge, EdgeLength)})
        check_whole("num_layers", num_layers, 0)
        fiber_edge = fiber_edge if fiber_edge is not None else Fiber({})
        _check_fibers(fiber_in=fiber_in, fiber_hidden=fiber_hidden, fiber_out=fiber_out, fiber_edge=fiber_edge)
        if return_type is not None and return_type not in fiber_out.degrees:
            raise ValueError(f"return_type: expected a degree of fiber_out, one of {fiber_out.degrees}, got {return_type!r}")
        if kwargs:
            warnings.warn(f"SE3Transformer ignores the arguments {', '.join(sorted(kwargs))}", stacklevel=2)
        if pooling is not None and return_type is None:
            raise ValueError(f"return_type: expected the degree to pool, since pooling is {pooling!r}, got None")
        self.num_layers = num_layers
        self.fiber_in = fiber_in
        self.fiber_edge = fiber_edge
        self.num_heads = num_heads
        self.channels_div = channels_div
        self.return_type = return_type
        self.pooling = pooling
        self.max_degree = max(*fiber_in.degrees, *fiber_hidden.degrees, *fiber_out.degrees)
        self.tensor_cores = tensor_cores
        self.low_memory = low_memory
        self.fuse_level = fuse_level or _published_fuse_level(tensor_cores, low_memory)
        self.populate_edge = populate_edge
        self.compute_gradients = compute_gradients
        common: dict[str, Any] = {
            "fiber_edge": self.fiber_edge,
            "use_layer_norm": use_layer_norm,
            "max_degree": self.max_degree,
            "fuse_level": self.fuse_level,
            "low_memory": low_memory,
        }
        modules: list[nn.Module] = []
        for _ in range(num_layers):
            modules.append(AttentionBlockSE3(fiber_in, fiber_hidden, num_heads=num_heads, channels_div=channels_div, **common))
            if norm:
                modules.append(NormSE3(fiber_hidden))
            fiber_in = fiber_hidden
        common["fuse_level"] = final_fuse_level or self.fuse_level
        common["used_degrees"] = None if return_type is None else [return_type]
        if final_layer == "conv":
            modules.append(ConvSE3(fiber_in, fiber_out, self_interaction=True, sum_over_edge=sum_over_edge, **common))
        elif final_layer == "lin":
            modules.append(LinearSE3(fiber_in, fiber_out, common["used_degrees"]))
        else:
            divisors = _final_divisors(fiber_out, channels_div)
            modules.append(AttentionBlockSE3(fiber_in, fiber_out, num_heads=1, channels_div=divisors, **common))
        self.graph_modules = Sequential(*modules)
        if pooling is not None and return_type is not None:
            self.pooling_module = GPooling(feat_type=return_type, pool=pooling)
        if nonlinearity is not None:
            _replace_activations(self.graph_modules, nonlinearity)
        self.register_load_state_dict_pre_hook(convert_on_loading)

    def forward(
        self,
        graph: Any,
        node_feats: Features,
        edge_feats: Features | None = None,
        basis: EdgeGeometry | dict[str, Tensor] | None = None,
    ) -> Features | Tensor:
        """Evaluate the network.

        Args:
            graph: Graph, DGLGraph or PyTorch Geometric data, with ``edata['rel_pos']`` [E, 3]. If that requires grad, the
                result can be differentiated with respect to it.
            node_feats: ``{d: [N, C, 2d+1]}`` with ``fiber_in``.
            edge_feats: ``{d: [E, C, 2d+1]}`` with ``fiber_edge``.
            basis: precomputed geometry of the edges, or a published basis dict; default: made from ``rel_pos``.

        Returns:
            ``{d: [N, C, 2d+1]}``; with ``return_type`` the tensor of that degree; with ``pooling`` that of each graph,
            [B, C, 2d+1] (degree 0: [B, C]).

        Raises:
            ValueError: if features do not fit the fibers or the graph, or positions are not finite.
        """
        graph = as_graph(graph)
        rel_pos, edges = relative_positions(graph), graph.without_data()  # the layers have the geometry
        if basis is None:
            directions = rel_pos.detach() if self.compute_gradients is False else rel_pos
            basis = EdgeGeometry.from_relative_positions(directions, self.max_degree)
        elif not isinstance(basis, EdgeGeometry):
            basis = EdgeGeometry.from_bases(basis, self.max_degree, rel_pos)
        num_nodes = self.fiber_in.check_features(node_feats, "node_feats")
        if num_nodes != edges.num_nodes():
            raise ValueError(f"node_feats: expected features of the graph's {edges.num_nodes()} nodes, got {num_nodes}")
        edge_feats = {} if edge_feats is None else _as_floats(edge_feats, rel_pos.dtype)
        self.fiber_edge.check_features(edge_feats, "edge_feats")
        beside = edge_feats.get("0") if self.fiber_edge[0] == 0 else None  # the edge length would be appended to it
        if beside is not None and beside.shape[1] > 0:
            raise ValueError(f"edge_feats: expected no '0', as fiber_edge has no degree 0, got shape {list(beside.shape)}")
        check_kinds(self, edges, {"graph.edata": {"rel_pos": rel_pos}, "node_feats": node_feats, "edge_feats": edge_feats})
        edge_feats = with_edge_length(rel_pos, edge_feats, self.populate_edge)
        joint = join_parameters(self.graph_modules, edge_feats, edges, basis)
        result = self.graph_modules(node_feats, edge_feats, graph=edges, basis=basis, joint=joint)
        if self.pooling is not None:
            return self.pooling_module(result, graph=edges)
        if self.return_type is not None:
            return result[str(self.return_type)]
        return result


class SE3TransformerPooled(nn.Module):
    """An SE3Transformer pooled over each graph, and a two-layer perceptron: invariant properties of whole molecules.

    Args:
        fiber_in: structure of the node features.
        fiber_out: structure of the features that are pooled; degree 0.
        fiber_edge: structure of the edge features, without the edge length.
        num_degrees: hidden features have the degrees 0..num_degrees-1.
        num_channels: channels of each hidden degree.
        output_dim: number of properties.
        **kwargs: further arguments of :class:`SE3Transformer` (``pooling`` defaults to ``max``).

    Raises:
        ValueError: if ``fiber_out`` has another degree than 0, or as :class:`SE3Transformer`.
    """

    def __init__(
        self,
        fiber_in: Fiber,
        fiber_out: Fiber,
        fiber_edge: Fiber,
        num_degrees: int,
        num_channels: int,
        output_dim: int,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if fiber_out.degrees != [0]:
            raise ValueError(f"fiber_out: expected degree 0 alone, which is pooled, got {fiber_out}")
        kwargs["pooling"] = kwargs.get("pooling") or "max"
        self.transformer = SE3Transformer(
            fiber_in=fiber_in,
            fiber_hidden=Fiber.create(num_degrees, num_channels),
            fiber_out=fiber_out,
            fiber_edge=fiber_edge,
            return_type=0,
            **kwargs,
        )
        width = fiber_out.num_features
        self.mlp = Head(width, width, output_dim)

    def forward(
        self,
        graph: Any,
        node_feats: Features,
        edge_feats: Features | None = None,
        basis: EdgeGeometry | dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Evaluate the network; arguments as for :meth:`SE3Transformer.forward`.

        Returns:
            [B, output_dim], or [B] if ``output_dim`` is 1.
        """
        pooled = self.transformer(graph, node_feats, edge_feats, basis)
        return self.mlp(pooled).squeeze(-1)


def fuse_levels_of_state_dict(state_dict: Mapping[str, Any]) -> dict[str, ConvSE3FuseLevel]:
    """The fuse level of every convolution, by its name in the model (``graph_modules.0.to_key_value``).

    Raises:
        ValueError: if no parameter of a convolution is there.
    """
    return fuse_levels(without_wrappers(state_dict))


def fuse_level_of_state_dict(state_dict: Mapping[str, Any]) -> ConvSE3FuseLevel:
    """The fuse level that a model must be built with for this state dict to load.

    In older versions of the published implementation the last convolution has another level than the attention blocks. Then this
    is that of the blocks, and the last convolution's parameters are converted when they are loaded; :func:`build_for_state_dict`
    builds the model that has them as they are.

    Raises:
        ValueError: if no parameter of a convolution is there.
    """
    return level_of_blocks(without_wrappers(state_dict))


def build_for_state_dict(model_class: type[ModelType], state_dict: Mapping[str, Tensor], **arguments: Any) -> ModelType:
    """Build a model in which every layer has the fuse level that it has in ``state_dict``, and load it.

    What DistributedDataParallel, DataParallel (``module.``) and ``torch.compile`` (``_orig_mod.``) put before the names of the
    parameters is left out.

    Args:
        model_class: :class:`SE3Transformer` or :class:`SE3TransformerPooled`.
        state_dict: parameters under the published names.
        **arguments: the constructor arguments of the model.

    Raises:
        ValueError: if the parameters do not fit the model, naming one that differs, or only some names have a wrapper's before
            them.
    """
    state_dict = without_wrappers(state_dict)
    model = model_class(**arguments, **matching_levels(model_class, state_dict, arguments))
    check_state_dict(model, state_dict)
    model.load_state_dict(dict(state_dict))
    return model


def matching_levels(
    model_class: type[nn.Module], state_dict: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, ConvSE3FuseLevel]:
    """The arguments ``fuse_level`` and, if it has to be another, ``final_fuse_level`` of the model that has these parameters.

    Args:
        model_class: :class:`SE3Transformer` or :class:`SE3TransformerPooled`.
        state_dict: parameters under the published names, without those of wrappers.
        arguments: the other arguments of the model.

    Raises:
        ValueError: if no parameter of a convolution is there, or the arguments do not fit each other.
    """
    levels = fuse_levels(state_dict)
    for level in sorted(set(levels.values()), key=lambda level: -level.value):
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model that is built with them says what there is to say
            candidate = model_class(**{**arguments, "fuse_level": level})
        if fuse_levels(candidate.state_dict()) == levels:
            return {"fuse_level": level}
    return {"fuse_level": level_of_blocks(state_dict), "final_fuse_level": list(levels.values())[-1]}


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Check that ``state_dict`` has the parameters of ``model``.

    Raises:
        ValueError: in one line: the first parameter that is missing, superfluous or of another shape, and what was expected; or
            what a wrapper has put before all names.
    """
    prefix = wrapper_prefix(state_dict)
    if prefix and not wrapper_prefix(model.state_dict()):
        raise ValueError(
            f"state_dict: expected names as '{next(iter(model.state_dict()))}', got them with '{prefix}' of a wrapper before them: "
            "take the state_dict of the model within it, or use build_for_state_dict, which leaves that out"
        )
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: list(tensor.shape) for name, tensor in state_dict.items()}
    for name, shape in expected.items():
        if given.get(name) != shape:
            came = f"got {given[name]}" if name in given else "it is missing"
            raise ValueError(f"state_dict: expected '{name}' of shape {shape}, {came}")
    superfluous = [name for name in given if name not in expected]
    if superfluous:
        raise ValueError(f"state_dict: expected no parameter '{superfluous[0]}', got one of shape {given[superfluous[0]]}")


def with_edge_length(rel_pos: Tensor, edge_feats: Features, populate_edge: EdgeLength = "lin") -> Features:
    """The edge features with the edge length as last channel of degree 0.

    Args:
        rel_pos: [E, 3].
        edge_feats: ``{d: [E, C, 2d+1]}``, with or without degree 0.
        populate_edge: what is made of the length, see :class:`SE3Transformer`.
    """
    length = edge_lengths(rel_pos)[:, None, None]  # [E, 1, 1]
    if populate_edge == "arcsin":
        length = torch.asinh(length.clamp(min=4.0) - 4.0) / 3.0
    elif populate_edge == "log":
        length = torch.log1p(length)
    elif populate_edge == "zero":
        length = torch.zeros_like(length)
    invariants = torch.cat([edge_feats["0"], length], 1) if "0" in edge_feats else length
    return {**edge_feats, "0": invariants}


def _replace_activations(modules: nn.Module, nonlinearity: nn.Module) -> None:
    for module in list(modules.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.ReLU):
                setattr(module, name, nonlinearity)


def _as_floats(edge_feats: Features, dtype: torch.dtype) -> Features:
    """Edge features that are whole numbers, such as kinds of bonds, as the edge lengths beside them are."""
    if not isinstance(edge_feats, Mapping):
        return edge_feats
    return {
        key: tensor.to(dtype) if isinstance(tensor, Tensor) and not tensor.is_floating_point() else tensor
        for key, tensor in edge_feats.items()
    }


def _check_fibers(**fibers: object) -> None:
    for name, fiber in fibers.items():
        if not isinstance(fiber, Fiber):
            raise ValueError(f"{name}: expected a Fiber, got {fiber!r}")


def _check_options(options: dict[str, tuple[str, Any]]) -> None:
    """Refuse what is none of the names of a Literal type."""
    for name, (option, known) in options.items():
        if option not in get_args(known):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(known))}, got {option!r}")


def _published_fuse_level(tensor_cores: bool, low_memory: bool) -> ConvSE3FuseLevel:
    if low_memory:
        return ConvSE3FuseLevel.NONE
    return ConvSE3FuseLevel.FULL if tensor_cores else ConvSE3FuseLevel.PARTIAL


def _final_divisors(fiber: Fiber, channels_div: ChannelsDivisor) -> dict[int, int]:
    """Divisors of a final attention block: that of degree 0, and 1 for the others, which often have one or two channels."""
    divisors = dict.fromkeys(fiber.degrees, 1)
    if isinstance(channels_div, Mapping):
        by_degree = {int(degree): divisor for degree, divisor in channels_div.items()}
        return divisors | {0: by_degree.get(0, 1)}
    return divisors | {0: channels_div or 1}
