"""TFN convolution: the messages of all edges, or their sum at each destination.

Formula: :mod:`se3_fast.reference.tfn_conv`. Backends: ``dense`` (that module), ``torch`` (:mod:`se3_fast.aligned.tfn_conv`),
``triton`` (``kernels/tfn_conv.py``; where the gradient with respect to positions is wanted, as ``torch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.aligned import tfn_conv as aligned
from se3_fast.fiber import Features
from se3_fast.graph import Graph
from se3_fast.ops.backend import selected_backend
from se3_fast.ops.edge_frames import EdgeGeometry
from se3_fast.plan import ConvolutionPlan
from se3_fast.reference import tfn_conv as reference

if TYPE_CHECKING:
    from se3_fast.fused.tfn_conv import Launches


def tfn_conv(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    node_features: Features,
    edge_features: Features,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    pool: bool,
) -> Features:
    """Messages of a TFN convolution.

    Args:
        plan: which degrees and channels are coupled by which radial group.
        graph: N nodes, E edges.
        geometry: directions of the edges.
        node_features: ``{d: [N, C_d, 2d+1]}`` for the degrees of ``plan.node_channels``.
        edge_features: ``{d: [E, C_d, 2d+1]}`` for the degrees of ``plan.edge_channels`` (others are ignored).
        hidden: output of the hidden radial layers for each group, [E, K].
        weights: last radial weight of each group, [C_out * C_in * F, K], in the published row order.
        pool: sum over the incoming edges of each node; nodes without any get 0.

    Returns:
        ``{d: [N or E, C_d, 2d+1]}`` in the compute dtype: that of the operands, or of autocast.

    Raises:
        ValueError: if the geometry was made for fewer degrees than the plan has.
    """
    if geometry.max_degree < plan.max_degree:
        raise ValueError(
            f"geometry: expected one for degrees up to {plan.max_degree}, got one for degrees up to {geometry.max_degree}"
        )
    device_type = hidden[0].device.type
    dtype = _compute_dtype(device_type, hidden[0])
    call = _Call(
        plan,
        graph,
        geometry,
        {str(degree): node_features[str(degree)].to(dtype) for degree, _ in plan.node_channels},
        {str(degree): edge_features[str(degree)].to(dtype) for degree, _ in plan.edge_channels},
        [values.to(dtype) for values in hidden],
        weights,
        pool,
    )
    with torch.autocast(device_type, enabled=False):
        if _runs_dense(geometry):
            return _dense(call)
        is_triton = selected_backend(hidden[0].device) == "triton" and not geometry.rel_pos.requires_grad
        messages = _triton(call) if is_triton else _aligned(call)
        result = {str(degree): message for (degree, _), message in zip(plan.channels_out, messages, strict=True)}
        return _with_zero_length_edges(result, call) if len(geometry.zero_length_edges) else result


def prepare_geometry(plan: ConvolutionPlan, geometry: EdgeGeometry) -> None:
    """Make what a convolution will read of the geometry, so that all calls with it (also a recomputation) share it.

    Args:
        plan: what is coupled.
        geometry: directions of the edges.
    """
    if _runs_dense(geometry):
        for key in filter(None, map(reference.basis_key, plan.groups)):
            geometry.basis(key)


def _runs_dense(geometry: EdgeGeometry) -> bool:
    return selected_backend(geometry.rel_pos.device) == "dense" or geometry.has_differentiable_bases


class _Call(NamedTuple):
    """The arguments of :func:`tfn_conv`, in the compute dtype but for the weights."""

    plan: ConvolutionPlan
    graph: Graph
    geometry: EdgeGeometry
    nodes: Features
    edges: Features
    hidden: list[Tensor]
    weights: Sequence[Tensor]
    pool: bool

    @property
    def dtype(self) -> torch.dtype:
        return self.hidden[0].dtype


def _dense(call: _Call) -> Features:
    features = reference.gather_features(call.nodes, call.edges, call.graph.src)
    weights = [weight.to(call.dtype) for weight in call.weights]
    messages = reference.tfn_conv(call.plan, call.geometry.basis, features, call.hidden, weights)
    return reference.sum_over_incoming(messages, call.graph.dst, call.graph.num_nodes()) if call.pool else messages


def _aligned(call: _Call) -> tuple[Tensor, ...]:
    num_sources = len(call.graph.sources_by_out_degree()[1])
    is_by_source = aligned.is_by_source_faster(call.plan, call.graph.num_edges(), num_sources)
    wigner = call.geometry.wigner_as(call.dtype)
    problem = aligned.Problem(call.plan, call.graph, wigner, is_by_source, call.pool)
    tensors = (*call.nodes.values(), *call.edges.values(), *call.hidden, *call.weights)
    return AlignedConvolution.apply(problem, call.geometry.rel_pos, *tensors)


def _triton(call: _Call) -> tuple[Tensor, ...]:
    from se3_fast.fused.tfn_conv import Launches

    angles = call.geometry.angles.to(torch.float64 if call.dtype == torch.float64 else torch.float32)
    launches = Launches(call.plan, call.graph, angles, call.pool, call.dtype)
    groups = zip(call.plan.groups, call.weights, strict=True)
    weights = torch.cat([aligned.aligned_weight(group, weight).flatten() for group, weight in groups]).to(call.dtype)
    return FusedConvolution.apply(launches, torch.stack(call.hidden), weights, *call.nodes.values(), *call.edges.values())


def _with_zero_length_edges(result: Features, call: _Call) -> Features:
    """Add the messages of edges without direction, which have no frame: only their J = 0 terms, by the dense formula."""
    chosen = call.geometry.zero_length_edges
    part = call._replace(
        graph=Graph(call.graph.src[chosen], call.graph.dst[chosen], call.graph.num_nodes()),
        geometry=EdgeGeometry(call.geometry.rel_pos[chosen].detach(), call.geometry.max_degree),
        edges={key: tensor[chosen] for key, tensor in call.edges.items()},
        hidden=[values[chosen] for values in call.hidden],
    )
    messages = _dense(part)
    if call.pool:
        return {key: tensor + messages[key] for key, tensor in result.items()}
    return {key: tensor.index_add(0, chosen, messages[key]) for key, tensor in result.items()}


def _compute_dtype(device_type: str, example: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else example.dtype


class AlignedConvolution(torch.autograd.Function):
    """The convolution in edge-aligned frames, with its backward written by hand.

    Keeps node features, edge features, h and the weights; recomputes everything else.
    """

    @staticmethod
    def forward(ctx: Any, problem: aligned.Problem, rel_pos: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Messages by ascending degree, from the tensors of the problem's operands."""
        ctx.problem = problem
        ctx.save_for_backward(rel_pos, *tensors)
        return tuple(aligned.forward(problem, problem.operands(tensors)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of rel_pos (where it needs one) and of all operands."""
        rel_pos, *tensors = ctx.saved_tensors
        differentiated = rel_pos if ctx.needs_input_grad[1] else None
        rel_pos_gradient, gradients = aligned.backward(ctx.problem, ctx.problem.operands(tensors), differentiated, list(grads))
        return None, rel_pos_gradient, *gradients


class FusedConvolution(torch.autograd.Function):
    """The convolution by the Triton kernels (``kernels/tfn_conv.py``): radial weights generated on chip, forward and backward.

    Keeps aligned features x~ and h; under ``low_memory`` the layer makes them again.
    """

    @staticmethod
    def forward(ctx: Any, launches: Launches, hidden: Tensor, weights: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """Messages by ascending degree.

        Args:
            ctx: autograd's context.
            launches: the kernel launches of this convolution.
            hidden: [groups, E, K].
            weights: the aligned weights of all groups in a row.
            *features: node features by degree, then edge features by degree.
        """
        aligned_features = launches.align_inputs(features)
        messages = launches.contract(aligned_features, hidden, weights)
        ctx.launches = launches
        ctx.save_for_backward(hidden, weights, aligned_features)
        return tuple(launches.rotate_outputs(messages))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of h, of the aligned weights and of all features."""
        hidden, weights, aligned_features = ctx.saved_tensors
        launches = ctx.launches
        gradient = launches.align_gradients(grads)
        hidden_gradient, weight_gradient = launches.radial_gradients(aligned_features, gradient, hidden, weights)
        feature_gradient = launches.contract_transposed(gradient, hidden, weights)
        features = launches.rotate_input_gradients(feature_gradient)
        return None, hidden_gradient, weight_gradient, *features
