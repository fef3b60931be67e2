"""Linear maps of the channels of each degree by the compiled CPU operation (``csrc/linear.cpp``), all degrees in one call.

The parts of the input are read as they lie in memory. What comes per head is taken apart first: the attention of this backend has
its features degree by degree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, compute_dtype, in_at_least_float32, in_dtype
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.cpp.stored_dtype import stored_dtype
from se3_fast.backends.protocol import Support
from se3_fast.fiber import Features, HeadFeatures, per_head


def support(is_compiled: bool) -> Support:
    """Not in compiled graphs, which the formula serves as well."""
    return Support.no("compiled graphs take the formula") if is_compiled else Support()


def linear(weights: Mapping[str, Tensor], parts: Sequence[Features | HeadFeatures], row: Tensor | None = None) -> Features:
    """See :func:`se3_fast.ops.linear.linear`."""
    by_degree = [part.by_degree() if isinstance(part, HeadFeatures) else part for part in parts]
    dtype = compute_dtype(next(iter(weights.values())))
    given = [[part[degree] for part in by_degree if degree in part] for degree in weights]
    stored, computed_in = stored_dtype(dtype), accumulation_dtype(dtype)
    tensors = [in_dtype(in_dtype(tensor, dtype), stored).contiguous() for of_degree in given for tensor in of_degree]
    rounded = weights.values() if stored != computed_in else (in_dtype(weight, dtype) for weight in weights.values())
    maps = [in_dtype(weight, computed_in).contiguous() for weight in rounded]  # for bfloat16 the operation rounds them
    results = CppLinear(tuple(map(len, given))).apply(*maps, *tensors)
    return {degree: in_dtype(result, dtype) for degree, result in zip(weights, results, strict=True)}


def linear_per_head(weights: Mapping[str, Tensor], features: Features, num_heads: int, row: Tensor | None = None) -> HeadFeatures:
    """See :func:`se3_fast.ops.linear.linear_per_head`."""
    channels = tuple((int(degree), len(weight)) for degree, weight in weights.items())
    return HeadFeatures(per_head(linear(weights, [features]), num_heads), channels)


@dataclass(frozen=True, eq=False)
class CppLinear(Operation):
    """The maps of all degrees by the compiled CPU operation; keeps weights and input.

    Operands: the weights by degree, then of each degree the parts of its input. Results: the outputs by degree.

    Attributes:
        counts: how many parts the input of each degree has.
    """

    takes_missing: ClassVar[bool] = True

    counts: tuple[int, ...]

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results."""
        weights, parts = self._split(operands)
        return torch.ops.se3_fast_cpp.linear(parts, self.counts, weights)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the weights, where one of them is wanted, and of the parts likewise; of the degrees that are reached."""
        weights, parts = self._split(operands)
        with_weights, with_parts = (any(of_operands) for of_operands in self._split(wanted))
        reached = [number for number, gradient in enumerate(gradients) if gradient is not None]
        found = torch.ops.se3_fast_cpp.linear_backward(
            [gradients[number].contiguous() for number in reached],
            [part for number, part in zip(self._degree_of_parts(), parts, strict=True) if number in reached],
            [self.counts[number] for number in reached],
            [weights[number] for number in reached],
            with_parts,
            with_weights,
        )
        remaining = iter(found)
        of_parts = [next(remaining) if with_parts and number in reached else None for number in self._degree_of_parts()]
        of_weights = [next(remaining) if with_weights and number in reached else None for number in range(len(weights))]
        return *of_weights, *of_parts

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(self._in_pytorch))

    def _split(self, operands: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """What belongs to the weights, and to the parts."""
        return operands[: len(self.counts)], operands[len(self.counts) :]

    def _degree_of_parts(self) -> list[int]:
        """The number of the degree that each part belongs to."""
        return [number for number, count in enumerate(self.counts) for _ in range(count)]

    def _in_pytorch(self, operands: Sequence[Tensor]) -> list[Tensor]:
        weights, parts = self._split(operands)
        remaining = iter(parts)
        inputs = [torch.cat([next(remaining) for _ in range(count)], 1) for count in self.counts]
        return [weight @ features for weight, features in zip(weights, inputs, strict=True)]
