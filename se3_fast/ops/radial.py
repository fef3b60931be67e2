"""The hidden layers of all radial profiles of a convolution.

Formula: :mod:`se3_fast.backends.dense.radial`. Backends: that module, ``triton`` (``kernels/radial.py``) and ``cpp``
(``csrc/radial.cpp``), which take all profiles in one call each way and keep the invariants only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, compute_dtype
from se3_fast.autograd.opaque import OpaqueOperation
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.choice import selected_backend
from se3_fast.backends.dense import radial as reference
from se3_fast.backends.dense.radial import LAYER_NORM_EPSILON, RadialLayer
from se3_fast.ops.second_derivatives import in_at_least_float32

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
        h of each profile, [E, K], in the compute dtype; from ``triton`` all in one tensor, [groups, E, K].
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
        (hidden,) = FusedRadial(shape, dtype).apply(invariants, table)  # [groups, E, K]
    return hidden


def radial_of_layers(invariants: Tensor, layers: Sequence[Profiles], row: Tensor, splits: int) -> list[Tensor]:
    """As :func:`radial` for several convolutions at once; backend ``triton``.

    Args:
        invariants: [E, e], the same for all.
        layers: the profiles of each convolution, all with the same number of inputs and units, and all with or without layer norm.
        row: the parameters of all, [P, n], in the order of :func:`profile_parameters`.
        splits: S.

    Returns:
        h of each convolution S times over, [S, groups, E, K], so that its gradient may come in S parts; in the compute dtype.
    """
    from se3_fast.kernels.radial import Shape

    first, _ = layers[0][0]
    shape = Shape(width=len(first.bias), has_norm=first.scale is not None, epsilon=LAYER_NORM_EPSILON)
    counts = tuple(len(profiles) for profiles in layers)
    return list(FusedRadialOfLayers(shape, compute_dtype(invariants), counts, splits).apply(invariants, row))


def profile_parameters(profiles: Profiles) -> list[Tensor]:
    """The parameters of the profiles, one after the other."""
    return [tensor for layers in profiles for layer in layers for tensor in layer if tensor is not None]


@dataclass(frozen=True)
class Remake:
    """How h is made from the invariants and the parameters of the profiles.

    Attributes:
        operation: the operation.
        operand_dtype: what it computes in.
        dtype: of h.
    """

    operation: CppRadial
    operand_dtype: torch.dtype
    dtype: torch.dtype

    def make(self, tensors: Tensors) -> list[Tensor]:
        """h of each group, [E, K], from the invariants and the parameters; recorded where gradients are."""
        hidden = self.operation.apply(*(tensor.to(self.operand_dtype) for tensor in tensors if tensor is not None))
        return [values.to(self.dtype) for values in hidden]


@dataclass(frozen=True)
class ScaledRemake:
    """As :class:`Remake`, of h times a factor [groups, E, 1], which is the last of the tensors."""

    how: Remake

    def make(self, tensors: Tensors) -> list[Tensor]:
        """h of each group, [E, K]."""
        *of_hidden, scales = tensors
        assert scales is not None
        return [scaled(values, scale) for values, scale in zip(self.how.make(of_hidden), scales, strict=True)]


class Recipe(NamedTuple):
    """How to make h again, and of what: the invariants, the parameters of the profiles, and a factor if there is one."""

    how: Remake | ScaledRemake
    tensors: tuple[Tensor, ...]

    def scaled(self, scales: Tensor) -> Recipe:
        """The recipe of h times [groups, E, 1]."""
        assert isinstance(self.how, Remake)
        return Recipe(ScaledRemake(self.how), (*self.tensors, scales))


def scaled(hidden: Tensor, scales: Tensor) -> Tensor:
    """h times a factor, in the dtype of h."""
    return (hidden * scales).to(hidden.dtype)


def recipe(invariants: Tensor, profiles: Profiles) -> Recipe | None:
    """How to make h again, so that what comes after need not keep it; arguments as for :func:`radial`.

    Returns:
        None where nothing is gained, as :func:`radial` itself keeps values of that size, or in compiled graphs.
    """
    if torch.compiler.is_compiling() or selected_backend(invariants.device) != "cpp":
        return None
    return Recipe(_cpp_remake(profiles, compute_dtype(invariants)), (invariants, *profile_parameters(profiles)))


def _by_cpp(invariants: Tensor, profiles: Profiles, dtype: torch.dtype) -> list[Tensor]:
    return _cpp_remake(profiles, dtype).make((invariants, *profile_parameters(profiles)))


def _cpp_remake(profiles: Profiles, dtype: torch.dtype) -> Remake:
    """By the compiled CPU operation, which computes in float32 or float64."""
    first, _ = profiles[0]
    operation = CppRadial(len(first.bias), first.scale is not None, len(profiles))
    return Remake(operation, accumulation_dtype(dtype), dtype)


@dataclass(frozen=True, eq=False)
class CppRadial(Operation):
    """All profiles by the compiled CPU operation (``csrc/radial.cpp``); keeps the invariants and the parameters.

    Operands: the invariants [E, e]; the parameters of all groups in a row, each in the order of RadialLayer. Results: h of each
    group, [E, K].
    """

    takes_missing: ClassVar[bool] = True

    width: int
    has_norm: bool
    num_groups: int

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """h."""
        invariants, *parameters = operands
        table = _table(parameters, self.num_groups)
        arguments = (self.width, self.has_norm, LAYER_NORM_EPSILON)
        return torch.ops.se3_fast_cpp.radial(invariants.contiguous(), table, *arguments).unbind()

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the invariants, where they need one, and of the parameters of the groups whose h has a gradient."""
        invariants, *parameters = operands
        reached = [index for index, gradient in enumerate(gradients) if gradient is not None]
        chosen = [parameter for index in reached for parameter in self._of_group(parameters, index)]
        arguments = (self.width, self.has_norm, LAYER_NORM_EPSILON, wanted[0])
        given = (
            torch.stack([gradients[index] for index in reached]) if len(reached) > 1 else gradients[reached[0]][None].contiguous()
        )
        of_table, *of_invariants = torch.ops.se3_fast_cpp.radial_backward(
            given, invariants.contiguous(), _table(chosen, len(reached)), *arguments
        )
        parts = of_table.flatten().split([parameter.numel() for parameter in chosen])
        of_chosen = iter([part.view(parameter.shape) for part, parameter in zip(parts, chosen, strict=True)])
        of_parameters = [
            next(of_chosen) if index in reached else None
            for index in range(self.num_groups)
            for _ in self._of_group(parameters, index)
        ]
        return of_invariants[0] if wanted[0] else None, *of_parameters

    def _of_group(self, parameters: Sequence[Tensor], index: int) -> Sequence[Tensor]:
        size = len(parameters) // self.num_groups
        return parameters[index * size : (index + 1) * size]

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(_of_groups, self.num_groups, self.has_norm))


