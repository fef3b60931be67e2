"""From plans and graphs to the C++ convolution by edge (``csrc/tfn_conv.cpp``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.backends.launch_tables import described_by_edge
from se3_fast.contraction import ConvolutionPlan
from se3_fast.graph import Graph


@dataclass(frozen=True)
class NativeConvolution:
    """The calls of one convolution by edge; :mod:`se3_fast.backends.cpp.tfn_conv_by_source` has those by source.

    Attributes:
        plan: what is coupled.
        graph: its edges.
        wigner: [E, sum of (2d+1)^2] Wigner blocks in the dtype that is computed in, float32 or float64.
        pool: whether the messages of each node's incoming edges are summed.
    """

    plan: ConvolutionPlan
    graph: Graph
    wigner: Tensor
    pool: bool

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Messages by ascending degree.

        Args:
            tensors: node features and edge features by degree, h [E, K] and last radial weights [C_out * C_in * F, K] by group;
                contiguous, in the dtype of ``wigner``; all but the weights may also be bfloat16 where that is float32.
        """
        edges = (self.graph.src, self.graph.dst, *self.graph.incoming())
        return torch.ops.se3_fast_cpp.tfn_conv(*self._split(tensors), self.wigner, *edges, *self._description(tensors), self.pool)

    def backward(
        self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], rel_pos: Tensor | None, with_weights: bool
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """Gradients of all tensors and of the directions.

        Args:
            tensors: as given to :meth:`forward`.
            gradients: of the messages by ascending degree.
            rel_pos: [E, 3] if the gradient with respect to it is wanted.
            with_weights: whether the gradients of the weights are wanted; they are None otherwise.

        Returns:
            The gradients of ``tensors``, and that of ``rel_pos`` through the directions or None.
        """
        of_messages = [gradient.contiguous() for gradient in gradients]
        positions = None if rel_pos is None else rel_pos.to(self.wigner.dtype).contiguous()
        found: list[Tensor | None] = list(self._gradients(tensors, of_messages, positions, with_weights))
        of_positions = found.pop() if rel_pos is not None else None
        padded = found + [None] * (len(tensors) - len(found))
        return padded, None if of_positions is None or rel_pos is None else of_positions.to(rel_pos.dtype)

    def _gradients(
        self, tensors: Sequence[Tensor], of_messages: list[Tensor], rel_pos: Tensor | None, with_weights: bool
    ) -> list[Tensor]:
        """Gradients of the tensors, without the weights' where they are not wanted; that of ``rel_pos`` last where it is."""
        return torch.ops.se3_fast_cpp.tfn_conv_backward(
            of_messages,
            *self._split(tensors),
            self.wigner,
            *(self.graph.src, self.graph.dst, *self.graph.outgoing()),
            self.wigner if rel_pos is None else rel_pos,
            *self._description(tensors),
            self.pool,
            with_weights,
            rel_pos is not None,
        )

    def _split(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """Nodes, edges, hidden, weights."""
        num_groups = len(self.plan.groups)
        counts = (len(self.plan.node_channels), len(self.plan.edge_channels), num_groups, num_groups)
        remaining = iter(tensors)
        return [[next(remaining) for _ in range(count)] for count in counts]

    def _description(self, tensors: Sequence[Tensor]) -> tuple[list[int], Tensor]:
        return description(self.plan, tensors[-1].shape[1])


@constant
def description(plan: ConvolutionPlan, width: int) -> tuple[list[int], Tensor]:
    """A contraction with radial width K as the operation takes it: rows of integers, and coefficients."""
    return described_by_edge(plan, width)
