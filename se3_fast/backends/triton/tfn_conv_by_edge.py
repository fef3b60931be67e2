"""The launches of the Triton convolution (``kernels/tfn_conv.py``): the contraction by edge, and what both orders share.

:mod:`se3_fast.backends.triton.tfn_conv_by_source` has the other order, :mod:`se3_fast.backends.launch_tables` the rows of integers
that tell the kernels what to do; here they become tensors, once per plan and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.backends.launch_tables import (
    TURNED_AXES,
    all_pairs,
    contraction_items,
    generator_entries,
    heaviest_first,
    int64_table,
    with_places,
)
from se3_fast.backends.triton.edge_frames import axis_swaps
from se3_fast.contraction import SPLITS, ConvolutionPlan, FeatureRows, input_rows, output_rows
from se3_fast.graph import EdgeOrder, Graph
from se3_fast.kernels import frame_rotations as rotations
from se3_fast.kernels import tfn_conv as kernels
from se3_fast.kernels.edge_frames import wigner_table
from se3_fast.kernels.feature_rows import empty_rows, in_rows
from se3_fast.kernels.frame_rotations import DegreeBlock
from se3_fast.kernels.table_rows import GeneratorEntry, Item, PairRow, Span, Term
from se3_fast.so3 import axis_swap


@constant
def contraction_table(plan: ConvolutionPlan, width: int, is_transposed: bool, device: torch.device) -> kernels.ContractionTable:
    """What :func:`~se3_fast.kernels.tfn_conv.contract` sums."""
    found = [item for has_odd in (False, True) for item in contraction_items(plan, width, is_transposed, has_odd)]
    items, terms = with_places(heaviest_first(found))
    channels = [item.channels for item in items]
    of_items, of_terms = int64_table(items, Item, device), int64_table(terms, Term, device)
    return kernels.ContractionTable(of_items, of_terms, max(channels), _if_all_the_same(channels))


@constant
def pair_table(plan: ConvolutionPlan, width: int, device: torch.device, splits: int = SPLITS) -> kernels.PairTable:
    """The pairs for the gradients of h and W."""
    rows, spans = all_pairs(plan, width, splits)
    return kernels.PairTable(
        int64_table(rows, PairRow, device),
        int64_table(spans, Span, device),
        splits,
        max(row.channels_in for row in rows),
        max(row.channels_out for row in rows),
        _if_all_the_same([row.channels_out for row in rows]),
    )


def _if_all_the_same(counts: Sequence[int]) -> int:
    """The count, or 0."""
    return counts[0] if len(set(counts)) == 1 else 0


@constant
def generator_table(outputs: FeatureRows, inputs: FeatureRows, device: torch.device) -> kernels.GeneratorTable:
    """The generators of rotations about x and z on all rows of y~ and x~."""
    entries: list[GeneratorEntry] = []
    coefficients: list[float] = []
    starts = []
    for rows in (outputs, inputs):
        for axis in TURNED_AXES:
            starts.append(len(entries))
            of_axis, values = generator_entries(rows, axis)
            entries += of_axis
            coefficients += values
    table = torch.tensor(coefficients, dtype=torch.float64, device=device)
    return kernels.GeneratorTable(int64_table(entries, GeneratorEntry, device), table, (starts[1], starts[2], starts[3]))


@constant
def _wigner_table(degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return wigner_table(axis_swap(degree)).to(device, dtype)


class WithGradient(NamedTuple):
    """Features in the edges' frames and their gradient, both [rows, E], and which rows those are."""

    values: Tensor
    gradient: Tensor
    rows: FeatureRows


