"""TFN convolution: the messages of all edges, or their sum at each destination.

Formula: :mod:`se3_fast.backends.dense.tfn_conv`. Backends: ``dense`` (that module), ``torch``
(:mod:`se3_fast.backends.torch.tfn_conv`), ``triton`` (``kernels/tfn_conv.py``, ``kernels/tfn_conv_by_source.py``), ``cuda``
(``csrc/tfn_conv.cu``; float64 as ``torch``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, compute_dtype
from se3_fast.autograd.opaque import OpaqueOperation
from se3_fast.autograd.operation import Operation, Tensors, Wanted
from se3_fast.autograd.transforms import is_followed
from se3_fast.backends.choice import backend, convolution_backend, frames_read, selected_backend
from se3_fast.backends.dense import tfn_conv as reference
from se3_fast.backends.dense.edge_frames import wigner_of_angles
from se3_fast.backends.torch import tfn_conv as aligned
from se3_fast.contraction import (
    ContractionOrder,
    ConvolutionPlan,
    aligned_weight,
    aligned_weights_of_blocks,
    blocks_by_degree,
    hidden_splits,
    is_by_source,
    is_less_arithmetic_by_source,
    is_less_time_by_source,
    published_weight,
)
from se3_fast.fiber import Features
from se3_fast.graph import EdgeOrder, Graph
from se3_fast.ops.aligned_weights import AlignedWeights, aligned_weights
from se3_fast.ops.edge_frames import EdgeGeometry
from se3_fast.ops.radial import Recipe, Remake, ScaledRemake, scaled
from se3_fast.ops.second_derivatives import (
    SHARED,
    ConvolutionOperands,
    EdgeFormula,
    Edges,
    Role,
    edges_per_chunk,
    messages_by_formula,
)

if TYPE_CHECKING:
    from se3_fast.backends.cpp.tfn_conv import NativeConvolution
    from se3_fast.backends.triton.edge_attention import AlignedMessages
    from se3_fast.backends.triton.tfn_conv import Launches
    from se3_fast.backends.triton.tfn_conv_by_source import SourceLaunches


def tfn_conv(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    node_features: Features,
    edge_features: Features,
    hidden: Sequence[Tensor] | Tensor,
    weights: Sequence[Tensor],
    pool: bool,
    make_hidden: Recipe | None = None,
    prepared: PreparedRadial | None = None,
    order: ContractionOrder = "auto",
) -> Features:
    """Messages of a TFN convolution.

    Args:
        plan: which degrees and channels are coupled by which radial group.
        graph: N nodes, E edges.
        geometry: directions of the edges.
        node_features: ``{d: [N, C_d, 2d+1]}`` for the degrees of ``plan.node_channels``.
        edge_features: ``{d: [E, C_d, 2d+1]}`` for the degrees of ``plan.edge_channels`` (others are ignored).
        hidden: output of the hidden radial layers for each group, [E, K]; or that of all in one tensor, [groups, E, K].
        weights: last radial weight of each group, [C_out * C_in * F, K], in the published row order.
        pool: sum over the incoming edges of each node; nodes without any get 0.
        make_hidden: how to make ``hidden`` again; a backend that keeps its operands then keeps none of it.
        prepared: h and the weights as the kernels read them, where :func:`keeps_frames`; ``hidden`` is then a constant.
        order: of contraction: ``edge``, ``source``, or what is cheaper on the backend at hand.

    Returns:
        ``{d: [N or E, C_d, 2d+1]}`` in the compute dtype.

    Raises:
        ValueError: if the geometry was made for fewer degrees than the plan has, or a size does not fit the plan or the graph.
    """
    _check_degrees(plan, geometry)
    _check_sizes(plan, graph, geometry, node_features, edge_features, hidden, weights)
    device_type = hidden[0].device.type
    call = _Call(plan, graph, geometry, node_features, edge_features, hidden, weights, pool, make_hidden, prepared, order)
    call = call.in_compute_dtype()
    if torch.compiler.is_compiling() and not _runs_dense(geometry):
        return _compiled(_with_scaled_hidden(call))
    with torch.autocast(device_type, enabled=False):
        if _runs_dense(geometry):
            return _dense(call)
        messages = _messages(_with_scaled_hidden(call))
        return messages if geometry.by_formula is None else _with_edges_by_formula(messages, call)


def tfn_conv_by_formula(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    node_features: Features,
    edge_features: Features,
    contractions: Sequence[reference.Contraction],
    pool: bool,
) -> Features:
    """As :func:`tfn_conv`, the messages of each group by a function of the caller: on all backends as ``dense``.

    Args:
        plan: which degrees and channels are coupled by which radial group.
        graph: N nodes, E edges.
        geometry: directions of the edges.
        node_features: ``{d: [N, C_d, 2d+1]}`` for the degrees of ``plan.node_channels``.
        edge_features: ``{d: [E, C_d, 2d+1]}`` for the degrees of ``plan.edge_channels`` (others are ignored).
        contractions: of each group, see :func:`se3_fast.backends.dense.tfn_conv.messages`.
        pool: sum over the incoming edges of each node; nodes without any get 0.
    """
    _check_degrees(plan, geometry)
    nodes = {str(degree): node_features[str(degree)] for degree, _ in plan.node_channels}
    edges = {str(degree): edge_features[str(degree)] for degree, _ in plan.edge_channels}
    features = reference.gather_features(nodes, edges, graph.src)
    with _by_reference(geometry):
        messages = reference.messages(plan, geometry.basis, features, contractions)
    return reference.sum_over_incoming(messages, graph.dst, graph.num_nodes()) if pool else messages


class PreparedRadial(NamedTuple):
    """The radial profiles of a convolution as the Triton kernels that contract by edge read them.

    Attributes:
        hidden: h, [S, groups, E, K]: the same values S times over, which take no memory, so that the gradient may come in S parts;
            S is :func:`hidden_gradient_parts`.
        weights: the aligned weights.
    """

    hidden: Tensor
    weights: AlignedWeights

    @property
    def values(self) -> Tensor:
        """h as a constant, [groups, E, K]."""
        return self.hidden.detach()[0]


def hidden_gradient_parts(plans: Sequence[ConvolutionPlan], num_edges: int) -> int:
    """In how many parts the gradients of h of some convolutions come, the same for all; 1 where there will be none."""
    return min(hidden_splits(num_edges, len(plan.groups)) for plan in plans) if torch.is_grad_enabled() else 1


def is_contracted_by_edge(plan: ConvolutionPlan, graph: Graph, width: int, dtype: torch.dtype, order: ContractionOrder) -> bool:
    """Whether backend ``triton`` contracts by edge; ``width`` is that of h, ``dtype`` that of the features."""
    sizes = (graph.num_nodes(), graph.num_edges(), width, dtype)
    return not is_by_source(order, plan, lambda: is_less_time_by_source(plan, *sizes))


def keeps_frames(geometry: EdgeGeometry) -> bool:
    """Whether :func:`aligned_messages` serves a geometry: on backend ``triton``, where every edge has a frame and is constant."""
    if torch.compiler.is_compiling() or selected_backend(geometry.rel_pos.device) != "triton" or _runs_dense(geometry):
        return False
    if geometry.by_formula is not None:
        return False
    return not is_followed(geometry.rel_pos) and len(geometry.zero_length_edges) == 0


def aligned_messages(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    node_features: Features,
    edge_features: Features,
    hidden: Sequence[Tensor] | Tensor,
    weights: Sequence[Tensor],
    prepared: PreparedRadial | None = None,
    order: ContractionOrder = "auto",
) -> AlignedMessages:
    """The messages of :func:`tfn_conv` left in the frames of their edges, for a geometry that :func:`keeps_frames`.

    Arguments and errors are those of :func:`tfn_conv`.
    """
    from se3_fast.backends.triton.edge_attention import AlignedMessages

    _check_degrees(plan, geometry)
    _check_sizes(plan, graph, geometry, node_features, edge_features, hidden, weights)
    device_type = hidden[0].device.type
    call = _Call(plan, graph, geometry, node_features, edge_features, hidden, weights, False, prepared=prepared, order=order)
    call = _with_scaled_hidden(call.in_compute_dtype())
    with torch.autocast(device_type, enabled=False):
        (values,), edges = _fused(call, keeps_frames=True)
    return AlignedMessages(values, plan.channels_out, edges.angles, edges.graph)


def _check_sizes(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    node_features: Features,
    edge_features: Features,
    hidden: Sequence[Tensor] | Tensor,
    weights: Sequence[Tensor],
) -> None:
    num_nodes, num_edges = graph.num_nodes(), graph.num_edges()
    if geometry.num_edges != num_edges:
        raise ValueError(f"geometry: expected one of the graph's {num_edges} edges, got one of {geometry.num_edges} edges")
    expected: list[tuple[str, Tensor, tuple[int, ...]]] = [
        (f"{name}['{degree}']", features[str(degree)], (count, channels, 2 * degree + 1))
        for name, features, count, of_plan in (
            ("node_features", node_features, num_nodes, plan.node_channels),
            ("edge_features", edge_features, num_edges, plan.edge_channels),
        )
        for degree, channels in of_plan
    ]
    if len(hidden) != len(plan.groups) or len(weights) != len(plan.groups):
        raise ValueError(f"hidden, weights: expected {len(plan.groups)} as groups, got {len(hidden)} and {len(weights)}")
    width = weights[0].shape[-1]
    for index, (group, weight) in enumerate(zip(plan.groups, weights, strict=True)):
        expected.append((f"weights[{index}]", weight, (group.channels_out * group.channels_in * group.num_paths, width)))
    if isinstance(hidden, Tensor):
        expected.append(("hidden", hidden, (len(plan.groups), num_edges, width)))
    else:
        expected += [(f"hidden[{index}]", values, (num_edges, width)) for index, values in enumerate(hidden)]
    for name, tensor, shape in expected:
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def _check_degrees(plan: ConvolutionPlan, geometry: EdgeGeometry) -> None:
    if geometry.max_degree < plan.max_degree:
        raise ValueError(
            f"geometry: expected one for degrees up to {plan.max_degree}, got one for degrees up to {geometry.max_degree}"
        )


def prepare_geometry(plan: ConvolutionPlan, graph: Graph, geometry: EdgeGeometry, by_formula: bool = False) -> None:
    """Make what a convolution will read of graph and geometry, so that all calls with them (also a recomputation) share it.

    Args:
        plan: what is coupled.
        graph: the edges.
        geometry: their directions.
        by_formula: whether it is :func:`tfn_conv_by_formula` that will read them.
    """
    if by_formula or _runs_dense(geometry):
        with _by_reference(geometry):
            for key in filter(None, map(reference.basis_key, plan.groups)):
                geometry.basis(key)
    elif torch.compiler.is_compiling():
        graph.incoming()
        graph.outgoing()
        geometry.with_frames()


def _runs_dense(geometry: EdgeGeometry) -> bool:
    if geometry.is_given or (geometry.by_formula is not None and torch.compiler.is_compiling()):
        return True
    return selected_backend(geometry.rel_pos.device) == "dense"


def _by_reference(geometry: EdgeGeometry) -> AbstractContextManager[None]:
    """Where bases that autograd can follow any number of times are made, if they are to be differentiated."""
    return backend("dense") if geometry.rel_pos.requires_grad else nullcontext()


class _Call(NamedTuple):
    """The arguments of :func:`tfn_conv`, in the compute dtype but for the weights."""

    plan: ConvolutionPlan
    graph: Graph
    geometry: EdgeGeometry
    nodes: Features
    edges: Features
    hidden: Sequence[Tensor] | Tensor
    weights: Sequence[Tensor]
    pool: bool
    make_hidden: Recipe | None = None
    prepared: PreparedRadial | None = None
    order: ContractionOrder = "auto"

    @property
    def dtype(self) -> torch.dtype:
        return self.hidden[0].dtype

    def in_compute_dtype(self) -> _Call:
        """With what the plan reads of the features, and h, in the dtype of the operands or of autocast."""
        dtype = compute_dtype(self.hidden[0])
        hidden = self.hidden
        return self._replace(
            nodes={str(degree): self.nodes[str(degree)].to(dtype) for degree, _ in self.plan.node_channels},
            edges={str(degree): self.edges[str(degree)].to(dtype) for degree, _ in self.plan.edge_channels},
            hidden=hidden.to(dtype) if isinstance(hidden, Tensor) else [values.to(dtype) for values in hidden],
        )


def _with_scaled_hidden(call: _Call) -> _Call:
    """The call with the factor of its geometry in h, R = W h, instead of in the bases."""
    factor = call.geometry.factor
    if factor is None:
        return call
    scales = torch.stack([torch.ones_like(factor) if group.is_basis_free else factor for group in call.plan.groups])[..., None]
    if isinstance(call.hidden, Tensor):
        hidden: Sequence[Tensor] | Tensor = scaled(call.hidden, scales)
    else:
        hidden = [scaled(values, scale) for values, scale in zip(call.hidden, scales, strict=True)]
    make_hidden = None if call.make_hidden is None else call.make_hidden.scaled(scales)
    return call._replace(geometry=call.geometry.without_factor(), hidden=hidden, make_hidden=make_hidden)


def _with_edges_by_formula(result: Features, call: _Call) -> Features:
    """Add the messages of the edges of which the tensors given are needed; what has no basis is in ``result`` already."""
    chosen = call.geometry.edges_by_formula
    hidden = [
        torch.zeros_like(values[chosen]) if group.is_basis_free else values[chosen]
        for group, values in zip(call.plan.groups, call.hidden, strict=True)
    ]
    return _with_messages_of(result, call, chosen, call.geometry.given_bases_of(chosen), hidden)


def _messages(call: _Call) -> Features:
    backend_name = _backend_of(call)
    if backend_name == "triton":
        messages = _triton(call)
    elif backend_name == "cuda":
        messages = _cuda(call)
    elif backend_name == "cpp":
        messages = _cpp(call)
    else:
        messages = _aligned(call)
    result = {str(degree): message for (degree, _), message in zip(call.plan.channels_out, messages, strict=True)}
    return _with_zero_length_edges(result, call) if len(call.geometry.zero_length_edges) else result


def _backend_of(call: _Call) -> str:
    return convolution_backend(selected_backend(call.hidden[0].device), call.dtype, call.hidden[0].shape[-1])


def _dense(call: _Call) -> Features:
    features = reference.gather_features(call.nodes, call.edges, call.graph.src)
    weights = [weight.to(call.dtype) for weight in call.weights]
    basis = partial(call.geometry.basis, dtype=call.dtype)
    messages = reference.tfn_conv(call.plan, basis, features, list(call.hidden), weights)
    return reference.sum_over_incoming(messages, call.graph.dst, call.graph.num_nodes()) if call.pool else messages


def _aligned(call: _Call) -> tuple[Tensor, ...]:
    make = partial(aligned.Problem, call.plan, call.graph, is_by_source=_is_by_source(call, False), is_pooled=call.pool)
    tensors = (*call.nodes.values(), *call.edges.values(), *call.hidden, *call.weights)
    operation = OperandConvolution(_Setting.of(call, call.dtype), make, None)
    return operation.apply(call.geometry.wigner_as(call.dtype), call.geometry.rel_pos, *tensors)


def _is_by_source(call: _Call, forms_weights: bool) -> bool:
    def is_cheaper() -> bool:
        num_sources = len(call.graph.sources_by_out_degree()[1])
        return is_less_arithmetic_by_source(call.plan, num_sources, call.graph.num_edges(), forms_weights)

    return is_by_source(call.order, call.plan, is_cheaper)


def _triton(call: _Call) -> tuple[Tensor, ...]:
    return _fused(call, keeps_frames=False)[0]


class AlignedEdges(NamedTuple):
    """The frames of a graph's edges, [4, E], and that graph."""

    angles: Tensor
    graph: Graph