def _table(parameters: Sequence[Tensor], num_groups: int) -> Tensor:
    """The parameters in a row per group."""
    return torch.cat([parameter.flatten() for parameter in parameters]).view(num_groups, -1)


def _of_groups(num_groups: int, has_norm: bool, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`CppRadial` computes, from its tensors."""
    invariants, *parameters = operands
    remaining = iter(parameters)

    def layer() -> RadialLayer:
        weight, bias = next(remaining), next(remaining)
        return RadialLayer(weight, bias, next(remaining), next(remaining)) if has_norm else RadialLayer(weight, bias, None, None)

    return [reference.radial(invariants, (layer(), layer())) for _ in range(num_groups)]


@dataclass(frozen=True, eq=False)
class FusedRadial(Operation):
    """All profiles by one Triton kernel each way; keeps the invariants and the parameters.

    Operands: the invariants [E, e]; the parameters in a row per group, [groups, n]. Result: h of all groups, [groups, E, K].
    """

    shape: Shape
    dtype: torch.dtype

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """h."""
        from se3_fast.kernels import radial as kernels

        invariants, parameters = operands
        return [kernels.forward(invariants.contiguous(), parameters, self.shape, self.dtype)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the invariants, where they need one, and of the parameters."""
        from se3_fast.kernels import radial as kernels

        invariants, parameters = operands
        given = gradients[0].contiguous()[None]
        of_invariants, sums = kernels.backward(invariants.contiguous(), parameters, given, self.shape, wanted[0])
        return of_invariants, sums.sum(0).to(parameters.dtype)  # over the programs; PyTorch's order is fixed, too

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(_of_table, self.shape))


