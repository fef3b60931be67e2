"""Second derivatives by hand, for an operation with one result.

The gradients of an operation, differentiated once more, are derivatives along a direction: with g the gradient of the result y
of the operands x, and u what is given for the gradients of x,

    d/dx <u, y'(x)^T g>  =  the change of y'(x)^T g   when x moves along u, g held fast
    d/dg <u, y'(x)^T g>  =  the change of y(x)        when x moves along u

so one pass that carries values and their changes side by side gives all of them. What it takes: ``along`` of the operation.
Directions of the last operands (weights) are rare, and go by formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from se3_fast.autograd.operation import PlainFormula, Tensors, Wanted

Along = Callable[[list[Tensor], Tensor, Sequence[Tensor]], Sequence[Tensor]]
"""From a direction of the first operands, the gradient of the result, and all operands: the changes of the result and of the
gradients of all operands."""


@dataclass(frozen=True)
class FormulaAlong(PlainFormula):
    """A formula whose gradients are differentiated by hand.

    Attributes:
        along: the derivatives along a direction.
        num_moving: how many operands, from the first on, have directions.
    """

    along: Along
    num_moving: int

    def vjp(self, wanted: Wanted) -> PlainFormula:
        """See :class:`~se3_fast.autograd.operation.Formula`."""
        return _Gradients(PlainFormula(self.function).vjp(wanted).function, self, wanted)


@dataclass(frozen=True)
class _Gradients(PlainFormula):
    """The gradients that are wanted, from the operands and the gradient of the result."""

    operation: FormulaAlong
    wanted: Wanted

    def vjp(self, wanted: Wanted) -> PlainFormula:
        return _SecondGradients(PlainFormula(self.function).vjp(wanted).function, self.operation, self.wanted, wanted)


@dataclass(frozen=True)
class _SecondGradients(PlainFormula):
    """From the operands, the gradient of the result, and what is given for each of the gradients that were wanted."""

    operation: FormulaAlong
    first_wanted: Wanted
    wanted: Wanted

    def __call__(self, tensors: Tensors) -> Sequence[Tensor]:
        num_operands, num_moving = len(self.first_wanted), self.operation.num_moving
        operands, gradient = tensors[:num_operands], tensors[num_operands]
        given = iter(tensors[num_operands + 1 :])
        direction = [next(given) if is_wanted else None for is_wanted in self.first_wanted]
        if gradient is None or any(part is not None for part in direction[num_moving:]):
            return self.function(tensors)
        moving = zip(operands[:num_moving], direction, strict=False)
        whole = [torch.zeros_like(operand) if part is None else part for operand, part in moving]  # type: ignore[arg-type]
        of_gradient, *of_operands = self.operation.along(whole, gradient, operands)  # type: ignore[arg-type]
        return [tensor for tensor, is_wanted in zip([*of_operands, of_gradient], self.wanted, strict=False) if is_wanted]

    def vjp(self, wanted: Wanted) -> PlainFormula:
        return PlainFormula(self.function).vjp(wanted)
