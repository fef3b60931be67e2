"""The convolution of backends that keep its operands only, as one node of autograd's graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

from torch import Tensor

from se3_fast.autograd.operation import Operation, Tensors, Wanted
from se3_fast.backends.operands import AttentionBlock, Convolution, Remake
from se3_fast.backends.torch.second_derivatives import SHARED, ConvolutionOperands, EdgeFormula, Edges, Role, Setting
from se3_fast.contraction import PassRates, is_by_source, passes_by_source


class Chunked(Protocol):
    """A convolution that makes everything again in its backward pass, which is written by hand."""

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Messages by ascending degree, from node features and edge features by degree, h and last radial weights by group."""

    def backward(
        self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], rel_pos: Tensor | None, with_weights: bool
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """Gradients of ``tensors``, and that of ``rel_pos`` through the directions or None."""


def orders_here(call: Convolution | AttentionBlock, rates: PassRates) -> tuple[bool, bool]:
    """Whether the forward and the backward pass of a call are contracted by source: each is chosen by itself, as the backward pass
    makes everything again.

    Args:
        call: its arguments, or those of what has a convolution in it.
        rates: of the backend at hand.
    """

    def is_cheaper(number: int) -> bool:
        num_sources = len(call.graph.sources_by_out_degree()[1])
        return passes_by_source(call.plan, num_sources, call.graph.num_edges(), rates)[number]

    forward, backward = (is_by_source(call.order, call.plan, partial(is_cheaper, number)) for number in (0, 1))
    return forward, backward


@dataclass(frozen=True, eq=False)
class OperandConvolution(Operation):
    """The convolution of backends that keep its operands only: node features, edge features, h and the weights.

    In plain PyTorch (:class:`se3_fast.backends.torch.tfn_conv.Problem`) or by the compiled CPU operations
    (:class:`se3_fast.backends.cpp.tfn_conv.NativeConvolution`); everything else is made again in the backward pass, written by
    hand; so is h, the largest of them, where there is a way to.

    Operands: Wigner blocks; rel_pos [E, 3], of which only the gradient is made here; node features and edge features by degree; h
    [E, K] and last radial weight [C_out * C_in * F, K] by group; then what h is made of, which is not differentiated here.
    Results: messages by ascending degree.

    Attributes:
        setting: what it is.
        make: the convolution of the forward pass, from the Wigner blocks.
        make_backward: that of the backward pass.
        remake: how to make h again.
    """

    takes_missing: ClassVar[bool] = True

    setting: Setting
    make: Callable[[Tensor], Chunked]
    make_backward: Callable[[Tensor], Chunked]
    remake: Remake | None

    @property
    def num_groups(self) -> int:
        """Radial groups."""
        return len(self.setting.plan.groups)

    @property
    def num_features(self) -> int:
        """Tensors of features."""
        return len(self.setting.plan.node_channels) + len(self.setting.plan.edge_channels)

    @property
    def constants(self) -> Sequence[Tensor]:
        """The edges."""
        return self.setting.graph.src, self.setting.graph.dst

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The messages."""
        return self.make(operands[0]).forward(operands[2 : 2 + self.num_features + 2 * self.num_groups])

    def formula_operands(self, operands: Tensors) -> Tensors:
        """All but what h is made of."""
        return operands[: 2 + self.num_features + 2 * self.num_groups]

    def saved(self, operands: Tensors) -> Tensors:
        """All, or all but h."""
        if self.remake is None:
            return operands
        first = 2 + self.num_features
        return [*operands[:first], *operands[first + self.num_groups :]]

    def restored(self, saved: Tensors) -> Tensors:
        """With h made again."""
        if self.remake is None:
            return saved
        first = 2 + self.num_features
        last = first + self.num_groups
        hidden = self.remake.make(saved[last:])
        return [*saved[:first], *(values.to(self.setting.dtype).contiguous() for values in hidden), *saved[first:last]]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of rel_pos (where it needs one) and of all tensors behind it; None for h and the weights of a radial group none
        of whose messages has a gradient."""
        wigner, rel_pos, *tensors = operands
        needs_weights = any(wanted[-self.num_groups :])
        given = self.setting.with_zeros(gradients, tensors[0])
        found, of_positions = self.make_backward(wigner).backward(tensors, given, rel_pos if wanted[1] else None, needs_weights)
        for index, is_reached in enumerate(self.setting.reached_groups(gradients)):
            if not is_reached:
                found[self.num_features + index] = found[self.num_features + self.num_groups + index] = None
        return None, of_positions, *found

    @property
    def formula(self) -> EdgeFormula:
        """The published one."""
        roles = (Role("edge"), Role("edge"), *self.setting.feature_roles)
        roles += (Role("edge"),) * self.num_groups + (SHARED,) * self.num_groups
        return self.setting.formula(self._operands, roles, Edges.of(self.setting.graph))

    def _operands(self, operands: Any) -> ConvolutionOperands:
        _, rel_pos, *tensors = operands
        last = self.num_features + self.num_groups
        return ConvolutionOperands(rel_pos, tensors[: self.num_features], tensors[self.num_features : last], tensors[last:])