class Launches:
    """The kernel launches of one convolution, with the tables and sizes that they share.

    Args:
        plan: what is coupled.
        graph: the edges.
        angles: [4, E] of the edges' frames.
        pool: whether messages are summed over incoming edges.
        dtype: that of the features.
        edge_numbers: [E] int64, where ``graph`` and ``angles`` have the edges in another order than messages per edge: their
            numbers there.
        keeps_frames: messages stay in the edges' frames, as one tensor [rows, E], and so do their gradients.
    """

    def __init__(
        self,
        plan: ConvolutionPlan,
        graph: Graph,
        angles: Tensor,
        pool: bool,
        dtype: torch.dtype,
        edge_numbers: Tensor | None = None,
        keeps_frames: bool = False,
    ) -> None:
        self.plan, self.graph, self.angles, self.pool, self.dtype = plan, graph, angles, pool, dtype
        self.edge_numbers, self.keeps_frames = edge_numbers, keeps_frames
        self.rows_in, self.rows_out = input_rows(plan), output_rows(plan)

    def wigner_table(self, degree: int) -> Tensor:
        """The constant table of one degree's Wigner blocks."""
        return _wigner_table(degree, self.angles.dtype, self.angles.device)

    def align_inputs(self, features: Sequence[Tensor]) -> Tensor:
        """x~, [rows, E], from node features and edge features."""
        aligned_features = self.empty_rows(self.rows_in)
        num_node_degrees = len(self.plan.node_channels)
        of_nodes = [
            self._block(self.rows_in, degree, 0, feature)
            for (degree, _), feature in zip(self.plan.node_channels, features[:num_node_degrees], strict=True)
        ]
        self._launch_align(of_nodes, self.graph.src, aligned_features)
        if not self.plan.edge_channels:
            return aligned_features
        of_edges = [
            self._block(self.rows_in, degree, dict(self.plan.node_channels)[degree], feature)
            for (degree, _), feature in zip(self.plan.edge_channels, features[num_node_degrees:], strict=True)
        ]
        self._launch_align(of_edges, None, aligned_features)
        return aligned_features

    def align_gradients(self, grads: Sequence[Tensor]) -> Tensor:
        """The gradient of y~, [rows, E], from those of the messages."""
        if self.keeps_frames:
            return in_rows(grads[0])
        gradient = self.empty_rows(self.rows_out)
        index = self.graph.dst if self.pool else self.edge_numbers
        blocks = [
            self._block(self.rows_out, degree, 0, grad) for (degree, _), grad in zip(self.plan.channels_out, grads, strict=True)
        ]
        self._launch_align(blocks, index, gradient)
        return gradient

    def contract(self, aligned_features: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
        """y~, [rows, E]; where messages stay in the frames the rows of an edge lie side by side, as the attention reads them."""
        if self.keeps_frames:
            messages = self.empty(self.graph.num_edges(), self.rows_out.count).t()
        else:
            messages = self.empty_rows(self.rows_out)
        table = contraction_table(self.plan, hidden.shape[2], False, hidden.device)
        kernels.contract(aligned_features, hidden, weights, table, False, messages)
        return messages

    def contract_transposed(self, gradient: Tensor, hidden: Tensor, weights: Tensor, transposed: Tensor | None) -> Tensor:
        """The gradient of x~, [rows, E], the rows of an edge side by side; ``transposed`` are the weights in the order
        [.., C_out, K, C_in]."""
        assert transposed is not None
        result = self.empty(self.graph.num_edges(), self.rows_in.count).t()
        table = contraction_table(self.plan, hidden.shape[2], True, hidden.device)
        kernels.contract(gradient, hidden, transposed, table, True, result)
        return result

    def radial_gradients(
        self, aligned_features: Tensor, gradient: Tensor, hidden: Tensor, weights: Tensor, splits: int
    ) -> tuple[Tensor, Tensor]:
        """Gradients of h, in so many parts [splits, groups, E, K], and of the aligned weights."""
        width = hidden.shape[2]
        table = pair_table(self.plan, width, hidden.device, splits)
        of_hidden = kernels.hidden_gradient(aligned_features, gradient, weights, table, len(hidden), width, self.dtype)
        return of_hidden, kernels.weight_gradient(aligned_features, gradient, hidden, table, len(weights))

    def rotate_outputs(self, messages: Tensor) -> list[Tensor]:
        """Messages by degree, per edge or summed over incoming edges; or y~ itself."""
        if self.keeps_frames:
            return [messages]
        if self.pool:
            return self._rotate_sum(messages, self.rows_out, self.plan.channels_out, self.graph.incoming())
        return [self._rotate(messages, self.rows_out, degree, 0, channels) for degree, channels in self.plan.channels_out]

    def rotate_input_gradients(self, gradient: Tensor) -> list[Tensor]:
        """Gradients of the node features (summed over outgoing edges) and of the edge features, by degree."""
        of_nodes = self._rotate_sum(gradient, self.rows_in, self.plan.node_channels, self.graph.outgoing())
        first = dict(self.plan.node_channels)
        of_edges = [
            self._rotate(gradient, self.rows_in, degree, first[degree], channels) for degree, channels in self.plan.edge_channels
        ]
        return [*of_nodes, *of_edges]

    def position_gradient(self, rel_pos: Tensor, outputs: WithGradient, inputs: WithGradient) -> Tensor:
        """The gradient of rel_pos through the directions, [E, 3], from y~, and x~ or what stands for it, and their gradients."""
        table = generator_table(outputs.rows, inputs.rows, self.angles.device)
        pairs = (outputs.gradient, outputs.values, inputs.gradient, inputs.values)
        return kernels.position_gradient(*pairs, table, rel_pos, self.angles, self.wigner_table(1))

    def _block(self, rows: FeatureRows, degree: int, first_channel: int, features: Tensor) -> DegreeBlock:
        return DegreeBlock(degree, features.contiguous(), *rows.place(degree, first_channel))

    def _rotate(self, values: Tensor, rows: FeatureRows, degree: int, first_channel: int, channels: int) -> Tensor:
        output = self.empty(self.graph.num_edges(), channels, 2 * degree + 1)
        self._launch_rotate(values, self._block(rows, degree, first_channel, output))
        return output

    def _rotate_sum(
        self, values: Tensor, rows: FeatureRows, channels_by_degree: tuple[tuple[int, int], ...], edges: EdgeOrder
    ) -> list[Tensor]:
        outputs = [self.empty(self.graph.num_nodes(), channels, 2 * degree + 1) for degree, channels in channels_by_degree]
        blocks = [self._block(rows, degree, 0, output) for (degree, _), output in zip(channels_by_degree, outputs, strict=True)]
        self._launch_rotate_sum(blocks, values, edges)
        return outputs

    def _launch_align(self, blocks: list[DegreeBlock], index: Tensor | None, into: Tensor) -> None:
        rotations.align(blocks, axis_swaps(self.plan.max_degree), index, self.angles, into)

    def _launch_rotate(self, values: Tensor, block: DegreeBlock) -> None:
        rotations.rotate(block, axis_swaps(self.plan.max_degree), values, self.edge_numbers, self.angles)

    def _launch_rotate_sum(self, blocks: list[DegreeBlock], values: Tensor, edges: EdgeOrder) -> None:
        rotations.rotate_sum(blocks, axis_swaps(self.plan.max_degree), values, self.angles, *edges)

    def empty_rows(self, rows: FeatureRows) -> Tensor:
        """Memory for aligned features, [rows, E]."""
        return empty_rows(rows.count, self.graph.num_edges(), self.dtype, self.angles.device)

    def empty(self, *shape: int) -> Tensor:
        """Memory to be written, in the dtype of the features."""
        return torch.empty(*shape, dtype=self.dtype, device=self.angles.device)
