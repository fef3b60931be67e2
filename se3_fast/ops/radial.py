"""The hidden layers of all radial profiles of a convolution.

Formula: :mod:`se3_fast.reference.radial`. Backends: that module, and ``triton`` (``kernels/radial.py``), which takes all profiles
in one launch each way and keeps the invariants only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.ops.backend import selected_backend
from se3_fast.ops.opaque import OpaqueOperation
from se3_fast.reference import radial as reference
from se3_fast.reference.radial import LAYER_NORM_EPSILON, RadialLayer

if TYPE_CHECKING:
    from se3_fast.kernels.radial import Shape


def radial(invariants: Tensor, profiles: Sequence[tuple[RadialLayer, RadialLayer]]) -> list[Tensor] | Tensor:
    """Evaluate the two hidden layers of every profile.

    Args:
        invariants: [E, e] invariant edge features, the edge length last.
        profiles: the parameters of each profile; all with or all without layer norm.

    Returns:
        h of each profile, [E, K], in the autocast dtype where autocast is on; from ``triton`` all in one tensor, [groups, E, K].
    """
    if selected_backend(invariants.device) != "triton":
        return [reference.radial(invariants, layers) for layers in profiles]
    from se3_fast.kernels.radial import Shape

    first, _ = profiles[0]
    shape = Shape(width=len(first.bias), has_norm=first.scale is not None, epsilon=LAYER_NORM_EPSILON)
    device_type = invariants.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else invariants.dtype
    parameters = [tensor.flatten() for layers in profiles for layer in layers for tensor in layer if tensor is not None]
    table = torch.cat(parameters).view(len(profiles), -1)
    if torch.compiler.is_compiling():
        (hidden,) = _opaque_radial(_description(shape.width, shape.has_norm, dtype), [invariants, table])
    else:
        hidden = FusedRadial.apply(shape, dtype, invariants, table)  # [groups, E, K]
    return hidden


class FusedRadial(torch.autograd.Function):
    """All profiles by one Triton kernel each way; keeps the invariants and the parameters."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, dtype: torch.dtype, invariants: Tensor, parameters: Tensor) -> Tensor:
        """h of all groups, [groups, E, K], from the parameters in a row per group."""
        from se3_fast.kernels import radial as kernels

        invariants = invariants.contiguous()
        ctx.shape = shape
        ctx.save_for_backward(invariants, parameters)
        return kernels.forward(invariants, parameters, shape, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the invariants, where they need one, and of the parameters."""
        from se3_fast.kernels import radial as kernels

        invariants, parameters = ctx.saved_tensors
        with_invariants = ctx.needs_input_grad[2]
        return None, None, *kernels.backward(invariants, parameters, gradient.contiguous(), ctx.shape, with_invariants)


@torch.compiler.assume_constant_result
def _description(width: int, has_norm: bool, dtype: torch.dtype) -> str:
    return json.dumps([width, has_norm, str(dtype).removeprefix("torch.")])


def _opaque_run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    from se3_fast.kernels.radial import Shape

    width, has_norm, dtype_name = json.loads(description)
    shape = Shape(width, has_norm, LAYER_NORM_EPSILON)
    return [FusedRadial.apply(shape, getattr(torch, dtype_name), *operands)]


def _opaque_shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    width, _, dtype_name = json.loads(description)
    invariants, parameters = operands
    sizes = (parameters.shape[0], invariants.shape[0], width)
    return [invariants.new_empty(sizes, dtype=getattr(torch, dtype_name))]


_opaque_radial = OpaqueOperation("radial", _opaque_run, _opaque_shapes)
