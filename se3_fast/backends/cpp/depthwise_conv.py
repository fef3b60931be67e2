"""The depthwise convolution by the compiled CPU operations (``csrc/depthwise_conv.cpp``): first and second derivatives by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.autograd.along import FormulaAlong
from se3_fast.autograd.compute_dtype import accumulation_dtype, in_at_least_float32
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.dense.depthwise_conv import of_operands
from se3_fast.backends.protocol import Support
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.graph import Graph

_CACHE_LINE = 64
MOST_KNOTS = 1 << 14
"""Of ``csrc/depthwise_conv.cpp``."""
_NUM_OF_ROWS = 3
"""The operands that have a row for each node or edge; behind them stands the table."""


def support(is_compiled: bool, num_terms: int, num_knots: int) -> Support:
    """Not in compiled graphs, which the formula serves as well, and not without knots or with a great many."""
    if is_compiled:
        return Support.no("compiled graphs take the formula")
    return Support() if 1 <= num_knots <= MOST_KNOTS else Support.no(f"the operation takes 1 to {MOST_KNOTS} knots")


def depthwise_conv(plan: DepthwisePlan, graph: Graph, features: Tensor, harmonics: Tensor, places: Tensor, table: Tensor) -> Tensor:
    """See :func:`se3_fast.ops.depthwise_conv.depthwise_conv`."""
    dtype = accumulation_dtype(features.dtype)
    lanes = _CACHE_LINE // dtype.itemsize
    channels = features.shape[2]
    more_channels = -channels % lanes
    if more_channels:
        features = F.pad(features, (0, more_channels))
        table = F.pad(table.unflatten(1, (len(plan.paths), channels)), (0, more_channels)).flatten(1)
    operands = (features, harmonics, places, table)
    (sums,) = CppDepthwise(plan, graph).apply(*(operand.to(dtype).contiguous() for operand in operands))
    return sums[..., :channels].to(features.dtype)


@dataclass(frozen=True, eq=False)
class CppDepthwise(Operation):
    """The convolution; keeps its operands only.

    Operands: features [N, components, C], harmonics [E, .], places [E], and the table [K, P C]; C fills cache lines. Result:
    [N, components, C].
    """

    plan: DepthwisePlan
    graph: Graph

    @property
    def constants(self) -> Sequence[Tensor]:
        """The edges."""
        return self.graph.src, self.graph.dst

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Of the compiled operations, behind the operands."""
        return self.graph.src, self.graph.dst, *self.graph.incoming(), *couplings(self.plan)

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The sums."""
        return [torch.ops.se3_fast_cpp.depthwise_conv(list(operands), *self.arguments)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of all operands; of the table where it is wanted."""
        with_table = any(wanted[_NUM_OF_ROWS:])
        (gradient,) = gradients
        found = torch.ops.se3_fast_cpp.depthwise_conv_backward(gradient.contiguous(), list(operands), *self.arguments, with_table)
        return [*found, *[None] * (len(operands) - len(found))]

    def along(self, direction: list[Tensor], gradient: Tensor, operands: Sequence[Tensor]) -> Sequence[Tensor]:
        """See :mod:`se3_fast.autograd.along`."""
        moving = [part.contiguous() for part in direction]
        return torch.ops.se3_fast_cpp.depthwise_conv_along(moving, gradient.contiguous(), list(operands), *self.arguments)

    @property
    def formula(self) -> PlainFormula:
        """Its second derivatives by hand too."""
        function = in_at_least_float32(of_operands, self.plan, self.graph)
        return FormulaAlong(function, self.along, _NUM_OF_ROWS)


@cache
def couplings(plan: DepthwisePlan) -> tuple[list[int], list[float]]:
    """The plan as ``csrc/depthwise_conv.cpp`` reads it: sizes, then runs of pairs of terms, each list with its length first."""
    numbers: list[int] = []
    coefficients: list[float] = []
    for path, component_out, pairs in plan.runs():
        numbers += [path, component_out, len(pairs)]
        for component_in, terms in pairs:
            numbers += [component_in, len(terms), *(term.harmonic for term in terms)]
            coefficients += [term.coefficient for term in terms]
    sizes = [plan.components_in, plan.components_out, plan.num_harmonics, len(plan.paths), len(plan.runs())]
    return [*sizes, *numbers], coefficients
