"""TFN convolution: the messages of all edges, or their sum at each destination.

Formula: :mod:`se3_fast.reference.tfn_conv`. Backends: ``dense`` (that module), ``torch`` (:mod:`se3_fast.aligned.tfn_conv`),
``triton`` (``kernels/tfn_conv.py``, ``kernels/tfn_conv_by_source.py``), ``cuda`` (``csrc/tfn_conv.cu``; float64 as ``torch``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.aligned import tfn_conv as aligned
from se3_fast.fiber import Features
from se3_fast.graph import EdgeOrder, Graph
from se3_fast.ops.aligned_weights import AlignedWeights, aligned_weights
from se3_fast.ops.backend import backend, selected_backend
from se3_fast.ops.edge_frames import EdgeGeometry
from se3_fast.ops.opaque import OpaqueOperation
from se3_fast.ops.second_derivatives import TwiceDifferentiable, convolution_gradients
from se3_fast.plan import ConvolutionPlan
from se3_fast.reference import tfn_conv as reference

if TYPE_CHECKING:
    from se3_fast.fused.edge_attention import AlignedMessages
    from se3_fast.fused.tfn_conv import Launches
    from se3_fast.fused.tfn_conv_by_source import SourceLaunches
    from se3_fast.native.tfn_conv import NativeConvolution

KERNEL_RADIAL_WIDTH = 32
"""The radial width that ``kernels/`` and ``csrc/tfn_conv.cu`` are made for; others run as ``torch``."""


def tfn_conv(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    node_features: Features,
    edge_features: Features,
    hidden: Sequence[Tensor] | Tensor,
    weights: Sequence[Tensor],
    pool: bool,
    make_hidden: Callable[[], Tensor] | None = None,
    prepared: PreparedRadial | None = None,
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
        make_hidden: makes the values of ``hidden`` again, [groups, E, K]; a backend that keeps its operands then keeps none of it.
        prepared: h and the weights as the kernels read them, where :func:`keeps_frames`; ``hidden`` is then a constant.

    Returns:
        ``{d: [N or E, C_d, 2d+1]}`` in the compute dtype: that of the operands, or of autocast.

    Raises:
        ValueError: if the geometry was made for fewer degrees than the plan has.
    """
    _check_degrees(plan, geometry)
    device_type = hidden[0].device.type
    call = _Call(plan, graph, geometry, node_features, edge_features, hidden, weights, pool, make_hidden, prepared)
    call = call.in_compute_dtype(device_type)
    if torch.compiler.is_compiling() and not _runs_dense(geometry):
        return _compiled(_with_scaled_hidden(call))
    with torch.autocast(device_type, enabled=False):
        if _runs_dense(geometry):
            return _dense(call)
        messages = _in_frames(_with_scaled_hidden(call))
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
        contractions: of each group, see :func:`se3_fast.reference.tfn_conv.messages`.
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
    from se3_fast.fused.tfn_conv import hidden_splits

    return min(hidden_splits(num_edges, len(plan.groups)) for plan in plans) if torch.is_grad_enabled() else 1


def is_contracted_by_edge(plan: ConvolutionPlan, graph: Graph, width: int, dtype: torch.dtype) -> bool:
    """Whether backend ``triton`` contracts by edge; ``width`` is that of h, ``dtype`` that of the features."""
    from se3_fast.fused import tfn_conv_by_source as by_source

    return not by_source.is_by_source_faster(plan, graph.num_nodes(), graph.num_edges(), width, dtype)


def keeps_frames(geometry: EdgeGeometry) -> bool:
    """Whether :func:`aligned_messages` serves a geometry: on backend ``triton``, where every edge has a frame and is constant."""
    if torch.compiler.is_compiling() or selected_backend(geometry.rel_pos.device) != "triton" or _runs_dense(geometry):
        return False
    if geometry.by_formula is not None:
        return False
    is_differentiated = geometry.rel_pos.requires_grad and torch.is_grad_enabled()
    return not is_differentiated and len(geometry.zero_length_edges) == 0