def _fused(call: _Call, keeps_frames: bool) -> tuple[tuple[Tensor, ...], AlignedEdges]:
    """By the Triton kernels: the messages by degree, or y~ alone; and the edges in the order that y~ has them."""
    from se3_fast.backends.triton import tfn_conv_by_source as by_source
    from se3_fast.backends.triton.tfn_conv import Launches

    angles_dtype = accumulation_dtype(call.dtype)
    arguments: dict[str, Any] = {"pool": call.pool, "dtype": call.dtype, "keeps_frames": keeps_frames}
    setting, rel_pos = _Setting.of(call, call.dtype, keeps_frames), call.geometry.rel_pos
    if call.prepared is None and not is_contracted_by_edge(call.plan, call.graph, call.hidden[0].shape[-1], call.dtype, call.order):
        order = by_source.source_order(call.graph)
        angles = call.geometry.angles_by(order.edges, angles_dtype)
        make_by_source = partial(by_source.SourceLaunches, call.plan, order, **arguments)
        blocks = [block.to(call.dtype) for block in blocks_by_degree(call.plan, call.weights)]
        convolution = FusedConvolutionBySource(setting, make_by_source, Edges.of(order.graph, order.edges))
        tensors = (_in_one_tensor(call.hidden), *blocks, *call.nodes.values())
        return convolution.apply(angles, rel_pos, *tensors), AlignedEdges(angles, order.graph)
    angles = call.geometry.angles.to(angles_dtype)
    make = partial(Launches, call.plan, call.graph, **arguments)
    prepared = call.prepared or _prepared(call)
    features = (*call.nodes.values(), *call.edges.values())
    convolution_by_edge = FusedConvolution(setting, make, Edges.of(call.graph))
    results = convolution_by_edge.apply(angles, rel_pos, prepared.hidden, *prepared.weights, *features)
    return results, AlignedEdges(angles, call.graph)


