"""Norm-based nonlinearity.

Formula: :mod:`se3_fast.reference.equivariant_norm`. Backends: that module, and ``triton`` (``kernels/equivariant_norm.py``) where
the nonlinearity is ReLU. On backend ``triton`` results have the dtype of the features under autocast too, with all sums in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from se3_fast.fiber import Features
from se3_fast.ops.backend import selected_backend
from se3_fast.ops.opaque import OpaqueOperation
from se3_fast.ops.second_derivatives import differentiable_gradients
from se3_fast.reference import equivariant_norm as reference

_MAX_FUSED_DEGREES = 7


def group_norm(
    features: Features, scale: Tensor, shift: Tensor, epsilon: float, nonlinearity: Callable[[Tensor], Tensor]
) -> Features:
    """Group normalisation over the fused norms, one group per degree.

    Args:
        features: ``{d: [N, C, 2d+1]}``, all with the same C.
        scale: [D * C] weight, channels of all D degrees side by side, degrees ascending.
        shift: [D * C] bias.
        epsilon: added to the variance.
        nonlinearity: applied to the normalised norms.

    Returns:
        ``{d: [N, C, 2d+1]}``.
    """
    if not _runs_triton(scale.device, nonlinearity) or len(features) > _MAX_FUSED_DEGREES:
        return reference.group_norm(features, scale, shift, epsilon, nonlinearity)
    keys = sorted(features, key=int)
    outputs = _fused(epsilon, [scale, shift, *(features[key] for key in keys)])
    return dict(zip(keys, outputs, strict=True))


def layer_norm(feature: Tensor, scale: Tensor, shift: Tensor, epsilon: float, nonlinearity: Callable[[Tensor], Tensor]) -> Tensor:
    """Layer normalisation over the norms of one degree: [N, C, 2d+1] to the same; ``scale`` and ``shift`` are [C]."""
    if not _runs_triton(scale.device, nonlinearity):
        return reference.layer_norm(feature, scale, shift, epsilon, nonlinearity)
    (output,) = _fused(epsilon, [scale, shift, feature])
    return output


def _runs_triton(device: torch.device, nonlinearity: Callable[[Tensor], Tensor]) -> bool:
    return type(nonlinearity) is nn.ReLU and selected_backend(device) == "triton"


def _fused(epsilon: float, operands: list[Tensor]) -> Sequence[Tensor]:
    if torch.compiler.is_compiling():
        return _opaque_norm("", [torch.full((), epsilon, dtype=torch.float64), *operands])
    return FusedNorm.apply(epsilon, *operands)


class FusedNorm(torch.autograd.Function):
    """Norms, normalisation, ReLU and rescaling of all degrees by one Triton kernel each way; keeps its inputs only."""

    @staticmethod
    def forward(ctx: Any, epsilon: float, scale: Tensor, shift: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """The features rescaled, degrees ascending."""
        from se3_fast.kernels import equivariant_norm as kernels

        ctx.epsilon = epsilon
        ctx.save_for_backward(scale, shift, *features)  # as they are: they may have to be differentiated again
        return tuple(kernels.forward([feature.contiguous() for feature in features], scale, shift, epsilon))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of scale, shift and the features."""
        from se3_fast.kernels import equivariant_norm as kernels

        scale, shift, *features = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            evaluate = partial(_in_pytorch, ctx.epsilon)
            operands = [scale, shift, *features]
            return None, *differentiable_gradients(evaluate, operands, ctx.needs_input_grad[1:], gradients)
        contiguous = [gradient.contiguous() for gradient in gradients]
        values = [feature.contiguous() for feature in features]
        results, of_scale, of_shift = kernels.backward(values, contiguous, scale, shift, ctx.epsilon)
        return None, of_scale, of_shift, *results


def _in_pytorch(epsilon: float, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`FusedNorm` computes, from its tensors."""
    scale, shift, *features = operands
    by_degree = {str(degree): feature for degree, feature in enumerate(features)}
    return list(reference.group_norm(by_degree, scale, shift, epsilon, torch.relu).values())


_opaque_norm = OpaqueOperation(
    "equivariant_norm",
    run=lambda description, operands: list(FusedNorm.apply(float(operands[0]), *operands[1:])),
    shapes=lambda description, operands: [feature.new_empty(feature.shape) for feature in operands[3:]],
)
