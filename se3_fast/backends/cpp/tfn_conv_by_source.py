"""From plans and graphs to the C++ convolution by source (``csrc/tfn_conv_by_source.cpp``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.backends.cpp.tfn_conv import NativeConvolution
from se3_fast.backends.torch.tfn_conv import torque_to_gradient
from se3_fast.contraction import ConvolutionPlan, RadialGroup
from se3_fast.graph import Graph
from se3_fast.so3 import alignment_map, generators


class NativeConvolutionBySource(NativeConvolution):
    """The calls of one convolution by source; without edge features of degree > 0."""

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Messages by ascending degree, from the tensors of :meth:`NativeConvolution.forward`."""
        return torch.ops.se3_fast_cpp.tfn_conv_by_source(*self._arguments(tensors))

    def _gradients(
        self, tensors: Sequence[Tensor], of_messages: list[Tensor], rel_pos: Tensor | None, with_weights: bool
    ) -> list[Tensor]:
        arguments = (*self._arguments(tensors), with_weights, rel_pos is not None)
        found = torch.ops.se3_fast_cpp.tfn_conv_by_source_backward(of_messages, *arguments)
        if rel_pos is None:
            return found
        *gradients, torque = found
        return [*gradients, torque_to_gradient(torque, rel_pos)]

    def _arguments(self, tensors: Sequence[Tensor]) -> tuple[object, ...]:
        nodes, _, hidden, weights = self._split(tensors)
        return nodes, hidden, weights, self.wigner, self.graph.dst, *self.graph.outgoing(), *describe(self.plan), self.pool


def is_by_source_faster(plan: ConvolutionPlan, graph: Graph, width: int) -> bool:
    """Choose the contraction order from the multiply-adds of both (DESIGN 1.3).

    Edge features of degree > 0 belong to edges, so they are contracted by edge.

    Args:
        plan: what is coupled.
        graph: its edges.
        width: the radial width K.
    """
    if plan.edge_channels:
        return False
    by_edge = per_source = per_edge = 0
    for group in plan.groups:
        by_edge += group.num_paths * group.channels_in * group.channels_out * width
        for pair in group.pairs:
            columns = (2 * pair.degree_in + 1) * (pair.stop - pair.start) * group.channels_out * width
            per_source += group.channels_in * columns
            per_edge += columns
    num_sources = len(graph.sources_by_out_degree()[1])
    return num_sources * per_source + graph.num_edges() * per_edge < graph.num_edges() * by_edge


@constant
def describe(plan: ConvolutionPlan) -> tuple[list[int], Tensor]:
    """A plan as ``csrc/tfn_conv_by_source.cpp`` reads it.

    Returns:
        The integers: numbers of input and of output degrees, each followed by (degree, channels); number of groups, followed by
        (C_in, C_out, paths); number of aligned weights, followed by (group, number of input, number of output, m, 1 for odd, first
        path, number of paths), ordered by group and input; the largest degree. And float64 coefficients: of each aligned weight for
        its paths, then the generators of the degrees 0, 1, ...
    """
    inputs = [degree for degree, _ in plan.node_channels]
    outputs = [degree for degree, _ in plan.channels_out]
    integers: list[int] = []
    for channels in (plan.node_channels, plan.channels_out):
        integers += [len(channels), *(number for entry in channels for number in entry)]
    integers.append(len(plan.groups))
    for group in plan.groups:
        integers += [group.channels_in, group.channels_out, group.num_paths]
    integers.append(sum(group.num_paths for group in plan.groups))
    coefficients = []
    for index, group in enumerate(plan.groups):
        for degree_in, degree_out, m, is_odd, start, row in _aligned_weights(group):
            integers += [index, inputs.index(degree_in), outputs.index(degree_out), m, is_odd, start, len(row)]
            coefficients.append(row)
    integers.append(plan.max_degree)
    coefficients += [generators(degree).flatten() for degree in range(plan.max_degree + 1)]
    return integers, torch.cat(coefficients)


def _aligned_weights(group: RadialGroup) -> list[tuple[int, int, int, int, int, Tensor]]:
    """(d_in, d_out, m, 1 for odd, first path, coefficients of the paths) of each aligned weight, by input degree."""
    result = []
    for degree_in in group.degrees_in:
        for pair in group.pairs:
            if pair.degree_in != degree_in:
                continue
            mapped = alignment_map(degree_in, pair.degree_out)
            mapped = torch.ones_like(mapped) if group.is_basis_free else mapped
            smaller = min(degree_in, pair.degree_out)
            for row, coefficients in enumerate(mapped):
                m, is_odd = (row, 0) if row <= smaller else (row - smaller, 1)
                result.append((degree_in, pair.degree_out, m, is_odd, pair.start, coefficients))
    return result
