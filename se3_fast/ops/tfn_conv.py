"""TFN convolution: the messages of all edges, or their sum at each destination.

Formula: :mod:`se3_fast.reference.tfn_conv`. Backends: ``dense`` (that module), ``torch`` (:mod:`se3_fast.aligned.tfn_conv`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    nodes = {str(degree): node_features[str(degree)].to(dtype) for degree, _ in plan.node_channels}
    edges = {str(degree): edge_features[str(degree)].to(dtype) for degree, _ in plan.edge_channels}
    hidden = [values.to(dtype) for values in hidden]
    with torch.autocast(device_type, enabled=False):
        if _runs_dense(geometry):
            return _dense(plan, graph, geometry, nodes, edges, hidden, weights, pool)
        return _aligned(plan, graph, geometry, nodes, edges, hidden, weights, pool)


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
    return selected_backend() == "dense" or geometry.has_differentiable_bases


def _dense(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    nodes: Features,
    edges: Features,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    pool: bool,
) -> Features:
    features = reference.gather_features(nodes, edges, graph.src)
    cast = [weight.to(hidden[0].dtype) for weight in weights]
    messages = reference.tfn_conv(plan, geometry.basis, features, hidden, cast)
    return reference.sum_over_incoming(messages, graph.dst, graph.num_nodes()) if pool else messages


def _aligned(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    nodes: Features,
    edges: Features,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    pool: bool,
) -> Features:
    dtype = hidden[0].dtype
    is_by_source = aligned.is_by_source_faster(plan, graph.num_edges(), len(graph.sources_by_out_degree()[1]))
    problem = aligned.Problem(plan, graph, geometry.wigner_as(dtype), is_by_source, pool)
    messages = AlignedConvolution.apply(problem, geometry.rel_pos, *nodes.values(), *edges.values(), *hidden, *weights)
    result = {str(degree): message for (degree, _), message in zip(plan.channels_out, messages, strict=True)}
    if len(geometry.zero_length_edges):
        return _with_zero_length_edges(result, plan, graph, geometry, nodes, edges, hidden, weights, pool)
    return result


def _with_zero_length_edges(
    result: Features,
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    nodes: Features,
    edges: Features,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    pool: bool,
) -> Features:
    """Add the messages of edges without direction, which have no frame: only their J = 0 terms, by the dense formula."""
    chosen = geometry.zero_length_edges
    part = Graph(graph.src[chosen], graph.dst[chosen], graph.num_nodes())
    chosen_edges = {key: tensor[chosen] for key, tensor in edges.items()}
    chosen_hidden = [values[chosen] for values in hidden]
    directionless = EdgeGeometry(geometry.rel_pos[chosen].detach(), geometry.max_degree)
    messages = _dense(plan, part, directionless, nodes, chosen_edges, chosen_hidden, weights, pool)
    if pool:
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
