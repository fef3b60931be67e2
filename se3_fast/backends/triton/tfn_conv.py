"""The convolution by the Triton kernels (``kernels/tfn_conv.py``, ``kernels/tfn_conv_by_source.py``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype
from se3_fast.autograd.operation import Operation, Tensors, Wanted
from se3_fast.backends.operands import AlignedMessages, Convolution, FrameForm, PreparedRadial
from se3_fast.backends.protocol import Support
from se3_fast.backends.torch.second_derivatives import SHARED, ConvolutionOperands, EdgeFormula, Edges, Role, Setting
from se3_fast.backends.triton.aligned_weights import aligned_weights
from se3_fast.backends.triton.tfn_conv_by_edge import Launches, WithGradient
from se3_fast.backends.triton.tfn_conv_by_source import SourceLaunches, source_order
from se3_fast.contraction import (
    ContractionOrder,
    ConvolutionPlan,
    aligned_weights_of_blocks,
    blocks_by_degree,
    hidden_splits,
    is_by_source,
    is_less_time_by_source,
    published_weight,
)
from se3_fast.graph import Graph

FRAMES: FrameForm = "angles"
KEEPS_FRAMES = True

WIDTH = 32
"""The radial width that the kernels are made for."""


def support(is_compiled: bool, dtype: torch.dtype, width: int) -> Support:
    """One radial width."""
    return Support() if width == WIDTH else Support.no(f"the kernels are made for a radial width of {WIDTH}, not {width}")


def tfn_conv(call: Convolution) -> Sequence[Tensor]:
    """See :func:`se3_fast.ops.tfn_conv.tfn_conv`: messages by ascending degree."""
    return _fused(call, keeps_frames=False)[0]


def aligned_messages(call: Convolution) -> AlignedMessages:
    """The messages per edge, left in the frames of their edges."""
    (values,), edges = _fused(call, keeps_frames=True)
    return AlignedMessages(values, call.plan.channels_out, edges.angles, edges.graph)


def is_contracted_by_edge(plan: ConvolutionPlan, graph: Graph, width: int, dtype: torch.dtype, order: ContractionOrder) -> bool:
    """The order of contraction; ``width`` is that of h, ``dtype`` that of the features."""
    sizes = (graph.num_nodes(), graph.num_edges(), width, dtype)
    return not is_by_source(order, plan, lambda: is_less_time_by_source(plan, *sizes))


def hidden_gradient_parts(plan: ConvolutionPlan, num_edges: int) -> int:
    """In how many parts the gradient of h of a convolution comes; 1 where there will be none."""
    return hidden_splits(num_edges, len(plan.groups)) if torch.is_grad_enabled() else 1


class AlignedEdges(NamedTuple):
    """The frames of a graph's edges, [4, E], and that graph."""

    angles: Tensor
    graph: Graph


def _fused(call: Convolution, keeps_frames: bool) -> tuple[tuple[Tensor, ...], AlignedEdges]:
    """The messages by degree, or y~ alone; and the edges in the order that y~ has them."""
    dtype, width, rel_pos = call.hidden[0].dtype, call.hidden[0].shape[-1], call.geometry.rel_pos
    angles_dtype = accumulation_dtype(dtype)
    arguments: dict[str, Any] = {"pool": call.pool, "dtype": dtype, "keeps_frames": keeps_frames}
    setting = Setting(call.plan, call.graph, call.geometry.max_degree, call.pool, dtype, keeps_frames)
    if call.prepared is None and not is_contracted_by_edge(call.plan, call.graph, width, dtype, call.order):
        order = source_order(call.graph)
        angles = call.geometry.angles_by(order.edges, angles_dtype)
        make_by_source = partial(SourceLaunches, call.plan, order, **arguments)
        blocks = [block.to(dtype) for block in blocks_by_degree(call.plan, call.weights)]
        convolution = FusedConvolutionBySource(setting, make_by_source, Edges.of(order.graph, order.edges))
        tensors = (in_one_tensor(call.hidden), *blocks, *call.node_features.values())
        return convolution.apply(angles, rel_pos, *tensors), AlignedEdges(angles, order.graph)
    angles = call.geometry.angles.to(angles_dtype)
    make = partial(Launches, call.plan, call.graph, **arguments)
    prepared = call.prepared or _prepared(call)
    features = (*call.node_features.values(), *call.edge_features.values())
    convolution_by_edge = FusedConvolution(setting, make, Edges.of(call.graph))
    results = convolution_by_edge.apply(angles, rel_pos, prepared.hidden, *prepared.weights, *features)
    return results, AlignedEdges(angles, call.graph)


def _prepared(call: Convolution) -> PreparedRadial:
    """What the kernels read of h and the weights of one convolution."""
    hidden = in_one_tensor(call.hidden)
    parts = hidden_gradient_parts(call.plan, hidden.shape[1])
    (weights,) = aligned_weights([call.plan], [call.weights], hidden.dtype)
    return PreparedRadial(hidden.expand(parts, *hidden.shape), weights)


def in_one_tensor(hidden: Sequence[Tensor] | Tensor) -> Tensor:
    """h of all groups, [groups, E, K] contiguous."""
    return hidden.contiguous() if isinstance(hidden, Tensor) else torch.stack(list(hidden))


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

    setting: Setting
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
            outputs = WithGradient(messages, gradient, launches.rows_out)
            inputs = WithGradient(aligned_features, feature_gradient, launches.rows_in)
            of_positions = launches.position_gradient(rel_pos, outputs, inputs)
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

    setting: Setting
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