def aligned_messages(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    node_features: Features,
    edge_features: Features,
    hidden: Sequence[Tensor] | Tensor,
    weights: Sequence[Tensor],
    prepared: PreparedRadial | None = None,
) -> AlignedMessages:
    """The messages of :func:`tfn_conv` left in the frames of their edges, for a geometry that :func:`keeps_frames`.

    Arguments and errors are those of :func:`tfn_conv`.
    """
    from se3_fast.fused.edge_attention import AlignedMessages

    _check_degrees(plan, geometry)
    device_type = hidden[0].device.type
    call = _Call(plan, graph, geometry, node_features, edge_features, hidden, weights, False, prepared=prepared)
    call = _with_scaled_hidden(call.in_compute_dtype(device_type))
    with torch.autocast(device_type, enabled=False):
        (values,), launches = _fused(call, keeps_frames=True)
    return AlignedMessages(values, plan.channels_out, launches.angles, launches.graph)


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
        _frames(geometry, selected_backend(graph.device))


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
    make_hidden: Callable[[], Tensor] | None = None
    prepared: PreparedRadial | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.hidden[0].dtype

    def in_compute_dtype(self, device_type: str) -> _Call:
        """With what the plan reads of the features, and h, in the dtype of the operands or of autocast."""
        dtype = _compute_dtype(device_type, self.hidden[0])
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
    make_hidden = None if call.make_hidden is None else partial(_scaled_again, call.make_hidden, scales.detach())
    geometry = call.geometry.without_factor()
    return call._replace(geometry=geometry, hidden=_scaled(call.hidden, scales), make_hidden=make_hidden)


def _scaled_again(make_hidden: Callable[[], Tensor], scales: Tensor) -> Tensor:
    return _scaled(make_hidden(), scales)


def _scaled(hidden: Any, scales: Tensor) -> Any:
    """h of all groups, in one tensor or apart, times [groups, E, 1], in its dtype."""
    if isinstance(hidden, Tensor):
        return (hidden * scales).to(hidden.dtype)
    return [(values * scale).to(values.dtype) for values, scale in zip(hidden, scales, strict=True)]


def _with_edges_by_formula(result: Features, call: _Call) -> Features:
    """Add the messages of the edges of which the tensors given are needed; what has no basis is in ``result`` already."""
    chosen = call.geometry.edges_by_formula
    hidden = [
        torch.zeros_like(values[chosen]) if group.is_basis_free else values[chosen]
        for group, values in zip(call.plan.groups, call.hidden, strict=True)
    ]
    return _with_messages_of(result, call, chosen, call.geometry.given_bases_of(chosen), hidden)


def _in_frames(call: _Call) -> Features:
    if call.geometry.rel_pos.requires_grad and torch.is_grad_enabled():
        return _twice_differentiable(call)
    return _messages(call)


def _messages(call: _Call) -> Features:
    backend_name = selected_backend(call.hidden[0].device)
    has_kernels = call.hidden[0].shape[-1] == KERNEL_RADIAL_WIDTH
    if backend_name == "triton" and has_kernels:
        messages = _triton(call)
    elif backend_name == "cuda" and call.dtype != torch.float64 and has_kernels:
        messages = _cuda(call)
    elif backend_name == "cpp":
        messages = _cpp(call)
    else:
        messages = _aligned(call)
    result = {str(degree): message for (degree, _), message in zip(call.plan.channels_out, messages, strict=True)}
    return _with_zero_length_edges(result, call) if len(call.geometry.zero_length_edges) else result


def _dense(call: _Call) -> Features:
    features = reference.gather_features(call.nodes, call.edges, call.graph.src)
    weights = [weight.to(call.dtype) for weight in call.weights]
    messages = reference.tfn_conv(call.plan, call.geometry.basis, features, list(call.hidden), weights)
    return reference.sum_over_incoming(messages, call.graph.dst, call.graph.num_nodes()) if call.pool else messages


def _aligned(call: _Call) -> tuple[Tensor, ...]:
    num_sources = len(call.graph.sources_by_out_degree()[1])
    is_by_source = aligned.is_by_source_faster(call.plan, call.graph.num_edges(), num_sources)
    wigner = call.geometry.wigner_as(call.dtype)
    convolution = aligned.Problem(call.plan, call.graph, wigner, is_by_source, call.pool)
    tensors = (*call.nodes.values(), *call.edges.values(), *call.hidden, *call.weights)
    return OperandConvolution.apply(convolution, None, call.geometry.rel_pos, *tensors)


