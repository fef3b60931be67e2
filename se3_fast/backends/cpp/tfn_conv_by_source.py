"""From plans and graphs to the C++ convolution by source (``csrc/tfn_conv_by_source.cpp``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.backends.cpp.tfn_conv_by_edge import NativeConvolution
from se3_fast.backends.launch_tables import described_by_source
from se3_fast.contraction import ConvolutionPlan, torque_to_gradient


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
        return nodes, hidden, weights, self.wigner, self.graph.dst, *self.graph.outgoing(), *_description(self.plan), self.pool


@constant
def _description(plan: ConvolutionPlan) -> tuple[list[int], Tensor]:
    return described_by_source(plan)
