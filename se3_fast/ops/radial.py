"""The hidden layers of all radial profiles of a convolution.

Formula: :mod:`se3_fast.reference.radial`. Backends: that module, ``triton`` (``kernels/radial.py``) and ``cpp``
(``csrc/radial.cpp``), which take all profiles in one call each way and keep the invariants only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from se3_fast.ops.backend import selected_backend
from se3_fast.ops.opaque import OpaqueOperation
from se3_fast.ops.second_derivatives import differentiable_gradients
from se3_fast.reference import radial as reference
from se3_fast.reference.radial import LAYER_NORM_EPSILON, RadialLayer

if TYPE_CHECKING:
    from se3_fast.kernels.radial import Shape


Profiles = Sequence[tuple[RadialLayer, RadialLayer]]
"""The parameters of the two hidden layers of each profile."""

MAX_PARTS = 64
"""Parts that the gradient of parameters in a row comes in (:mod:`se3_fast.ops.parameter_rows`): 8 groups then fill a GPU."""


def radial(invariants: Tensor, profiles: Profiles) -> list[Tensor] | Tensor:
    """Evaluate the two hidden layers of every profile.

    Args:
        invariants: [E, e] invariant edge features, the edge length last.
        profiles: the parameters of each profile; all with or all without layer norm.

    Returns:
        h of each profile, [E, K], in the autocast dtype where autocast is on; from ``triton`` and ``cpp`` all in one tensor,
        [groups, E, K].
    """
    backend_name = selected_backend(invariants.device)
    if backend_name == "cpp" and not torch.compiler.is_compiling():
        return _by_cpp(invariants, profiles, compute_dtype(invariants))
    if backend_name != "triton":
        return [reference.radial(invariants, layers) for layers in profiles]
    from se3_fast.kernels.radial import Shape

    first, _ = profiles[0]
    shape = Shape(width=len(first.bias), has_norm=first.scale is not None, epsilon=LAYER_NORM_EPSILON)
    dtype = compute_dtype(invariants)
    table = torch.cat([tensor.flatten() for tensor in profile_parameters(profiles)]).view(len(profiles), -1)
    if torch.compiler.is_compiling():
        (hidden,) = _opaque_radial(_description(shape.width, shape.has_norm, dtype), [invariants, table])
    else:
        hidden = FusedRadial.apply(shape, dtype, invariants, table)  # [groups, E, K]
    return hidden


def radial_of_layers(invariants: Tensor, layers: Sequence[Profiles], row: Tensor, splits: int) -> list[Tensor]:
    """As :func:`radial` for several convolutions at once; backend ``triton``.

    Args:
        invariants: [E, e], the same for all.
        layers: the profiles of each convolution, all with the same number of inputs and units, and all with or without layer norm.
        row: the parameters of all, [P, n], in the order of :func:`profile_parameters`.
        splits: S.

    Returns:
        h of each convolution S times over, [S, groups, E, K], so that its gradient may come in S parts; in the autocast dtype where
        autocast is on.
    """
    from se3_fast.kernels.radial import Shape

    first, _ = layers[0][0]
    shape = Shape(width=len(first.bias), has_norm=first.scale is not None, epsilon=LAYER_NORM_EPSILON)
    counts = tuple(len(profiles) for profiles in layers)
    return list(FusedRadialOfLayers.apply(shape, compute_dtype(invariants), counts, splits, invariants, row))


def profile_parameters(profiles: Profiles) -> list[Tensor]:
    """The parameters of the profiles, one after the other."""
    return [tensor for layers in profiles for layer in layers for tensor in layer if tensor is not None]


def recipe(invariants: Tensor, profiles: Profiles) -> Callable[[], Tensor] | None:
    """How to make h again, so that what comes after need not keep it; arguments as for :func:`radial`.

    Returns:
        A function that returns the values [groups, E, K] once more; None where nothing is gained, as :func:`radial` itself keeps
        values of that size, or nobody may call back, in compiled graphs. On backend ``cpp`` it keeps the invariants only.
    """
    if torch.compiler.is_compiling() or selected_backend(invariants.device) != "cpp":
        return None
    constant, dtype = invariants.detach(), compute_dtype(invariants)

    def make() -> Tensor:
        with torch.no_grad():
            return _by_cpp(constant, profiles, dtype)

    return make


def compute_dtype(invariants: Tensor) -> torch.dtype:
    """The dtype of h: that of autocast where it is on."""
    device_type = invariants.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else invariants.dtype


def _by_cpp(invariants: Tensor, profiles: Profiles, dtype: torch.dtype) -> Tensor:
    """By the compiled CPU operation, which computes in float32 or float64."""
    first, _ = profiles[0]
    cpp_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    operands = (tensor.to(cpp_dtype) for tensor in (invariants, *profile_parameters(profiles)))
    return CppRadial.apply(len(first.bias), first.scale is not None, len(profiles), *operands).to(dtype)


class CppRadial(torch.autograd.Function):
    """All profiles by the compiled CPU operation (``csrc/radial.cpp``); keeps the invariants and the parameters."""

    @staticmethod
    def forward(ctx: Any, width: int, has_norm: bool, num_groups: int, invariants: Tensor, *parameters: Tensor) -> Tensor:
        """h of all groups, [groups, E, K], from the parameters of all groups in a row, each in the order of RadialLayer."""
        ctx.arguments = (width, has_norm, LAYER_NORM_EPSILON)
        ctx.num_groups = num_groups
        ctx.save_for_backward(invariants, *parameters)
        return torch.ops.se3_fast_cpp.radial(invariants.contiguous(), _table(parameters, num_groups), *ctx.arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the invariants and of the parameters."""
        invariants, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            evaluate = partial(_in_pytorch, ctx.num_groups, ctx.arguments[1])
            operands = [invariants, *parameters]
            return None, None, None, *differentiable_gradients(evaluate, operands, ctx.needs_input_grad[3:], [gradient])
        table = _table(parameters, ctx.num_groups)
        with_invariants = ctx.needs_input_grad[3]
        of_table, *of_invariants = torch.ops.se3_fast_cpp.radial_backward(
            gradient.contiguous(), invariants.contiguous(), table, *ctx.arguments, with_invariants
        )
        parts = of_table.flatten().split([parameter.numel() for parameter in parameters])
        of_parameters = [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
        return None, None, None, of_invariants[0] if with_invariants else None, *of_parameters


def _table(parameters: Sequence[Tensor], num_groups: int) -> Tensor:
    """The parameters in a row per group."""
    return torch.cat([parameter.flatten() for parameter in parameters]).view(num_groups, -1)


def _in_pytorch(num_groups: int, has_norm: bool, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`CppRadial` computes, from its tensors."""
    invariants, *parameters = operands
    remaining = iter(parameters)

    def layer() -> RadialLayer:
        weight, bias = next(remaining), next(remaining)
        return RadialLayer(weight, bias, next(remaining), next(remaining)) if has_norm else RadialLayer(weight, bias, None, None)

    return [torch.stack([reference.radial(invariants, (layer(), layer())) for _ in range(num_groups)])]


class FusedRadial(torch.autograd.Function):
    """All profiles by one Triton kernel each way; keeps the invariants and the parameters."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, dtype: torch.dtype, invariants: Tensor, parameters: Tensor) -> Tensor:
        """h of all groups, [groups, E, K], from the parameters in a row per group."""
        from se3_fast.kernels import radial as kernels

        ctx.shape = shape
        ctx.save_for_backward(invariants, parameters)  # as they are: they may have to be differentiated again
        return kernels.forward(invariants.contiguous(), parameters, shape, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the invariants, where they need one, and of the parameters."""
        from se3_fast.kernels import radial as kernels

        invariants, parameters = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            evaluate = partial(_of_table, ctx.shape, gradient.dtype)
            operands = [invariants, parameters]
            return None, None, *differentiable_gradients(evaluate, operands, ctx.needs_input_grad[2:], [gradient])
        with_invariants = ctx.needs_input_grad[2]
        values = invariants.contiguous()
        of_invariants, sums = kernels.backward(values, parameters, gradient.contiguous()[None], ctx.shape, with_invariants)
        return None, None, of_invariants, sums.sum(0).to(parameters.dtype)  # over the programs; PyTorch's order is fixed, too


class FusedRadialOfLayers(torch.autograd.Function):
    """The profiles of several convolutions by one Triton kernel each way; keeps the invariants and the parameters."""

    @staticmethod
    def forward(
        ctx: Any, shape: Shape, dtype: torch.dtype, counts: tuple[int, ...], splits: int, invariants: Tensor, row: Tensor
    ) -> tuple[Tensor, ...]:
        """h of each convolution; see :func:`radial_of_layers`."""
        from se3_fast.kernels import radial as kernels

        ctx.shape, ctx.num_groups = shape, sum(counts)
        ctx.save_for_backward(invariants, row)
        hidden = kernels.forward(invariants.contiguous(), row[0].view(ctx.num_groups, -1), shape, dtype)
        return tuple(of_one.expand(splits, -1, -1, -1) for of_one in hidden.split(counts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the invariants, where they need one, and of the parameters in parts."""
        from se3_fast.kernels import radial as kernels

        invariants, row = ctx.saved_tensors
        of_invariants, sums = kernels.backward(
            invariants.contiguous(),
            row[0].view(ctx.num_groups, -1),
            torch.cat(gradients, 1),
            ctx.shape,
            with_invariants=ctx.needs_input_grad[4],
            programs=len(row),
        )
        return None, None, None, None, of_invariants, sums.flatten(1)


def _of_table(shape: Shape, dtype: torch.dtype, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`FusedRadial` computes, from its tensors."""
    invariants, table = operands
    width = shape.width
    shapes: list[tuple[int, ...]] = []
    for num_inputs in (invariants.shape[1], width):
        shapes += [(width, num_inputs), (width,), *([(width,), (width,)] if shape.has_norm else [])]
    rows = (row.split([math.prod(part) for part in shapes]) for row in table)
    parameters = [part.view(of_part) for row in rows for part, of_part in zip(row, shapes, strict=True)]
    (hidden,) = _in_pytorch(len(table), shape.has_norm, [invariants, *parameters])
    return [hidden.to(dtype)]


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