def _prepared(call: _Call) -> PreparedRadial:
    """What the kernels read of h and the weights of one convolution."""
    hidden = _in_one_tensor(call.hidden)
    parts = hidden_gradient_parts([call.plan], hidden.shape[1])
    (weights,) = aligned_weights([call.plan], [call.weights], call.dtype)
    return PreparedRadial(hidden.expand(parts, *hidden.shape), weights)


def _in_one_tensor(hidden: Sequence[Tensor] | Tensor) -> Tensor:
    """h of all groups, [groups, E, K] contiguous."""
    return hidden.contiguous() if isinstance(hidden, Tensor) else torch.stack(list(hidden))


def _cpp(call: _Call) -> tuple[Tensor, ...]:
    """By the compiled CPU operations, which compute in float32 or float64."""
    from se3_fast.backends.cpp import tfn_conv_by_source as by_source
    from se3_fast.backends.cpp.tfn_conv import NativeConvolution

    kind = by_source.NativeConvolutionBySource if _is_by_source(call, True) else NativeConvolution
    dtype = accumulation_dtype(call.dtype)
    make = partial(kind, call.plan, call.graph, pool=call.pool)
    tensors = (*call.nodes.values(), *call.edges.values(), *call.hidden, *call.weights)
    operands = (tensor.to(dtype).contiguous() for tensor in tensors)
    how, of_recipe = (None, ()) if call.make_hidden is None else call.make_hidden
    operation = OperandConvolution(_Setting.of(call, dtype), make, how)
    messages = operation.apply(call.geometry.wigner_as(dtype), call.geometry.rel_pos, *operands, *of_recipe)
    return tuple(message.to(call.dtype) for message in messages)


