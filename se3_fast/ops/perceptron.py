"""A perceptron of two layers, the head of the pooled model.

Formula: :mod:`se3_fast.reference.perceptron`. Backends: that module, and ``triton`` (``kernels/perceptron.py``). Under autocast the
result has the dtype that a matrix product of PyTorch has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from se3_fast.ops.backend import selected_backend
from se3_fast.ops.opaque import OpaqueOperation
from se3_fast.ops.second_derivatives import differentiable_gradients
from se3_fast.reference import perceptron as reference

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
    operands = [x, *first, *second]
    if selected_backend(x.device) != "triton" or 0 in first[0].shape or 0 in second[0].shape:
        return reference.perceptron(*operands)
    dtype = _compute_dtype(first[0])
    if torch.compiler.is_compiling():
        return _opaque_perceptron(_dtype_name(dtype), operands)[0]
    return FusedPerceptron.apply(dtype, *operands)


def _check(x: Tensor, first: Layer, second: Layer) -> None:
    for name, (weight, bias) in (("first", first), ("second", second)):
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            shapes = f"{list(weight.shape)} and {list(bias.shape)}"
            raise ValueError(f"{name}: expected a weight of shape [outputs, inputs] and a bias of shape [outputs], got {shapes}")
    if x.ndim != 2 or x.shape[1] != first[0].shape[1]:
        raise ValueError(f"x: expected shape [B, {first[0].shape[1]}] as the first weight has, got {list(x.shape)}")
    if second[0].shape[1] != first[0].shape[0]:
        raise ValueError(f"second: expected a weight for the {first[0].shape[0]} outputs of the first, got {second[0].shape[1]}")
    if torch.is_autocast_enabled(x.device.type):
        return
    dtype = first[0].dtype
    for name, tensors in (("x", (x,)), ("first", first), ("second", second)):
        for tensor in tensors:
            if tensor.dtype != dtype:
                raise ValueError(f"{name}: expected {dtype} as the first weight has, got {tensor.dtype}")


def _compute_dtype(weight: Tensor) -> torch.dtype:
    """That of autocast, where it is on; float64 stays what it is, as in PyTorch's matrix products."""
    device_type = weight.device.type
    is_cast = torch.is_autocast_enabled(device_type) and weight.dtype != torch.float64
    return torch.get_autocast_dtype(device_type) if is_cast else weight.dtype


class FusedPerceptron(torch.autograd.Function):
    """Both layers by one Triton kernel each way; keeps input, parameters and the hidden units."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, x: Tensor, *parameters: Tensor) -> Tensor:
        """[B, O] in ``dtype``."""
        from se3_fast.kernels import perceptron as kernels

        contiguous = kernels.Parameters(*(parameter.contiguous() for parameter in parameters))
        output, hidden = kernels.forward(x.contiguous(), contiguous, dtype)
        ctx.dtype = dtype
        ctx.save_for_backward(hidden, x, *parameters)  # as they are: they may have to be differentiated again
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the input and of the parameters."""
        from se3_fast.kernels import perceptron as kernels

        hidden, x, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # to be differentiated again
            evaluate = partial(_in_pytorch, ctx.dtype)
            return None, *differentiable_gradients(evaluate, [x, *parameters], wanted, [gradient])
        contiguous = kernels.Parameters(*(parameter.contiguous() for parameter in parameters))
        of_x, of_parameters = kernels.backward(gradient.contiguous(), x.contiguous(), hidden, contiguous, wanted[0])
        return None, of_x, *of_parameters


def _in_pytorch(dtype: torch.dtype, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`FusedPerceptron` computes, from its tensors."""
    return [reference.perceptron(*(operand.to(dtype) for operand in operands))]


@torch.compiler.assume_constant_result
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_opaque_perceptron = OpaqueOperation(
    "perceptron",
    run=lambda description, operands: [FusedPerceptron.apply(getattr(torch, description), *operands)],
    shapes=lambda description, operands: [
        operands[0].new_empty(operands[0].shape[0], operands[3].shape[0], dtype=getattr(torch, description))
    ],
)
