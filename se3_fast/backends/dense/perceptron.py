"""A perceptron of two layers, the head of the pooled model.

    hidden = relu(x W1^T + b1),   out = hidden W2^T + b2

x: [B, W], B rows on their own.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear, relu


def perceptron(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """[B, W] to [B, O]; weights [H, W] and [O, H], biases [H] and [O]."""
    return linear(relu(linear(x, weight1, bias1)), weight2, bias2)