def _triton(call: _Call) -> tuple[Tensor, ...]:
    return _fused(call, keeps_frames=False)[0]


def _fused(call: _Call, keeps_frames: bool) -> tuple[tuple[Tensor, ...], Launches]:
    """By the Triton kernels: the messages by degree, or y~ alone; and the launches with the edges in the order that y~ has them."""
    from se3_fast.fused import tfn_conv_by_source as by_source
    from se3_fast.fused.tfn_conv import Launches

    angles = call.geometry.angles.to(torch.float64 if call.dtype == torch.float64 else torch.float32)
    arguments: dict[str, Any] = {"pool": call.pool, "dtype": call.dtype, "keeps_frames": keeps_frames}
    rel_pos = call.geometry.rel_pos
    if call.prepared is None and not is_contracted_by_edge(call.plan, call.graph, call.hidden[0].shape[-1], call.dtype):
        hidden = _in_one_tensor(call.hidden)
        blocks = [block.to(call.dtype) for block in by_source.weight_blocks(call.plan, call.weights)]
        by_source_launches = by_source.SourceLaunches(call.plan, call.graph, angles, **arguments)
        tensors = (rel_pos, hidden, *blocks, *call.nodes.values())
        return FusedConvolutionBySource.apply(by_source_launches, *tensors), by_source_launches.shared
    launches = Launches(call.plan, call.graph, angles, **arguments)
    prepared = call.prepared or _prepared(call)
    features = (*call.nodes.values(), *call.edges.values())
    return FusedConvolution.apply(launches, rel_pos, prepared.hidden, *prepared.weights, *features), launches


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
    from se3_fast.native import tfn_conv_by_source as by_source
    from se3_fast.native.tfn_conv import NativeConvolution

    is_by_source = by_source.is_by_source_faster(call.plan, call.graph, call.hidden[0].shape[1])
    make = by_source.NativeConvolutionBySource if is_by_source else NativeConvolution
    dtype = torch.float64 if call.dtype == torch.float64 else torch.float32
    convolution = make(call.plan, call.graph, call.geometry.wigner_as(dtype), call.pool)
    tensors = (*call.nodes.values(), *call.edges.values(), *call.hidden, *call.weights)
    operands = (tensor.to(dtype).contiguous() for tensor in tensors)
    messages = OperandConvolution.apply(convolution, call.make_hidden, call.geometry.rel_pos, *operands)
    return tuple(message.to(call.dtype) for message in messages)


def _cuda(call: _Call) -> tuple[Tensor, ...]:
    """By the kernels for compute capability 7.x, in float16 or float32: these devices have no bfloat16."""
    from se3_fast.cuda.tfn_conv import CudaLaunches

    dtype = torch.float16 if call.dtype == torch.float16 else torch.float32
    launches = CudaLaunches(call.plan, call.graph, call.geometry.angles.float(), call.pool, dtype)
    groups = zip(call.plan.groups, call.weights, strict=True)
    weights = torch.cat([aligned.aligned_weight(group, weight).flatten() for group, weight in groups])
    hidden, weights = _in_one_tensor(call.hidden).to(dtype)[None], weights.to(dtype)
    features = (tensor.to(dtype) for tensor in (*call.nodes.values(), *call.edges.values()))
    messages = FusedConvolution.apply(launches, call.geometry.rel_pos, hidden, weights, None, *features)
    return tuple(message.to(call.dtype) for message in messages)


def _twice_differentiable(call: _Call) -> Features:
    operands = [call.geometry.rel_pos, *call.nodes.values(), *call.edges.values(), *call.hidden, *call.weights]

    def evaluate(leaves: Sequence[Tensor]) -> list[Tensor]:
        return list(_messages(_with_operands(call, leaves)).values())

    differentiate = partial(convolution_gradients, call.plan, call.graph, call.geometry.max_degree, call.pool)
    messages = TwiceDifferentiable.apply(evaluate, differentiate, *operands)
    return {str(degree): message for (degree, _), message in zip(call.plan.channels_out, messages, strict=True)}


