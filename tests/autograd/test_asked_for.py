"""A backward pass makes those gradients that it was asked for, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from se3_fast.autograd.operation import Operation, PlainFormula, Wanted


@dataclass(frozen=True, eq=False)
class _Product(Operation):
    """x w, without w where that is None."""

    asked: list[Wanted] = field(default_factory=list)

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        x, weight, scale = operands
        return [x * scale if weight is None else x * weight * scale]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Sequence[Tensor | None]:
        self.asked.append(wanted)
        found = iter(PlainFormula(self.evaluate).vjp(wanted)((*operands, *gradients)))
        return [next(found) if is_wanted else None for is_wanted in wanted]

    @property
    def formula(self) -> PlainFormula:
        return PlainFormula(self.evaluate)


def _operands() -> list[Tensor]:
    return [
        torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_() for seed in range(3)
    ]


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_positions_alone(create_graph: bool) -> None:
    x, weight, scale = _operands()
    operation = _Product()
    (energy,) = operation.apply(2 * x, weight, scale)
    (found,) = torch.autograd.grad(energy.sum(), x, create_graph=create_graph)
    assert operation.asked == [(True, False, False)] and torch.equal(found, 2 * weight * scale)
    if create_graph:
        of_weight, of_scale = torch.autograd.grad(found.square().sum(), (weight, scale))
        assert torch.allclose(of_weight, 8 * weight * scale**2) and torch.allclose(of_scale, 8 * weight**2 * scale)


def test_a_leaf_that_is_asked_for_itself() -> None:
    """PyTorch does not say of such a one whether it is reached: it is taken to be."""
    x, weight, scale = _operands()
    operation = _Product()
    (energy,) = operation.apply(x, weight, 2 * scale)
    found = torch.autograd.grad(energy.sum(), (x, weight))
    assert operation.asked[0][2] is False
    assert torch.equal(found[0], 2 * weight * scale) and torch.equal(found[1], 2 * x * scale)


def test_an_operand_that_is_none() -> None:
    x, _, scale = _operands()
    operation = _Product()
    (energy,) = operation.apply(3 * x, None, scale)
    (found,) = torch.autograd.grad(energy.sum(), x)
    assert operation.asked == [(True, False, False)] and torch.equal(found, 3 * scale)


def test_all_of_them() -> None:
    x, weight, scale = _operands()
    operation = _Product()
    (energy,) = operation.apply(x, weight, scale)
    energy.sum().backward()
    assert operation.asked == [(True, True, True)] and x.grad is not None and weight.grad is not None and scale.grad is not None