def _cuda(call: _Call) -> tuple[Tensor, ...]:
    """By the kernels for compute capability 7.x, in float16 or float32: these devices have no bfloat16."""
    from se3_fast.backends.cuda.tfn_conv import CudaLaunches

    dtype = torch.float16 if call.dtype == torch.float16 else torch.float32
    make = partial(CudaLaunches, call.plan, call.graph, pool=call.pool, dtype=dtype)
    groups = zip(call.plan.groups, call.weights, strict=True)
    weights = torch.cat([aligned_weight(group, weight).flatten() for group, weight in groups])
    hidden, weights = _in_one_tensor(call.hidden).to(dtype)[None], weights.to(dtype)
    features = (tensor.to(dtype) for tensor in (*call.nodes.values(), *call.edges.values()))
    convolution = FusedConvolution(_Setting.of(call, dtype), make, Edges.of(call.graph))
    messages = convolution.apply(call.geometry.angles.float(), call.geometry.rel_pos, hidden, weights, None, *features)
    return tuple(message.to(call.dtype) for message in messages)


def _with_zero_length_edges(result: Features, call: _Call) -> Features:
    """Add the messages of edges without direction, which have no frame: only their J = 0 terms, by the dense formula."""
    chosen = call.geometry.zero_length_edges
    geometry = EdgeGeometry(call.geometry.rel_pos[chosen].detach(), call.geometry.max_degree)
    return _with_messages_of(result, call, chosen, geometry, [values[chosen] for values in call.hidden])


