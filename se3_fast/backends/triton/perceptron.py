"""A perceptron of two layers by the Triton kernels (``kernels/perceptron.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import compute_dtype, dtype_name, in_at_least_float32
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends import compiled
from se3_fast.backends.dense import perceptron as formula
from se3_fast.backends.protocol import Support
from se3_fast.kernels import perceptron as kernels


def support(is_compiled: bool, is_empty: bool) -> Support:
    """Not a layer without inputs or outputs."""
    return Support.no("a layer has no inputs or outputs") if is_empty else Support()


def perceptron(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """[B, W] to [B, O]; weights [H, W] and [O, H], biases [H] and [O]."""
    operands = [x, weight1, bias1, weight2, bias2]
    dtype = compute_dtype(weight1)
    if torch.compiler.is_compiling():
        return compiled.perceptron(dtype_name(dtype), operands)[0]
    return FusedPerceptron(dtype).apply(*operands)[0]


def run_node(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The node of compiled graphs."""
    return list(FusedPerceptron(getattr(torch, description)).apply(*operands))


@dataclass(frozen=True, eq=False)
class FusedPerceptron(Operation):
    """Both layers by one Triton kernel each way; keeps input, parameters and the hidden units.

    Operands: x [B, W], then the parameters. Result: [B, O] in ``dtype``.
    """

    num_kept: ClassVar[int] = 1

    dtype: torch.dtype

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The result, and the hidden units."""
        x, *parameters = operands
        contiguous = kernels.Parameters(*(parameter.contiguous() for parameter in parameters))
        return kernels.forward(x.contiguous(), contiguous, self.dtype)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the input and of the parameters."""
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
    return [formula.perceptron(*(operand.to(wide) for operand in operands))]
