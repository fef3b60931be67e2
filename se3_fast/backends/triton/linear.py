"""Linear maps of the channels of each degree by the Triton kernels (``kernels/linear.py``).

All degrees go in one launch, the parts of the input as they lie in memory; input and output may be laid out per attention head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import compute_dtype, dtype_name, go_together, in_at_least_float32
from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends import compiled
from se3_fast.backends.dense import linear as formula
from se3_fast.fiber import Features, HeadFeatures, per_head
from se3_fast.kernels import linear as kernels
from se3_fast.kernels.linear import Shape


def linear(weights: Mapping[str, Tensor], parts: Sequence[Features | HeadFeatures], row: Tensor | None = None) -> Features:
    """See :func:`se3_fast.ops.linear.linear`."""
    return dict(zip(weights, _fused(weights, parts, 0, row), strict=True))


def linear_per_head(weights: Mapping[str, Tensor], features: Features, num_heads: int, row: Tensor | None = None) -> HeadFeatures:
    """See :func:`se3_fast.ops.linear.linear_per_head`."""
    channels = tuple((int(degree), len(weight)) for degree, weight in weights.items())
    if torch.compiler.is_compiling():
        return HeadFeatures(per_head(linear(weights, [features]), num_heads), channels)
    (values,) = _fused(weights, [features], num_heads, row)
    return HeadFeatures(values, channels)


def _fused(
    weights: Mapping[str, Tensor], parts: Sequence[Features | HeadFeatures], heads_out: int, row: Tensor | None
) -> Sequence[Tensor]:
    dtype = compute_dtype(next(iter(weights.values())))
    if torch.compiler.is_compiling():
        parts = [part.by_degree() if isinstance(part, HeadFeatures) else part for part in parts]
    parts = [part for part in parts if _named(weights, part)]
    channels = tuple(_channels(part, weights) for part in parts)
    _check(weights, parts, channels, dtype)
    heads = tuple(part.values.shape[1] if isinstance(part, HeadFeatures) else 0 for part in parts)
    factors = list(weights.values()) if row is None else [row]
    operands = [*factors, *(tensor for part in parts for _, tensor in _named(weights, part))]
    components = tuple(2 * int(degree) + 1 for degree in weights)
    channels_out = tuple(weight.shape[0] for weight in weights.values())
    if torch.compiler.is_compiling():
        degrees = [weights, *([degree for degree in weights if degree in part] for part in parts)]
        return compiled.linear(";".join([dtype_name(dtype), *(",".join(of_part) for of_part in degrees)]), operands)
    shape = Shape(components, channels, channels_out, heads, heads_out, dtype)
    return FusedLinear(shape, row is not None).apply(*operands)


def _channels(part: Features | HeadFeatures, degrees: Iterable[str]) -> tuple[int, ...]:
    """Channels of every degree, 0 where the part lacks it."""
    if isinstance(part, HeadFeatures):
        of_part = {str(degree): channels for degree, channels in part.channels}
        return tuple(of_part.get(degree, 0) for degree in degrees)
    return tuple(part[degree].shape[1] if degree in part else 0 for degree in degrees)


def _check(
    weights: Mapping[str, Tensor],
    parts: Sequence[Features | HeadFeatures],
    channels: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
) -> None:
    for part in parts:
        if isinstance(part, HeadFeatures) and [str(degree) for degree, _ in part.channels] != list(weights):
            raise ValueError(f"features: expected degrees {list(weights)} per head, got {[degree for degree, _ in part.channels]}")
    for number, (degree, weight) in enumerate(weights.items()):
        given = sum(of_part[number] for of_part in channels)
        if given != weight.shape[1]:
            raise ValueError(f"features['{degree}']: expected {weight.shape[1]} channels, got {given}")
    num_nodes = None
    for part in parts:
        for name, tensor in _named(weights, part):
            num_nodes = tensor.shape[0] if num_nodes is None else num_nodes
            if tensor.shape[0] != num_nodes:
                raise ValueError(f"{name}: expected features of {num_nodes} nodes, got {tensor.shape[0]}")
            if not go_together(tensor.dtype, dtype, tensor.device.type):
                raise ValueError(f"{name}: expected {dtype} as the weights have, got {tensor.dtype}")


def _named(weights: Mapping[str, Tensor], part: Features | HeadFeatures) -> list[tuple[str, Tensor]]:
    """The tensors of a part that are read, with their names in messages."""
    if isinstance(part, HeadFeatures):
        return [("features", part.values)]
    return [(f"features['{degree}']", part[degree]) for degree in weights if degree in part]


@dataclass(frozen=True, eq=False)
class FusedLinear(Operation):
    """The maps of all degrees by one Triton kernel each way; keeps weights and input.

    Operands: the weights by degree, or in a row; then the tensors of the parts. Results: the outputs by degree, or the one per
    head.

    Attributes:
        shape: of all tensors.
        has_row: whether the weights come in a row.
    """

    shape: Shape
    has_row: bool

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results."""
        weights, parts = _contiguous_parts(self.shape, self.has_row, operands)
        return kernels.forward(parts, weights, self.shape)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Gradients of the weights and of the parts."""
        weights, parts = _contiguous_parts(self.shape, self.has_row, operands)
        contiguous = [gradient.contiguous() for gradient in gradients]
        programs = len(operands[0]) if self.has_row else None
        num_factors = 1 if self.has_row else len(weights)
        sums, of_parts = kernels.backward(contiguous, parts, weights, self.shape, any(wanted[num_factors:]), programs)
        of_weights: Tensors = [sums] if self.has_row else _by_degree(self.shape, sums.sum(0).to(operands[0].dtype))
        tensors = [tensor for part in of_parts for tensor in part]
        return *of_weights, *(tensors if tensors else [None] * (len(operands) - num_factors))

    @property
    def formula(self) -> PlainFormula:
        """The published one."""
        return PlainFormula(in_at_least_float32(_in_pytorch, self.shape, self.has_row))


def _by_degree(shape: Shape, row: Tensor) -> list[Tensor]:
    """The weights of every degree from all in a row."""
    split = row.split([out * channels for out, channels in shape.weight_shapes])
    return [part.view(sizes) for part, sizes in zip(split, shape.weight_shapes, strict=True)]


def _contiguous_parts(shape: Shape, has_row: bool, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """As :func:`_parted`, for the kernels."""
    weights, parts = _parted(shape, has_row, operands)
    return [weight.contiguous() for weight in weights], [[tensor.contiguous() for tensor in part] for part in parts]


def _parted(shape: Shape, has_row: bool, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The weights, and the tensors of every part."""
    remaining = iter(operands)
    weights = _by_degree(shape, next(remaining)[0]) if has_row else [next(remaining) for _ in shape.components]
    counts = (1 if heads else sum(map(bool, channels)) for channels, heads in zip(shape.channels_in, shape.heads_in, strict=True))
    return weights, [[next(remaining) for _ in range(count)] for count in counts]