def _with_operands(call: _Call, operands: Sequence[Tensor]) -> _Call:
    remaining = iter(operands)
    return call._replace(
        geometry=call.geometry.with_positions(next(remaining)),
        nodes={key: next(remaining) for key in call.nodes},
        edges={key: next(remaining) for key in call.edges},
        hidden=[next(remaining) for _ in call.plan.groups],
        weights=[next(remaining) for _ in call.plan.groups],
        make_hidden=None,
    )


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
    description = _description(call.plan, call.pool, backend_name, call.geometry.max_degree)
    operands = [
        call.graph.src,
        call.graph.dst,
        *call.graph.incoming(),
        *call.graph.outgoing(),
        call.geometry.rel_pos,
        _frames(call.geometry, backend_name),
        *call.nodes.values(),
        *call.edges.values(),
        *call.hidden,
        *call.weights,
    ]
    messages = _opaque_convolution(description, operands)
    return {str(degree): message for (degree, _), message in zip(call.plan.channels_out, messages, strict=True)}


def _frames(geometry: EdgeGeometry, backend_name: str) -> Tensor:
    """What a backend reads of the geometry."""
    return getattr(geometry, _frames_name(backend_name))


def _frames_name(backend_name: str) -> str:
    return "angles" if backend_name in ("triton", "cuda") else "wigner"


@torch.compiler.assume_constant_result
def _description(plan: ConvolutionPlan, pool: bool, backend_name: str, max_degree: int) -> str:
    return json.dumps([plan.to_json(), pool, backend_name, max_degree])


def _opaque_run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The messages by ascending degree, from what :func:`_compiled` packed."""
    plan_json, pool, backend_name, max_degree = json.loads(description)
    plan = ConvolutionPlan.from_json(plan_json)
    src, dst, in_order, in_offsets, out_order, out_offsets, rel_pos, frames, *rest = operands
    graph = Graph.from_orders(src, dst, EdgeOrder(in_order, in_offsets), EdgeOrder(out_order, out_offsets))
    has_angles = _frames_name(backend_name) == "angles"
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
    )
    with backend(backend_name), torch.autocast(src.device.type, enabled=False):
        return list(_messages(call).values())


def _opaque_shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    plan_json, pool, _, _ = json.loads(description)
    plan = ConvolutionPlan.from_json(plan_json)
    src, in_offsets, hidden = operands[0], operands[3], operands[-2 * len(plan.groups)]
    count = in_offsets.shape[0] - 1 if pool else src.shape[0]
    return [hidden.new_empty(count, channels, 2 * degree + 1) for degree, channels in plan.channels_out]


_opaque_convolution = OpaqueOperation("tfn_conv", _opaque_run, _opaque_shapes)


def _compute_dtype(device_type: str, example: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else example.dtype


class OperandConvolution(torch.autograd.Function):
    """The convolution of backends that keep its operands only: node features, edge features, h and the weights.

    In plain PyTorch (:class:`se3_fast.aligned.tfn_conv.Problem`) or by the compiled CPU operations
    (:class:`se3_fast.native.tfn_conv.NativeConvolution`); everything else is made again in the backward pass, written by hand; so
    is h, the largest of them, where the call brings a way to make it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        convolution: aligned.Problem | NativeConvolution,
        make_hidden: Callable[[], Tensor] | None,
        rel_pos: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Messages by ascending degree, from the tensors that ``convolution`` takes."""
        ctx.convolution, ctx.make_hidden = convolution, make_hidden
        features, hidden, weights = _parted(tensors, len(convolution.plan.groups))
        ctx.save_for_backward(rel_pos, *features, *(hidden if make_hidden is None else ()), *weights)
        return tuple(convolution.forward(tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of rel_pos (where it needs one) and of all tensors."""
        rel_pos, *tensors = ctx.saved_tensors
        num_groups = len(ctx.convolution.plan.groups)
        if ctx.make_hidden is not None:
            features, weights = tensors[:-num_groups], tensors[-num_groups:]
            tensors = [*features, *(values.to(weights[0].dtype).contiguous() for values in ctx.make_hidden()), *weights]
        needs_weights = any(ctx.needs_input_grad[-num_groups:])
        differentiated = rel_pos if ctx.needs_input_grad[2] else None
        gradients, rel_pos_gradient = ctx.convolution.backward(tensors, grads, differentiated, needs_weights)
        return None, None, rel_pos_gradient, *gradients


