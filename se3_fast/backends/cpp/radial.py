"""The hidden layers of all radial profiles by the compiled CPU operation (``csrc/radial.cpp``), which keeps the invariants only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, compute_dtype, in_at_least_float32, in_dtype
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.dense.radial import LAYER_NORM_EPSILON, of_groups
from se3_fast.backends.operands import Profiles, Recipe, profile_parameters
from se3_fast.backends.protocol import Support


def support(is_compiled: bool) -> Support:
    """Not in compiled graphs, which the formula serves as well."""
    return Support.no("compiled graphs take the formula") if is_compiled else Support()


def radial(invariants: Tensor, profiles: Profiles) -> list[Tensor]:
    """h of each profile, [E, K], in the compute dtype."""
    how, tensors = recipe(invariants, profiles)
    return how.make(tensors)


def recipe(invariants: Tensor, profiles: Profiles) -> Recipe:
    """How to make h again."""
    first, _ = profiles[0]
    dtype = compute_dtype(invariants)
    operation = CppRadial(len(first.bias), first.scale is not None, len(profiles), dtype)
    return Recipe(CppRemake(operation, accumulation_dtype(dtype)), (invariants, *profile_parameters(profiles)))


@dataclass(frozen=True)
class CppRemake:
    """How h is made from the invariants and the parameters of the profiles.

    Attributes:
        operation: the operation.
        operand_dtype: what it computes in, float32 or float64.
    """

    operation: CppRadial
    operand_dtype: torch.dtype

    def make(self, tensors: Tensors) -> list[Tensor]:
        """h of each group, [E, K], from the invariants and the parameters; recorded where gradients are."""
        return list(self.operation.apply(*(in_dtype(tensor, self.operand_dtype) for tensor in tensors if tensor is not None)))


@dataclass(frozen=True, eq=False)
class CppRadial(Operation):
    """All profiles by the compiled CPU operation (``csrc/radial.cpp``); keeps the invariants and the parameters.

    Operands: the invariants [E, e]; the parameters of all groups in a row, each in the order of RadialLayer. Results: h of each
    group, [E, K].

    Attributes:
        width: K.
        has_norm: whether the layers are normalised.
        num_groups: how many profiles.
        dtype: of h.
    """

    takes_missing: ClassVar[bool] = True

    width: int
    has_norm: bool
    num_groups: int
    dtype: torch.dtype

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """h."""
        invariants, *parameters = operands
        table = _table(parameters, self.num_groups)
        arguments = (self.width, self.has_norm, LAYER_NORM_EPSILON)
        return in_dtype(torch.ops.se3_fast_cpp.radial(invariants.contiguous(), table, *arguments), self.dtype).unbind()

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
            in_dtype(given, invariants.dtype), invariants.contiguous(), _table(chosen, len(reached)), *arguments
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
        return PlainFormula(in_at_least_float32(of_groups, self.num_groups, self.has_norm))


def _table(parameters: Sequence[Tensor], num_groups: int) -> Tensor:
    """The parameters in a row per group."""
    return torch.cat([parameter.flatten() for parameter in parameters]).view(num_groups, -1)
