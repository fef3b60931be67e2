"""A perceptron of two layers, the head of the pooled model.

Formula: :mod:`se3_fast.backends.dense.perceptron`. Backends: that module, and ``triton`` (``kernels/perceptron.py``). Under
autocast the result has the dtype that a matrix product of PyTorch has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import compute_dtype, go_together
from se3_fast.autograd.opaque import OpaqueOperation
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.choice import selected_backend
from se3_fast.backends.dense import perceptron as reference
from se3_fast.ops.second_derivatives import in_at_least_float32

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
    dtype = compute_dtype(first[0])
    if torch.compiler.is_compiling():
        return _opaque_perceptron(_dtype_name(dtype), operands)[0]
    return FusedPerceptron(dtype).apply(*operands)[0]


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
            if not go_together(tensor.dtype, dtype, tensor.device.type):
                raise ValueError(f"{name}: expected {dtype} as the first weight has, got {tensor.dtype}")


@dataclass(frozen=True, eq=False)
class FusedPerceptron(Operation):
    """Both layers by one Triton kernel each way; keeps input, parameters and the hidden units.

    Operands: x [B, W], then the parameters. Result: [B, O] in ``dtype``.
    """

    num_kept: ClassVar[int] = 1

    dtype: torch.dtype

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The result, and the hidden units."""
        from se3_fast.kernels import perceptron as kernels

        x, *parameters = operands
        contiguous = kernels.Parameters(*(parameter.contiguous() for parameter in parameters))
        return kernels.forward(x.contiguous(), contiguous, self.dtype)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the input and of the parameters."""
        from se3_fast.kernels import perceptron as kernels

        x, *parameters = operands
        contiguous = kernels.Parameters(*(parameter.contiguous() for parameter in parameters))
        (hidden,) = kept
        of_x, of_parameters = kernels.backward(gradients[0].contiguous(), x.contiguous(), hidden, contiguous, wanted[0])
        return of_x, *of_parameters

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(_in_pytorch, self.dtype))


def _in_pytorch(dtype: torch.dtype, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`FusedPerceptron` computes, from its tensors, in at least float32."""
    wide = torch.promote_types(dtype, torch.float32)
    return [reference.perceptron(*(operand.to(wide) for operand in operands))]


@torch.compiler.assume_constant_result
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_opaque_perceptron = OpaqueOperation(
    "perceptron",
    run=lambda description, operands: list(FusedPerceptron(getattr(torch, description)).apply(*operands)),
    shapes=lambda description, operands: [
        operands[0].new_empty(operands[0].shape[0], operands[3].shape[0], dtype=getattr(torch, description))
    ],
)
