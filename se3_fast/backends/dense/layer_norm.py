"""Layer normalisation over the last axis,

    out = (x - mean(x)) / sqrt(variance(x) + epsilon) * scale + shift

PyTorch's takes mean and variance for constants from the third derivative on, and from the second where the first was taken in
forward mode. Here its kernels give values and first gradients, and further derivatives are those of the formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted


def layer_norm(x: Tensor, scale: Tensor | None, shift: Tensor | None, epsilon: float) -> Tensor:
    """[..., n] to the same, in the dtype of ``x``; half precision is computed with in float32.

    Args:
        x: the values.
        scale: [n], None for ones.
        shift: [n], None for zeros; there are both or none.
        epsilon: added to the variance.
    """
    if torch.compiler.is_compiling():  # compiled graphs are differentiated once
        return functional.layer_norm(x, [x.shape[-1]], scale, shift, epsilon)
    return _LayerNorm(epsilon).apply(x, scale, shift)[0]


@dataclass(frozen=True, eq=False)
class _LayerNorm(Operation):
    """By PyTorch's kernels; keeps mean and variance. Operands: x, scale, shift."""

    num_kept: ClassVar[int] = 2

    epsilon: float

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        x, *affine = operands
        wide, *parameters = _widened(x, *affine)
        result, *kept = torch.ops.aten.native_layer_norm(wide, wide.shape[-1:], *parameters, self.epsilon)
        return result.to(x.dtype), *kept

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        wide, *parameters = _widened(*operands)
        given = gradients[0].to(wide.dtype).contiguous()
        mask = [bool(is_wanted) for is_wanted in wanted]
        found = torch.ops.aten.native_layer_norm_backward(given, wide, wide.shape[-1:], *kept, *parameters, mask)
        pairs = zip(found, operands, strict=True)
        return [None if one is None or operand is None else one.to(operand.dtype) for one, operand in pairs]

    @property
    def formula(self) -> PlainFormula:
        return PlainFormula(self._in_pytorch)

    def _in_pytorch(self, operands: Any) -> list[Tensor]:
        return [_in_pytorch(self.epsilon, *operands)]


def _in_pytorch(epsilon: float, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    wide, *parameters = _widened(x, scale, shift)
    assert wide is not None
    centred = wide - wide.mean(-1, keepdim=True)
    normalised = centred * (centred.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    scale, shift = parameters
    return (normalised if scale is None or shift is None else normalised * scale + shift).to(x.dtype)


def _widened(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> list[Any]:
    """All in at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return [None if tensor is None else tensor.to(dtype) for tensor in (x, scale, shift)]