def _with_messages_of(result: Features, call: _Call, chosen: Tensor, geometry: EdgeGeometry, hidden: Sequence[Tensor]) -> Features:
    """Add the messages of the chosen edges [n] by the dense formula; ``geometry`` and ``hidden`` are those of these edges."""
    part = call._replace(
        graph=Graph(call.graph.src[chosen], call.graph.dst[chosen], call.graph.num_nodes()),
        geometry=geometry,
        edges={key: tensor[chosen] for key, tensor in call.edges.items()},
        hidden=hidden,
    )
    messages = _dense(part)
    if call.pool:
        return {key: tensor + messages[key] for key, tensor in result.items()}
    return {key: tensor.index_add(0, chosen, messages[key]) for key, tensor in result.items()}


def _compiled(call: _Call) -> Features:
    """The convolution as one node of a compiled graph, on the backend chosen while it is traced."""
    backend_name = selected_backend(call.hidden[0].device)
    description = _description(call.plan, call.pool, backend_name, call.geometry.max_degree, call.order)
    operands = [
        call.graph.src,
        call.graph.dst,
        *call.graph.incoming(),
        *call.graph.outgoing(),
        call.geometry.rel_pos,
        call.geometry.frames(frames_read(_backend_of(call))),
        *call.nodes.values(),
        *call.edges.values(),
        *call.hidden,
        *call.weights,
    ]
    messages = _opaque_convolution(description, operands)
    return {str(degree): message for (degree, _), message in zip(call.plan.channels_out, messages, strict=True)}


@torch.compiler.assume_constant_result
def _description(plan: ConvolutionPlan, pool: bool, backend_name: str, max_degree: int, order: ContractionOrder) -> str:
    return json.dumps([plan.to_json(), pool, backend_name, max_degree, order])


