"""TFN convolution: the messages of all edges, or their sum at each destination.

Formula: :mod:`se3_fast.reference.tfn_conv`. Backends: ``dense`` (that module), ``torch`` (:mod:`se3_fast.aligned.tfn_conv`),
``triton`` (``kernels/tfn_conv.py``; where the gradient with respect to positions is wanted, as ``torch``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.aligned import tfn_conv as aligned
from se3_fast.aligned import work_tables
from se3_fast.fiber import Features
from se3_fast.graph import Graph
from se3_fast.ops.backend import selected_backend
from se3_fast.ops.edge_frames import EdgeGeometry
from se3_fast.plan import ConvolutionPlan
from se3_fast.reference import tfn_conv as reference
from se3_fast.so3 import axis_swap


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
        if selected_backend(hidden[0].device) == "triton" and not geometry.rel_pos.requires_grad:
            return _triton(plan, graph, geometry, nodes, edges, hidden, weights, pool)
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
    return selected_backend(geometry.rel_pos.device) == "dense" or geometry.has_differentiable_bases


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


def _triton(
    plan: ConvolutionPlan,
    graph: Graph,
    geometry: EdgeGeometry,
    nodes: Features,
    edges: Features,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
    pool: bool,
) -> Features:
    aligned_weights = [aligned.aligned_weight(group, weight).flatten() for group, weight in zip(plan.groups, weights, strict=True)]
    messages = FusedConvolution.apply(
        plan,
        graph,
        geometry.angles.to(torch.float64 if hidden[0].dtype == torch.float64 else torch.float32),
        pool,
        torch.stack(list(hidden)),
        torch.cat(aligned_weights).to(hidden[0].dtype),
        *nodes.values(),
        *edges.values(),
    )
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


class FusedConvolution(torch.autograd.Function):
    """The convolution by the Triton kernels (``kernels/tfn_conv.py``): radial weights generated on chip, forward and backward.

    Keeps aligned features x~ and h; under ``low_memory`` the layer makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plan: ConvolutionPlan,
        graph: Graph,
        angles: Tensor,
        pool: bool,
        hidden: Tensor,
        weights: Tensor,
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        """Messages by ascending degree.

        Args:
            ctx: autograd's context.
            plan: what is coupled.
            graph: N nodes, E edges.
            angles: [4, E] of the edges' frames.
            pool: sum over incoming edges.
            hidden: [groups, E, K].
            weights: the aligned weights of all groups in a row.
            *features: node features by degree, then edge features by degree.
        """
        launches = _Launches(plan, graph, angles, pool, hidden.dtype)
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
        return None, None, None, None, hidden_gradient, weight_gradient, *features