@dataclass(frozen=True, eq=False)
class FusedRadialOfLayers(Operation):
    """The profiles of several convolutions by one Triton kernel each way; keeps the invariants and the parameters.

    Operands: the invariants [E, e]; the parameters of all in a row, [P, n]. Results: h of each convolution, S times over; see
    :func:`radial_of_layers`.

    Attributes:
        shape: of a profile.
        dtype: of h.
        counts: radial groups of each convolution.
        splits: S.
    """

    shape: Shape
    dtype: torch.dtype
    counts: tuple[int, ...]
    splits: int

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """h of each convolution."""
        from se3_fast.kernels import radial as kernels

        invariants, row = operands
        return self._split(kernels.forward(invariants.contiguous(), row[0].view(sum(self.counts), -1), self.shape, self.dtype))

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the invariants, where they need one, and of the parameters in parts."""
        from se3_fast.kernels import radial as kernels

        invariants, row = operands
        of_invariants, sums = kernels.backward(
            invariants.contiguous(),
            row[0].view(sum(self.counts), -1),
            torch.cat(gradients, 1),
            self.shape,
            with_invariants=wanted[0],
            programs=len(row),
        )
        return of_invariants, sums.flatten(1)

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(self._in_pytorch))

    def _in_pytorch(self, operands: Any) -> list[Tensor]:
        invariants, row = operands
        (hidden,) = _of_table(self.shape, [invariants, row[0].view(sum(self.counts), -1)])
        return self._split(hidden)

    def _split(self, hidden: Tensor) -> list[Tensor]:
        """h of each convolution S times over, from that of all groups."""
        return [of_one.expand(self.splits, -1, -1, -1) for of_one in hidden.split(self.counts)]


def _of_table(shape: Shape, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`FusedRadial` computes, from its tensors."""
    invariants, table = operands
    width = shape.width
    shapes: list[tuple[int, ...]] = []
    for num_inputs in (invariants.shape[1], width):
        shapes += [(width, num_inputs), (width,), *([(width,), (width,)] if shape.has_norm else [])]
    rows = (row.split([math.prod(part) for part in shapes]) for row in table)
    parameters = [part.view(of_part) for row in rows for part, of_part in zip(row, shapes, strict=True)]
    return [torch.stack(_of_groups(len(table), shape.has_norm, [invariants, *parameters]))]


@torch.compiler.assume_constant_result
def _description(width: int, has_norm: bool, dtype: torch.dtype) -> str:
    return json.dumps([width, has_norm, str(dtype).removeprefix("torch.")])


def _opaque_run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    from se3_fast.kernels.radial import Shape

    width, has_norm, dtype_name = json.loads(description)
    shape = Shape(width, has_norm, LAYER_NORM_EPSILON)
    return list(FusedRadial(shape, getattr(torch, dtype_name)).apply(*operands))


def _opaque_shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    width, _, dtype_name = json.loads(description)
    invariants, parameters = operands
    sizes = (parameters.shape[0], invariants.shape[0], width)
    return [invariants.new_empty(sizes, dtype=getattr(torch, dtype_name))]


_opaque_radial = OpaqueOperation("radial", _opaque_run, _opaque_shapes)
