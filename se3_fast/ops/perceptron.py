"""A perceptron of two layers, the head of the pooled model.

Formula: :mod:`se3_fast.backends.dense.perceptron`. Under autocast the result has the dtype that a matrix product of PyTorch has.
"""

from __future__ import annotations

from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype, go_together
from se3_fast.backends.choice import implementation

Layer = tuple[Tensor, Tensor]


def perceptron(x: Tensor, first: Layer, second: Layer) -> Tensor:
    """Two linear layers with a ReLU between them.

    Args:
        x: [B, W].
        first: weight [H, W] and bias [H].
        second: weight [O, H] and bias [O].

    Returns:
        [B, O].

    Raises:
        ValueError: if shapes or dtypes do not fit each other.
    """
    _check(x, first, second)
    is_empty = 0 in first[0].shape or 0 in second[0].shape
    return implementation("perceptron", x.device, is_empty).perceptron(x, *first, *second)


def _check(x: Tensor, first: Layer, second: Layer) -> None:
    for name, (weight, bias) in (("first", first), ("second", second)):
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            shapes = f"{list(weight.shape)} and {list(bias.shape)}"
            raise ValueError(f"{name}: expected a weight of shape [outputs, inputs] and a bias of shape [outputs], got {shapes}")
    if x.ndim != 2 or x.shape[1] != first[0].shape[1]:
        raise ValueError(f"x: expected shape [B, {first[0].shape[1]}] as the first weight has, got {list(x.shape)}")
    if second[0].shape[1] != first[0].shape[0]:
        raise ValueError(f"second: expected a weight for the {first[0].shape[0]} outputs of the first, got {second[0].shape[1]}")
    dtype = first[0].dtype
    for name, tensors in (("x", (x,)), ("first", first), ("second", second)):
        for tensor in tensors:
            check_dtype(name, tensor)
            if not go_together(tensor.dtype, dtype, tensor.device.type):
                raise ValueError(f"{name}: expected {dtype} as the first weight has, got {tensor.dtype}")
