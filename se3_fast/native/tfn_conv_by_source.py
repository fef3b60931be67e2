"""From plans and graphs to the C++ convolution by source (``csrc/tfn_conv_by_source.cpp``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from se3_fast.graph import Graph
from se3_fast.plan import ConvolutionPlan, RadialGroup
from se3_fast.so3 import alignment_map, generators


@dataclass(frozen=True)
class NativeConvolutionBySource:
    """The calls of one convolution by source; without edge features of degree > 0.

    Attributes:
        plan: what is coupled.
        graph: its edges.
        wigner: [E, sum of (2d+1)^2] Wigner blocks in the compute dtype, float32 or float64.
        pool: whether the messages of each node's incoming edges are summed.
    """

    plan: ConvolutionPlan
    graph: Graph
    wigner: Tensor
    pool: bool

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Messages by ascending degree.

        Args:
            tensors: node features by degree, h [E, K] and last radial weights [C_out * C_in * F, K] by group; contiguous, in the
                dtype of ``wigner``.
        """
        return torch.ops.se3_fast_cpp.tfn_conv_by_source(*self._split(tensors), *self._constants())

    def backward(
        self, tensors: Sequence[Tensor], grads: Sequence[Tensor], rel_pos: Tensor | None, with_weights: bool
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """Gradients of all tensors and of the directions.

        Args:
            tensors: as given to :meth:`forward`.
            grads: gradients of the messages by ascending degree.
            rel_pos: [E, 3] in the dtype of ``wigner`` if the gradient with respect to it is wanted.
            with_weights: whether the gradients of the weights are wanted.

        Returns:
            The gradients of ``tensors``, and that of ``rel_pos`` through the directions or None.
        """
        contiguous = [grad.contiguous() for grad in grads]
        arguments = (*self._split(tensors), *self._constants(), with_weights, rel_pos is not None)
        found = torch.ops.se3_fast_cpp.tfn_conv_by_source_backward(contiguous, *arguments)
        gradients: list[Tensor | None] = list(found)
        if rel_pos is None:
            return gradients + [None] * (len(tensors) - len(gradients)), None
        torque = found[-1]
        gradients = gradients[:-1]
        return gradients + [None] * (len(tensors) - len(gradients)), _position_gradient(torque, rel_pos)

    def _split(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Nodes, hidden, weights."""
        num_nodes, num_groups = len(self.plan.node_channels), len(self.plan.groups)
        hidden_end = num_nodes + num_groups
        return list(tensors[:num_nodes]), list(tensors[num_nodes:hidden_end]), list(tensors[hidden_end:])

    def _constants(self) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int], Tensor, bool]:
        return self.wigner, self.graph.dst, *self.graph.outgoing(), *describe(self.plan), self.pool


def _position_gradient(torque: Tensor, rel_pos: Tensor) -> Tensor:
    """(tau x r) / |r|^2, [E, 3]; 0 for an edge without direction (DESIGN 1.2)."""
    largest = rel_pos.abs().amax(-1, keepdim=True)
    scaled = rel_pos / torch.where(largest > 0, largest, 1.0)  # whose square neither overflows nor vanishes
    squared = scaled.square().sum(-1, keepdim=True) * largest
    return torch.linalg.cross(torque, scaled) / torch.where(largest > 0, squared, 1.0)


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


@cache
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


@torch.library.register_fake("se3_fast_cpp::tfn_conv_by_source")
def _forward_shapes(
    nodes: list[Tensor],
    hidden: list[Tensor],
    weights: list[Tensor],
    wigner: Tensor,
    dst: Tensor,
    out_order: Tensor,
    out_offsets: Tensor,
    description: list[int],
    coefficients: Tensor,
    pool: bool,
) -> list[Tensor]:
    start = 1 + 2 * description[0]
    numbers = description[start + 1 : start + 1 + 2 * description[start]]
    count = nodes[0].shape[0] if pool else dst.shape[0]
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return [wigner.new_empty(count, channels, 2 * degree + 1) for degree, channels in pairs]


@torch.library.register_fake("se3_fast_cpp::tfn_conv_by_source_backward")
def _backward_shapes(
    gradients: list[Tensor],
    nodes: list[Tensor],
    hidden: list[Tensor],
    weights: list[Tensor],
    wigner: Tensor,
    dst: Tensor,
    out_order: Tensor,
    out_offsets: Tensor,
    description: list[int],
    coefficients: Tensor,
    pool: bool,
    with_weights: bool,
    with_positions: bool,
) -> list[Tensor]:
    torque = [wigner.new_empty(wigner.shape[0], 3)] if with_positions else []
    operands = [*nodes, *hidden, *(weights if with_weights else [])]
    return [torch.empty_like(operand) for operand in operands] + torque