def _in_pytorch(shape: Shape, has_row: bool, operands: Sequence[Tensor]) -> list[Tensor]:
    """What :class:`FusedLinear` computes, from its tensors."""
    dtype = torch.promote_types(shape.dtype, torch.float32)
    weights, tensors = _parted(shape, has_row, [operand.to(dtype) for operand in operands])
    degrees = [str(size // 2) for size in shape.components]
    parts: list[Features] = []
    for part, channels, heads in zip(tensors, shape.channels_in, shape.heads_in, strict=True):
        present = [degree for degree, count in zip(degrees, channels, strict=True) if count]
        of_heads = tuple(zip(map(int, degrees), channels, strict=True))
        parts.append(HeadFeatures(part[0], of_heads).by_degree() if heads else dict(zip(present, part, strict=True)))
    outputs = formula.linear(dict(zip(degrees, weights, strict=True)), parts)
    if not shape.heads_out:
        return list(outputs.values())
    return [per_head(outputs, shape.heads_out)]


def run_node(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The node of compiled graphs: the outputs by degree.

    In ``description`` stand the dtype, the degrees of the weights, and those of each part.
    """
    dtype_name, *of_all = description.split(";")
    degrees, *of_parts = [part.split(",") for part in of_all]
    remaining = iter(operands)
    weights = [next(remaining) for _ in degrees]
    parts = [{degree: next(remaining) for degree in of_part} for of_part in of_parts]
    shape = Shape(
        components=tuple(2 * int(degree) + 1 for degree in degrees),
        channels_in=tuple(_channels(part, degrees) for part in parts),
        channels_out=tuple(len(weight) for weight in weights),
        heads_in=(0,) * len(parts),
        heads_out=0,
        dtype=getattr(torch, dtype_name),
    )
    return list(FusedLinear(shape, False).apply(*operands))
