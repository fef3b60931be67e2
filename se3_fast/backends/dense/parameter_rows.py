"""Parameters of many layers in a row each, and the sums of their gradients' parts, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rows(parameters: Sequence[Tensor], sizes: Sequence[int], parts: Sequence[int]) -> list[Tensor]:
    """The parameters of each layer one after the other, P times over: [P, n], views of one tensor.

    Args:
        parameters: of all layers.
        sizes: n of each layer.
        parts: P of each layer.
    """
    row = torch.cat([parameter.flatten() for parameter in parameters])
    return [of_layer.expand(count, -1) for of_layer, count in zip(row.split(list(sizes)), parts, strict=True)]


def sums(gradients: Sequence[Tensor]) -> Tensor:
    """The sum over the parts of each layer, [P, n], in a row."""
    return torch.cat([gradient.sum(0) for gradient in gradients])