class _Launches:
    """The kernel launches of one convolution, with the tables and sizes that they share."""

    def __init__(self, plan: ConvolutionPlan, graph: Graph, angles: Tensor, pool: bool, dtype: torch.dtype) -> None:
        from se3_fast.kernels import edge_frames, tfn_conv

        self.kernels = tfn_conv
        self.plan, self.graph, self.angles, self.pool, self.dtype = plan, graph, angles, pool, dtype
        self.rows_in, self.rows_out = work_tables.input_rows(plan), work_tables.output_rows(plan)
        self.wigner_tables = {
            degree: edge_frames.wigner_table(axis_swap(degree)).to(angles)
            for degree in {degree for degree, _ in plan.node_channels + plan.channels_out}
        }

    def align_inputs(self, features: Sequence[Tensor]) -> Tensor:
        """x~, [rows, E], from node features and edge features."""
        aligned_features = self._empty(self.rows_in.count, self.graph.num_edges())
        remaining = iter(features)
        for degree, _ in self.plan.node_channels:
            self._align(next(remaining), self.graph.src, aligned_features, self.rows_in, degree, 0)
        for degree, _ in self.plan.edge_channels:
            first = dict(self.plan.node_channels)[degree]
            self._align(next(remaining), None, aligned_features, self.rows_in, degree, first)
        return aligned_features

    def align_gradients(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradient of y~, [rows, E], from those of the messages."""
        gradient = self._empty(self.rows_out.count, self.graph.num_edges())
        index = self.graph.dst if self.pool else None
        for (degree, _), grad in zip(self.plan.channels_out, grads, strict=True):
            self._align(grad, index, gradient, self.rows_out, degree, 0)
        return gradient

    def contract(self, aligned_features: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """y~, [rows, E]."""
        messages = self._empty(self.rows_out.count, self.graph.num_edges())
        self.kernels.contract(aligned_features, hidden, weights, self._contraction(hidden, False), False, messages)
        return messages

    def contract_transposed(self, gradient: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """The gradient of x~, [rows, E]."""
        result = self._empty(self.rows_in.count, self.graph.num_edges())
        transposed = self._transpose(weights, hidden.shape[2])
        self.kernels.contract(gradient, hidden, transposed, self._contraction(hidden, True), True, result)
        return result

    def radial_gradients(
        self, aligned_features: Tensor, gradient: Tensor, hidden: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of h and of the aligned weights."""
        width = hidden.shape[2]
        tables = [self.kernels.PairTable(*table) for table in work_tables.pair_tables(self.plan, width, hidden.device)]
        of_hidden = self.kernels.hidden_gradient(aligned_features, gradient, weights, tables, len(hidden), width)
        of_weights = self.kernels.weight_gradient(aligned_features, gradient, hidden, tables, len(weights))
        return of_hidden.to(self.dtype), of_weights.to(self.dtype)

    def rotate_outputs(self, messages: Tensor) -> list[Tensor]:
        """Messages by degree, per edge or summed over incoming edges."""
        outputs = []
        for degree, channels in self.plan.channels_out:
            outputs.append(self._rotate(messages, self.rows_out, degree, 0, channels, is_summed=self.pool, by_source=False))
        return outputs

    def rotate_input_gradients(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of the node features (summed over outgoing edges) and of the edge features, by degree."""
        results = []
        for degree, channels in self.plan.node_channels:
            results.append(self._rotate(gradient, self.rows_in, degree, 0, channels, is_summed=True, by_source=True))
        for degree, channels in self.plan.edge_channels:
            first = dict(self.plan.node_channels)[degree]
            results.append(self._rotate(gradient, self.rows_in, degree, first, channels, is_summed=False, by_source=False))
        return results

    def _align(
        self,
        features: Tensor,
        index: Tensor | None,
        into: Tensor,
        rows: work_tables.FeatureRows,
        degree: int,
        first_channel: int,
    ) -> None:
        start, stride = rows.starts[degree] + first_channel, dict(rows.channels)[degree]
        table = self.wigner_tables[degree]
        self.kernels.align(features.contiguous(), index, self.angles, table, into, start, stride)

    def _rotate(
        self,
        values: Tensor,
        rows: work_tables.FeatureRows,
        degree: int,
        first_channel: int,
        channels: int,
        is_summed: bool,
        by_source: bool,
    ) -> Tensor:
        start, stride = rows.starts[degree] + first_channel, dict(rows.channels)[degree]
        table = self.wigner_tables[degree]
        count = self.graph.num_nodes() if is_summed else self.graph.num_edges()
        output = self._empty(count, channels, 2 * degree + 1)
        if is_summed:
            order, offsets = self.graph.outgoing() if by_source else self.graph.incoming()
            self.kernels.rotate_sum(values, self.angles, table, order, offsets, output, start, stride)
        else:
            self.kernels.rotate(values, self.angles, table, output, start, stride)
        return output

    def _contraction(self, hidden: Tensor, is_transposed: bool) -> list[Any]:
        tables = work_tables.contraction_tables(self.plan, hidden.shape[2], is_transposed, hidden.device)
        return [self.kernels.ContractionTable(*table) for table in tables]

    def _transpose(self, weights: Tensor, width: int) -> Tensor:
        """The aligned weights with both channel axes exchanged, in a row."""
        parts, start = [], 0
        for group in self.plan.groups:
            size = group.num_paths * group.channels_in * width * group.channels_out
            block = weights[start : start + size].view(-1, group.channels_in, width, group.channels_out)
            parts.append(block.transpose(1, 3).flatten())
            start += size
        return torch.cat(parts)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self.dtype, device=self.angles.device)