def _parted(tensors: Sequence[Tensor], num_groups: int) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Features, h and weights."""
    end = len(tensors) - num_groups
    return tensors[: end - num_groups], tensors[end - num_groups : end], tensors[end:]


class FusedConvolution(torch.autograd.Function):
    """The convolution by the Triton kernels (``kernels/tfn_conv.py``): radial weights generated on chip, forward and backward.

    Keeps aligned features x~ and h; under ``low_memory`` the layer makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        launches: Launches,
        rel_pos: Tensor,
        hidden: Tensor,
        weights: Tensor,
        transposed: Tensor | None,
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        """Messages by ascending degree.

        Args:
            ctx: autograd's context.
            launches: the kernel launches of this convolution.
            rel_pos: [E, 3]; only its gradient is made here.
            hidden: [S, groups, E, K], the same S times over; its gradient comes in S parts.
            weights: the aligned weights of all groups in a row.
            transposed: the same in the order that the transposed contraction reads, where it does not make that order itself.
            *features: node features by degree, then edge features by degree.
        """
        aligned_features = launches.align_inputs(features)
        messages = launches.contract(aligned_features, hidden[0], weights)
        ctx.launches = launches
        ctx.save_for_backward(rel_pos, hidden, weights, transposed, aligned_features)
        return tuple(launches.rotate_outputs(messages))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of rel_pos (where it needs one), of h, of the aligned weights and of all features."""
        rel_pos, hidden_parts, weights, transposed, aligned_features = ctx.saved_tensors
        launches, hidden = ctx.launches, hidden_parts[0]
        gradient = launches.align_gradients(grads)
        of_radial = launches.radial_gradients(aligned_features, gradient, hidden, weights, len(hidden_parts))
        with_positions, of_features = ctx.needs_input_grad[1], ctx.needs_input_grad[5:]
        if not with_positions and not any(of_features):
            return None, None, *of_radial, None, *[None] * len(of_features)
        feature_gradient = launches.contract_transposed(gradient, hidden, weights, transposed)
        rel_pos_gradient = None
        if with_positions:
            messages = launches.contract(aligned_features, hidden, weights)
            rel_pos_gradient = launches.position_gradient(rel_pos, gradient, messages, feature_gradient, aligned_features)
        features = launches.rotate_input_gradients(feature_gradient)
        return None, rel_pos_gradient, *of_radial, None, *features


class FusedConvolutionBySource(torch.autograd.Function):
    """The same contracted by source node (``kernels/tfn_conv_by_source.py``): no radial weights, but T of each node on the way.

    Keeps node features, h and the weights.
    """

    @staticmethod
    def forward(ctx: Any, launches: SourceLaunches, rel_pos: Tensor, hidden: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Messages by ascending degree.

        Args:
            ctx: autograd's context.
            launches: the kernel launches of this convolution.
            rel_pos: [E, 3]; only its gradient is made here.
            hidden: [groups, E, K].
            *tensors: the weight blocks by input degree, then the node features by degree.
        """
        half = len(tensors) // 2
        messages = launches.contract(tensors[half:], hidden, tensors[:half])
        ctx.launches = launches
        ctx.save_for_backward(rel_pos, hidden, *tensors)
        return tuple(launches.shared.rotate_outputs(messages))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of rel_pos (where it needs one), of h, of the weight blocks and of the node features."""
        rel_pos, hidden, *tensors = ctx.saved_tensors
        half = len(tensors) // 2
        gradient = ctx.launches.shared.align_gradients(grads)
        differentiated = rel_pos if ctx.needs_input_grad[1] else None
        gradients = ctx.launches.backward(tensors[half:], hidden, tensors[:half], gradient, differentiated)
        return None, gradients.rel_pos, gradients.hidden, *gradients.blocks, *gradients.features