def _opaque_run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The messages by ascending degree, from what :func:`_compiled` packed."""
    plan_json, pool, backend_name, max_degree, *order = json.loads(description)
    plan = ConvolutionPlan.from_json(plan_json)
    src, dst, in_order, in_offsets, out_order, out_offsets, rel_pos, frames, *rest = operands
    graph = Graph.from_orders(src, dst, EdgeOrder(in_order, in_offsets), EdgeOrder(out_order, out_offsets))
    hidden = rest[-2 * len(plan.groups)]
    has_angles = frames_read(convolution_backend(backend_name, hidden.dtype, hidden.shape[-1])) == "angles"
    geometry = EdgeGeometry(rel_pos, max_degree, wigner=None if has_angles else frames, angles=frames if has_angles else None)
    remaining = iter(rest)
    call = _Call(
        plan,
        graph,
        geometry,
        {str(degree): next(remaining) for degree, _ in plan.node_channels},
        {str(degree): next(remaining) for degree, _ in plan.edge_channels},
        [next(remaining) for _ in plan.groups],
        [next(remaining) for _ in plan.groups],
        pool,
        order=order[0] if order else "auto",  # programs that were exported before have none
    )
    with backend(backend_name), torch.autocast(src.device.type, enabled=False):
        return list(_messages(call).values())


def _opaque_shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    plan_json, pool, *_ = json.loads(description)
    plan = ConvolutionPlan.from_json(plan_json)
    src, in_offsets, hidden = operands[0], operands[3], operands[-2 * len(plan.groups)]
    count = in_offsets.shape[0] - 1 if pool else src.shape[0]
    return [hidden.new_empty(count, channels, 2 * degree + 1) for degree, channels in plan.channels_out]


_opaque_convolution = OpaqueOperation("tfn_conv", _opaque_run, _opaque_shapes)


class _Setting(NamedTuple):
    """What a convolution is, apart from its operands.

    Attributes:
        plan: what is coupled.
        graph: the edges.
        max_degree: largest degree of the geometry.
        pool: whether messages are summed over incoming edges.
        dtype: that of the operands.
        keeps_frames: whether messages stay in the edges' frames, as one tensor [rows, E].
    """

    plan: ConvolutionPlan
    graph: Graph
    max_degree: int
    pool: bool
    dtype: torch.dtype
    keeps_frames: bool

    @staticmethod
    def of(call: _Call, dtype: torch.dtype, keeps_frames: bool = False) -> _Setting:
        """That of a call, computed in ``dtype``."""
        return _Setting(call.plan, call.graph, call.geometry.max_degree, call.pool, dtype, keeps_frames)

    @property
    def feature_roles(self) -> tuple[Role, ...]:
        """Of node features and edge features."""
        return (Role("src"),) * len(self.plan.node_channels) + (Role("edge"),) * len(self.plan.edge_channels)

    @property
    def message_roles(self) -> tuple[Role, ...]:
        """Of the messages by degree, or of y~."""
        if self.keeps_frames:
            return (Role("place", 1),)
        return (Role("dst" if self.pool else "edge"),) * len(self.plan.channels_out)

    def with_zeros(self, gradients: Tensors, like: Tensor) -> list[Tensor]:
        """The gradients of the messages by degree, zeros for those that are missing; in the dtype and on the device of ``like``."""
        count = self.graph.num_nodes() if self.pool else self.graph.num_edges()
        return [
            like.new_zeros(count, channels, 2 * degree + 1) if gradient is None else gradient
            for (degree, channels), gradient in zip(self.plan.channels_out, gradients, strict=True)
        ]

    def reached_groups(self, gradients: Tensors) -> list[bool]:
        """Of each radial group whether messages of one of its degrees have a gradient."""
        reached = {degree for (degree, _), one in zip(self.plan.channels_out, gradients, strict=True) if one is not None}
        return [not reached.isdisjoint(group.degrees_out) for group in self.plan.groups]

    def formula(self, evaluate: Callable[[Tensors], ConvolutionOperands], roles: Sequence[Role], edges: Edges) -> EdgeFormula:
        """The formula of the messages.

        Args:
            evaluate: from the operands of some edges, of which the first are the frames, to what the formula takes.
            roles: of the operands.
            edges: all edges.
        """

        def messages(operands: Tensors) -> list[Tensor]:
            found = messages_by_formula(self.plan, self.max_degree, evaluate(operands))
            return [_in_frames(self.plan, found, operands[0])] if self.keeps_frames else found

        chunk = edges_per_chunk(self.plan, self.dtype)
        return EdgeFormula(messages, edges, chunk, tuple(roles), self.message_roles)


def _in_frames(plan: ConvolutionPlan, messages: Sequence[Tensor], angles: Tensor | None) -> Tensor:
    """Rows of y~, [rows, n], from messages and the angles of their edges, [4, n]."""
    assert angles is not None
    blocks = wigner_of_angles(angles, plan.max_degree)
    rows = [
        torch.bmm(message, blocks[degree].to(message.dtype)).permute(2, 1, 0).flatten(0, 1)
        for (degree, _), message in zip(plan.channels_out, messages, strict=True)
    ]
    return torch.cat(rows)


@dataclass(frozen=True, eq=False)
class OperandConvolution(Operation):
    """The convolution of backends that keep its operands only: node features, edge features, h and the weights.

    In plain PyTorch (:class:`se3_fast.backends.torch.tfn_conv.Problem`) or by the compiled CPU operations
    (:class:`se3_fast.backends.cpp.tfn_conv.NativeConvolution`); everything else is made again in the backward pass, written by
    hand; so is h, the largest of them, where there is a way to.

    Operands: Wigner blocks; rel_pos [E, 3], of which only the gradient is made here; node features and edge features by degree; h
    [E, K] and last radial weight [C_out * C_in * F, K] by group; then what h is made of, which is not differentiated here.
    Results: messages by ascending degree.

    Attributes:
        setting: what it is.
        make: the convolution, from the Wigner blocks.
        remake: how to make h again.
    """

    takes_missing: ClassVar[bool] = True

    setting: _Setting
    make: Callable[[Tensor], aligned.Problem | NativeConvolution]
    remake: Remake | ScaledRemake | None

    @property
    def num_groups(self) -> int:
        """Radial groups."""
        return len(self.setting.plan.groups)

    @property
    def num_features(self) -> int:
        """Tensors of features."""
        return len(self.setting.plan.node_channels) + len(self.setting.plan.edge_channels)

    @property
    def constants(self) -> Sequence[Tensor]:
        """The edges."""
        return self.setting.graph.src, self.setting.graph.dst

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The messages."""
        return self.make(operands[0]).forward(operands[2 : 2 + self.num_features + 2 * self.num_groups])

    def formula_operands(self, operands: Tensors) -> Tensors:
        """All but what h is made of."""
        return operands[: 2 + self.num_features + 2 * self.num_groups]

    def saved(self, operands: Tensors) -> Tensors:
        """All, or all but h."""
        if self.remake is None:
            return operands
        first = 2 + self.num_features
        return [*operands[:first], *operands[first + self.num_groups :]]

    def restored(self, saved: Tensors) -> Tensors:
        """With h made again."""
        if self.remake is None:
            return saved
        first = 2 + self.num_features
        last = first + self.num_groups
        hidden = self.remake.make(saved[last:])
        return [*saved[:first], *(values.to(self.setting.dtype).contiguous() for values in hidden), *saved[first:last]]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of rel_pos (where it needs one) and of all tensors behind it; None for h and the weights of a radial group none
        of whose messages has a gradient."""
        wigner, rel_pos, *tensors = operands
        needs_weights = any(wanted[-self.num_groups :])
        given = self.setting.with_zeros(gradients, wigner)
        found, of_positions = self.make(wigner).backward(tensors, given, rel_pos if wanted[1] else None, needs_weights)
        for index, is_reached in enumerate(self.setting.reached_groups(gradients)):
            if not is_reached:
                found[self.num_features + index] = found[self.num_features + self.num_groups + index] = None
        return None, of_positions, *found

    @property
    def formula(self) -> EdgeFormula:
        """The published one."""
        roles = (Role("edge"), Role("edge"), *self.setting.feature_roles)
        roles += (Role("edge"),) * self.num_groups + (SHARED,) * self.num_groups
        return self.setting.formula(self._operands, roles, Edges.of(self.setting.graph))

    def _operands(self, operands: Any) -> ConvolutionOperands:
        _, rel_pos, *tensors = operands
        last = self.num_features + self.num_groups
        return ConvolutionOperands(rel_pos, tensors[: self.num_features], tensors[self.num_features : last], tensors[last:])


@dataclass(frozen=True, eq=False)
class FusedConvolution(Operation):
    """The convolution by the Triton kernels (``kernels/tfn_conv.py``): radial weights generated on chip, forward and backward.

    Keeps aligned features x~ and h; under ``low_memory`` the layer makes them again.

    Operands: angles of the edges' frames; rel_pos [E, 3], of which only the gradient is made here; h [S, groups, E, K], the same S
    times over, whose gradient comes in S parts; the aligned weights of all groups in a row; the same in the order that the
    transposed contraction reads, where it does not make that order itself; node features by degree, then edge features by degree.
    Results: messages by ascending degree, or y~.

    Attributes:
        setting: what it is.
        make: the kernel launches, from the angles.
        edges: as the results have them.
    """

    num_kept: ClassVar[int] = 1

    setting: _Setting
    make: Callable[[Tensor], Launches]
    edges: Edges

    @property
    def constants(self) -> Sequence[Tensor]:
        """The edges."""
        return self.edges.src, self.edges.dst

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results, then x~."""
        angles, _, hidden, weights, _, *features = operands
        launches = self.make(angles)
        aligned_features = launches.align_inputs(features)
        messages = launches.contract(aligned_features, hidden[0], weights)
        return *launches.rotate_outputs(messages), aligned_features

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of rel_pos (where it needs one), of h, of the aligned weights and of all features."""
        angles, rel_pos, hidden_parts, weights, transposed, *features = operands
        (aligned_features,) = kept
        launches, hidden = self.make(angles), hidden_parts[0]
        gradient = launches.align_gradients(gradients)
        of_radial = launches.radial_gradients(aligned_features, gradient, hidden, weights, len(hidden_parts))
        if not wanted[1] and not any(wanted[5:]):
            return None, None, *of_radial, None, *[None] * len(features)
        feature_gradient = launches.contract_transposed(gradient, hidden, weights, transposed)
        of_positions = None
        if wanted[1]:
            messages = launches.contract(aligned_features, hidden, weights)
            of_positions = launches.position_gradient(rel_pos, gradient, messages, feature_gradient, aligned_features)
        return None, of_positions, *of_radial, None, *launches.rotate_input_gradients(feature_gradient)

    @property
    def formula(self) -> EdgeFormula:
        """The published one."""
        roles = (Role("place", 1), Role("edge"), Role("edge", 2), SHARED, SHARED, *self.setting.feature_roles)
        return self.setting.formula(self._operands, roles, self.edges)

    def _operands(self, operands: Any) -> ConvolutionOperands:
        _, rel_pos, hidden, row, _, *features = operands
        weights, start = [], 0
        for group in self.setting.plan.groups:
            shape = (group.num_paths, group.channels_in, hidden.shape[-1], group.channels_out)
            stop = start + math.prod(shape)
            weights.append(published_weight(group, row[start:stop].view(shape)))
            start = stop
        return ConvolutionOperands(rel_pos, features, hidden[0].unbind(), weights)


@dataclass(frozen=True, eq=False)
class FusedConvolutionBySource(Operation):
    """The same contracted by source node (``kernels/tfn_conv_by_source.py``): no radial weights, but T of each node on the way.

    Keeps node features, h and the weights.

    Operands: angles of the edges' frames, the edges by source; rel_pos [E, 3], of which only the gradient is made here; h
    [groups, E, K]; the weight blocks by input degree; the node features by degree. Results: messages by ascending degree, or y~.

    Attributes:
        setting: what it is.
        make: the kernel launches, from the angles.
        edges: by source.
    """

    setting: _Setting
    make: Callable[[Tensor], SourceLaunches]
    edges: Edges

    @property
    def constants(self) -> Sequence[Tensor]:
        """The edges."""
        return self.setting.graph.src, self.setting.graph.dst

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results."""
        angles, _, hidden, *tensors = operands
        launches, half = self.make(angles), len(tensors) // 2
        return launches.shared.rotate_outputs(launches.contract(tensors[half:], hidden, tensors[:half]))

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of rel_pos (where it needs one), of h, of the weight blocks and of the node features."""
        angles, rel_pos, hidden, *tensors = operands
        launches, half = self.make(angles), len(tensors) // 2
        gradient = launches.shared.align_gradients(gradients)
        found = launches.backward(tensors[half:], hidden, tensors[:half], gradient, rel_pos if wanted[1] else None)
        return None, found.rel_pos, found.hidden, *found.blocks, *found.features

    @property
    def formula(self) -> EdgeFormula:
        """The published one."""
        blocks = (SHARED,) * len(self.setting.plan.node_channels)
        roles = (Role("place", 1), Role("edge"), Role("edge", 1), *blocks, *self.setting.feature_roles)
        return self.setting.formula(self._operands, roles, self.edges)

    def _operands(self, operands: Any) -> ConvolutionOperands:
        _, rel_pos, hidden, *tensors = operands
        half, groups = len(tensors) // 2, self.setting.plan.groups
        aligned_weights_of_groups = aligned_weights_of_blocks(self.setting.plan, tensors[:half], hidden.shape[-1])
        weights = [published_weight(*of_group) for of_group in zip(groups, aligned_weights_of_groups, strict=True)]
        return ConvolutionOperands(rel_pos, tensors[half:], hidden.unbind(), weights)
