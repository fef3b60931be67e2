"""The hidden layers of radial profiles by the Triton kernels (``kernels/radial.py``): all in one call each way."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import compute_dtype, dtype_name, in_at_least_float32
from se3_fast.autograd.modes import constant, known_when_compiled
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends import compiled
from se3_fast.backends.dense.radial import LAYER_NORM_EPSILON, of_groups
from se3_fast.backends.launch_tables import int64_table
from se3_fast.backends.operands import Profiles, Recipe, profile_parameters
from se3_fast.kernels import radial as kernels
from se3_fast.kernels.radial import Shape
from se3_fast.kernels.table_rows import GradientParts


def radial(invariants: Tensor, profiles: Profiles) -> Tensor:
    """h of all profiles, [groups, E, K], in the compute dtype."""
    shape, dtype = _shape_of(profiles), compute_dtype(invariants)
    table = torch.cat([tensor.flatten() for tensor in profile_parameters(profiles)]).view(len(profiles), -1)
    if torch.compiler.is_compiling():
        (hidden,) = compiled.radial(_description(shape.width, shape.has_norm, dtype), [invariants, table])
    else:
        (hidden,) = FusedRadial(shape, dtype).apply(invariants, table)  # [groups, E, K]
    return hidden


def recipe(invariants: Tensor, profiles: Profiles) -> Recipe | None:
    """None: the kernels of the convolution read h of all groups in one tensor, which they keep."""
    return None


def radial_of_layers(invariants: Tensor, layers: Sequence[Profiles], row: Tensor, splits: Sequence[int]) -> list[Tensor]:
    """As :func:`radial` for several convolutions at once.

    Args:
        invariants: [E, e], the same for all.
        layers: the profiles of each convolution, all with the same number of inputs and units, and all with or without layer norm.
        row: the parameters of all, [P, n], in the order of :func:`profile_parameters`.
        splits: S of each convolution.

    Returns:
        h of each convolution S times over, [S, groups, E, K], so that its gradient may come in S parts; in the compute dtype.
    """
    shape = _shape_of(layers[0])
    counts = tuple(len(profiles) for profiles in layers)
    return list(FusedRadialOfLayers(shape, compute_dtype(invariants), counts, tuple(splits)).apply(invariants, row))


def _shape_of(profiles: Profiles) -> Shape:
    first, _ = profiles[0]
    return Shape(width=len(first.bias), has_norm=first.scale is not None, epsilon=LAYER_NORM_EPSILON)


@known_when_compiled
def _description(width: int, has_norm: bool, dtype: torch.dtype) -> str:
    return json.dumps([width, has_norm, dtype_name(dtype)])


def run_node(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The node of compiled graphs."""
    width, has_norm, dtype_name = json.loads(description)
    shape = Shape(width, has_norm, LAYER_NORM_EPSILON)
    return list(FusedRadial(shape, getattr(torch, dtype_name)).apply(*operands))


@dataclass(frozen=True, eq=False)
class FusedRadial(Operation):
    """All profiles by one Triton kernel each way; keeps the invariants and the parameters.

    Operands: the invariants [E, e]; the parameters in a row per group, [groups, n]. Result: h of all groups, [groups, E, K].
    """

    shape: Shape
    dtype: torch.dtype

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """h."""
        invariants, parameters = operands
        return [kernels.forward(invariants.contiguous(), parameters, self.shape, self.dtype)]

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the invariants, where they need one, and of the parameters."""
        invariants, parameters = operands
        given, parts = gradients[0].contiguous(), _gradient_parts((len(parameters),), (1,), invariants.device)
        of_invariants, sums = kernels.backward(invariants.contiguous(), parameters, given, parts, self.shape, wanted[0])
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
        splits: S of each convolution.
    """

    shape: Shape
    dtype: torch.dtype
    counts: tuple[int, ...]
    splits: tuple[int, ...]

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """h of each convolution."""
        invariants, row = operands
        return self._split(kernels.forward(invariants.contiguous(), row[0].view(sum(self.counts), -1), self.shape, self.dtype))

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the invariants, where they need one, and of the parameters in parts."""
        invariants, row = operands
        of_invariants, sums = kernels.backward(
            invariants.contiguous(),
            row[0].view(sum(self.counts), -1),
            torch.cat([gradient.flatten(0, 1) for gradient in gradients]),
            _gradient_parts(self.counts, self.splits, invariants.device),
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
        of_each = zip(hidden.split(self.counts), self.splits, strict=True)
        return [of_one.expand(splits, -1, -1, -1) for of_one, splits in of_each]


@constant
def _gradient_parts(counts: tuple[int, ...], splits: tuple[int, ...], device: torch.device) -> Tensor:
    """Where the gradient of h of each group is, as ``kernels/radial.py`` reads it: the parts of all convolutions, [S, groups] each,
    stand one after the other."""
    starts = accumulate((count * parts for count, parts in zip(counts, splits, strict=True)), initial=0)
    rows = [
        GradientParts(start + group, parts, count)
        for start, count, parts in zip(starts, counts, splits, strict=False)
        for group in range(count)
    ]
    return int64_table(rows, GradientParts, device)


def _of_table(shape: Shape, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`FusedRadial` computes, from its tensors."""
    invariants, table = operands
    width = shape.width
    shapes: list[tuple[int, ...]] = []
    for num_inputs in (invariants.shape[1], width):
        shapes += [(width, num_inputs), (width,), *([(width,), (width,)] if shape.has_norm else [])]
    rows = (row.split([math.prod(part) for part in shapes]) for row in table)
    parameters = [part.view(of_part) for row in rows for part, of_part in zip(row, shapes, strict=True)]
    return [torch.stack(of_groups(len(table), shape.has_norm, [invariants, *parameters]))]
