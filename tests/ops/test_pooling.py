from __future__ import annotations

import pytest
import torch

from se3_fast.backends.dense import pooling

SIZES = torch.tensor([2, 0, 3])


def feature() -> torch.Tensor:
    return torch.tensor([[1.0], [4.0], [2.0], [7.0], [7.0]], dtype=torch.float64)[..., None]


def test_maximum_with_ties_and_an_empty_graph() -> None:
    leaf = feature().requires_grad_()
    pooled = pooling.maximum(leaf, SIZES)
    assert pooled.flatten().tolist() == [4.0, 0.0, 7.0]
    pooled.sum().backward()
    assert leaf.grad is not None and leaf.grad.flatten().tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_mean_with_an_empty_graph() -> None:
    leaf = feature().requires_grad_()
    pooled = pooling.mean(leaf, SIZES)
    assert pooled.flatten().tolist() == [2.5, 0.0, pytest.approx(16 / 3)]
    pooled.sum().backward()
    assert leaf.grad is not None and leaf.grad.flatten().tolist() == [0.5, 0.5, *[pytest.approx(1 / 3)] * 3]


@pytest.mark.parametrize("pool", [pooling.maximum, pooling.mean])
def test_gradients(pool: object) -> None:
    assert callable(pool)
    leaf = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: pool(values, SIZES), leaf)


def test_no_nodes() -> None:
    sizes = torch.zeros(2, dtype=torch.int64)
    for pool in (pooling.maximum, pooling.mean):
        assert pool(torch.zeros(0, 3, 1), sizes).tolist() == [[[0.0]] * 3] * 2
