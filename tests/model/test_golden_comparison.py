"""What the golden test takes for equal: gradients that are exactly zero too, and nothing that differs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.model.test_golden import TOLERANCE, assert_close, assert_sums_close

PROJECTIONS = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5, -1.0], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, 0.5]], dtype=torch.float64)


def sums_of(matrix: Tensor) -> Tensor:
    left, right = PROJECTIONS
    return torch.stack([matrix.sum(), matrix.abs().sum(), left @ matrix @ right])


@pytest.mark.parametrize("matrix", [MATRIX, 0.0 * MATRIX, 1e-30 * MATRIX], ids=["usual", "zero", "tiny"])
def test_equal_sums(matrix: Tensor) -> None:
    assert_sums_close("w", matrix, PROJECTIONS, sums_of(matrix))
    assert_sums_close("w", matrix * (1 + 0.1 * TOLERANCE), PROJECTIONS, sums_of(matrix))


@pytest.mark.parametrize("matrix", [MATRIX, 0.0 * MATRIX], ids=["usual", "zero"])
@pytest.mark.parametrize("change", [1e-8, math.nan, math.inf])
def test_other_sums(matrix: Tensor, change: float) -> None:
    changed = matrix.clone()
    changed[1, 2] += change
    with pytest.raises(AssertionError, match="gradcheck w: relative error"):
        assert_sums_close("w", changed, PROJECTIONS, sums_of(matrix))
    with pytest.raises(AssertionError, match="w: relative error"):
        assert_close("w", changed, matrix)


def test_no_gradient_is_zero() -> None:
    assert_close("w", None, torch.zeros(2, 3))
    with pytest.raises(AssertionError, match="w: relative error"):
        assert_close("w", None, MATRIX)
