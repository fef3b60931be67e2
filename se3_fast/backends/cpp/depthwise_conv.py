"""The depthwise convolution by the compiled CPU operations (``csrc/depthwise_conv.cpp``): first and second derivatives by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, in_at_least_float32
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.dense.depthwise_conv import of_operands
from se3_fast.backends.operands import DepthwiseProfile
from se3_fast.backends.protocol import Support
from se3_fast.contraction.depthwise import DepthwisePlan, Term
from se3_fast.graph import Graph

_CACHE_LINE = 64
_NUM_OF_ROWS = 3
"""The operands that have a row for each node or edge; behind them stand the weights."""


def support(is_compiled: bool) -> Support:
    """Not in compiled graphs, which the formula serves as well."""
    return Support.no("compiled graphs take the formula") if is_compiled else Support()


def depthwise_conv(
    plan: DepthwisePlan, graph: Graph, features: Tensor, harmonics: Tensor, radial: Tensor, profile: DepthwiseProfile
) -> Tensor:
    """See :func:`se3_fast.ops.depthwise_conv.depthwise_conv`."""
    dtype = accumulation_dtype(features.dtype)
    lanes = _CACHE_LINE // dtype.itemsize
    channels, width = features.shape[2], profile.second.shape[0]
    more_channels, more_width = -channels % lanes, -width % lanes
    last = profile.last.unflatten(1, (len(plan.paths), channels))
    operands = (
        [
            F.pad(features, (0, more_channels)),
            harmonics,
            radial,
            F.pad(profile.first, (0, more_width)),
            F.pad(profile.second, (0, more_width, 0, more_width)),
            F.pad(last, (0, more_channels, 0, 0, 0, more_width)).flatten(1),
        ]
        if more_channels or more_width
        else [features, harmonics, radial, *profile]
    )
    (sums,) = CppDepthwise(plan, graph).apply(*(operand.to(dtype).contiguous() for operand in operands))
    return sums[..., :channels].to(features.dtype)


@dataclass(frozen=True, eq=False)
class CppDepthwise(Operation):
    """The convolution; keeps its operands only.

    Operands: features [N, components, C], harmonics [E, .], radial [E, B], and the weights [B, K], [K, K], [K, P C]; C and
    K fill cache lines. Result: [N, components, C].
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
        return self.graph.src, self.graph.dst, *self.graph.incoming(), *_table(self.plan)

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The sums."""
        return [torch.ops.se3_fast_cpp.depthwise_conv(list(operands), *self.arguments)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of all operands; of the weights where one of them is wanted."""
        with_weights = any(wanted[_NUM_OF_ROWS:])
        (gradient,) = gradients
        found = torch.ops.se3_fast_cpp.depthwise_conv_backward(gradient.contiguous(), list(operands), *self.arguments, with_weights)
        return [*found, *[None] * (len(operands) - len(found))]

    @property
    def formula(self) -> PlainFormula:
        """Its derivatives of first and second order by hand, others by formula."""
        return _WithSecondDerivatives(in_at_least_float32(of_operands, self.plan, self.graph), self)


@dataclass(frozen=True)
class _WithSecondDerivatives(PlainFormula):
    operation: CppDepthwise

    def vjp(self, wanted: Wanted) -> PlainFormula:
        return _Gradients(PlainFormula(self.function).vjp(wanted).function, self.operation, wanted)


@dataclass(frozen=True)
class _Gradients(PlainFormula):
    """The gradients that are wanted, of operands and the gradient of the sums; differentiated by hand once more."""

    operation: CppDepthwise
    wanted: Wanted

    def vjp(self, wanted: Wanted) -> PlainFormula:
        return _SecondGradients(PlainFormula(self.function).vjp(wanted).function, self.operation, self.wanted, wanted)


@dataclass(frozen=True)
class _SecondGradients(PlainFormula):
    """From operands, the gradient of the sums, and the gradients of the gradients that were wanted.

    As long as these are of features, harmonics and radial functions they are a direction: the derivatives of the sums and of all
    gradients along it are what is asked for. Otherwise by formula.
    """

    operation: CppDepthwise
    first_wanted: Wanted
    wanted: Wanted

    def __call__(self, tensors: Tensors) -> Sequence[Tensor]:
        num_operands = len(self.first_wanted)
        operands, gradient = tensors[:num_operands], tensors[num_operands]
        given = iter(tensors[num_operands + 1 :])
        direction = [next(given) if is_wanted else None for is_wanted in self.first_wanted]
        if gradient is None or any(part is not None for part in direction[_NUM_OF_ROWS:]):
            return self.function(tensors)
        rows = operands[:_NUM_OF_ROWS]
        along = [
            torch.zeros_like(operand) if part is None else part.contiguous()  # type: ignore[arg-type]
            for operand, part in zip(rows, direction, strict=False)
        ]
        of_gradient, *of_operands_ = torch.ops.se3_fast_cpp.depthwise_conv_along(
            along, gradient.contiguous(), list(operands), *self.operation.arguments
        )
        found = [*of_operands_, of_gradient]
        return [tensor for tensor, is_wanted in zip(found, self.wanted, strict=False) if is_wanted]

    def vjp(self, wanted: Wanted) -> PlainFormula:
        return PlainFormula(self.function).vjp(wanted)


@cache
def _table(plan: DepthwisePlan) -> tuple[list[int], list[float]]:
    """The plan as ``csrc/depthwise_conv.cpp`` reads it: sizes, then runs of pairs of terms, each list with its length first."""
    runs: list[int] = []
    coefficients: list[float] = []
    num_runs = 0
    for number, path in enumerate(plan.paths):
        by_component: dict[int, dict[int, list[Term]]] = {}
        for term in plan.terms(path):
            by_component.setdefault(term.component_out, {}).setdefault(term.component_in, []).append(term)
        for component_out, pairs in sorted(by_component.items()):
            num_runs += 1
            runs += [number, component_out, len(pairs)]
            for component_in, terms in sorted(pairs.items()):
                runs += [component_in, len(terms), *(term.harmonic for term in terms)]
                coefficients += [term.coefficient for term in terms]
    return [plan.components_in, plan.components_out, plan.num_harmonics, len(plan.paths), num_runs, *runs], coefficients
