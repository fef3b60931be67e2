from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast.layers.head import Head
from se3_fast.ops.perceptron import perceptron

DTYPES = [torch.bfloat16, torch.float16]


def operands(rows: int, num_in: int, num_hidden: int, num_out: int) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return leaf(rows, num_in), (leaf(num_hidden, num_in), leaf(num_hidden)), (leaf(num_out, num_hidden), leaf(num_out))


@pytest.mark.parametrize("backend", ["dense", "torch", "auto"])
def test_formula(backend: str) -> None:
    x, (weight1, bias1), (weight2, bias2) = operands(4, 3, 5, 2)
    with se3_fast.backend(backend):
        result = perceptron(x, (weight1, bias1), (weight2, bias2))
    for row, found in zip(x, result, strict=True):
        hidden = (weight1 @ row + bias1).clamp(min=0.0)
        assert torch.allclose(found, weight2 @ hidden + bias2, rtol=1e-14)


def test_gradients() -> None:
    x, first, second = operands(4, 3, 5, 2)
    flat = [x, *first, *second]
    with se3_fast.backend("dense"):
        assert torch.autograd.gradcheck(lambda x, w1, b1, w2, b2: perceptron(x, (w1, b1), (w2, b2)), flat)


def test_no_channels() -> None:
    x, first, second = operands(4, 0, 5, 2)
    result = perceptron(x, first, second)
    assert torch.allclose(result, (second[0] @ first[1].clamp(min=0.0) + second[1]).expand(4, 2))


def test_layer_is_the_published_sequence() -> None:
    torch.manual_seed(0)
    published = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    torch.manual_seed(0)
    head = Head(6, 6, 2)
    assert list(head.state_dict()) == list(published.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(map(torch.equal, head.parameters(), published.parameters()))
    x = torch.randn(7, 6)
    with se3_fast.backend("torch"):
        assert torch.equal(head(x), published(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_under_autocast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype):
        assert Head(3, 4, 2)(torch.randn(5, 3)).dtype == dtype


def test_errors() -> None:
    x, first, second = operands(4, 3, 5, 2)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 3\] as the first weight has, got \[4, 2\]"):
        perceptron(x[:, :2], first, second)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 3\] as the first weight has, got \[4, 3, 1\]"):
        perceptron(x[..., None], first, second)
    with pytest.raises(ValueError, match=r"first: expected a weight .* and a bias .*, got \[5, 3\] and \[4\]"):
        perceptron(x, (first[0], first[1][:4]), second)
    with pytest.raises(ValueError, match=r"second: expected a weight .* and a bias .*, got \[2\] and \[2\]"):
        perceptron(x, first, (second[1], second[1]))
    with pytest.raises(ValueError, match=r"second: expected a weight for the 5 outputs of the first, got 4"):
        perceptron(x, first, (second[0][:, :4], second[1]))
    with pytest.raises(ValueError, match=r"x: expected torch.float64 as the first weight has, got torch.float32"):
        perceptron(x.float(), first, second)
    with pytest.raises(ValueError, match=r"second: expected torch.float64 as the first weight has, got torch.float16"):
        perceptron(x, first, (second[0], second[1].half()))
