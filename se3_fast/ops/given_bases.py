"""What a published basis dict says that is not as ``get_basis`` made it.

Interatomic potentials multiply every basis by a cutoff. Such a dict is that of some directions times a factor per edge, and the
backends that need no bases compute with these two. Whether a dict is of that kind is found out by its values: the directions are
read off the basis ``'0,1'``, the factor off ``'0,0'``, and all bases are compared with what these imply. Where a dict is to be
differentiated, its values do not say how it depends on what it was made from; then every basis must also be a product with the same
factors in its autograd graph, so that the factor alone carries all gradients.

The comparison makes the bases once more and waits for the device once; it is done once for a dict, however many layers take it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from se3_fast.backends.dense.edge_frames import edge_directions
from se3_fast.ops.basis import get_basis, update_basis_with_fused
from se3_fast.ops.basis_origin import Made, Origin, common_origin, made_at, without_derived
from se3_fast.so3 import Y0

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest error of a basis of factor 1 that is taken for rounding."""

_VIEWS = {f"{name}Backward0" for name in ("Unsqueeze", "Squeeze", "View", "UnsafeView", "ReshapeAlias", "Alias", "ToCopy")}
"""Nodes through which a factor per edge stays one: they keep the order of its values."""

GraphOutput = tuple[torch.autograd.graph.Node, int]


class Directions(NamedTuple):
    """What a dict is the bases of.

    Attributes:
        rel_pos: [E, 3] relative positions or directions; they require grad if the bases are a function of them.
        factor: [E], by which the bases of every edge are multiplied, with its graph; None where it is 1.
        by_formula: [E] bool, the edges whose messages take the given tensors, where there are any: their factor is zero and
            requires grad, and no value says what it multiplies.
    """

    rel_pos: Tensor
    factor: Tensor | None = None
    by_formula: Tensor | None = None


def directions_of(bases: dict[str, Tensor], max_degree: int, rel_pos: Tensor | None = None) -> Directions | None:
    """The directions, and the factor per edge, that a basis dict was made from.

    Args:
        bases: pairwise and fused bases for degrees up to ``max_degree``.
        max_degree: largest degree.
        rel_pos: [E, 3], what the directions probably are: taken for them at every edge where they are the dict's to rounding.

    Returns:
        None where the dict is nothing of the kind, or differentiated in a way that a factor does not express; always in compiled
        code, which reads no values.
    """
    if torch.compiler.is_compiling():
        return None
    bases = without_derived(bases)
    origin = common_origin(bases)
    if origin is not None:
        return Directions(origin.rel_pos)
    if not any(basis.requires_grad for basis in bases.values()):
        compared = _compared(bases, max_degree, rel_pos)
        return None if compared is None else Directions(compared.rel_pos, compared.factor)
    return _differentiated(bases, max_degree, rel_pos)


def _differentiated(bases: dict[str, Tensor], max_degree: int, rel_pos: Tensor | None) -> Directions | None:
    """As :func:`directions_of`, for bases of which some require grad."""
    product = _common_product(bases)
    if product is None:
        return None
    origin = product.origin
    compared = _compared(bases, max_degree, rel_pos if origin is None else origin.rel_pos, is_certain=origin is not None)
    if compared is None:
        return None
    directions = compared.rel_pos if origin is None else origin.rel_pos
    with torch.enable_grad():  # whatever the mode is now: the geometry may be used in another
        factor = _factor(bases)
        if product.is_complete or not compared.has_zeros:
            return Directions(directions, factor)
        is_zero = factor.detach() == 0
        return Directions(directions, torch.where(is_zero, 0.0, factor), is_zero)


# Products in an autograd graph


class _Product(NamedTuple):
    """What all bases of a dict are products of, besides constants.

    Attributes:
        origin: where the bases in them come from; None where these are constants.
        is_complete: there are no constants: the bases are exactly those of ``origin`` times the factors.
    """

    origin: Origin | None
    is_complete: bool


class _Operands(NamedTuple):
    """What a basis is the product of: bases of ``get_basis``, factors per edge, and constants."""

    made: list[Made]
    factors: list[GraphOutput]
    has_constants: bool


def _common_product(bases: dict[str, Tensor]) -> _Product | None:
    """What all bases are products of, if that is a basis each and the same factors per edge for all."""
    products: list[_Operands] = []
    origins: set[Origin | None] = set()
    for key, basis in bases.items():
        product = _operands(basis)
        if product is None or [made.key for made in product.made] not in ([], [key]):
            return None
        products.append(product)
        origins.add(product.made[0].origin if product.made else None)
    origin = origins.pop()
    is_current = origin is None or origin.is_current
    if origins or not is_current or not all(_are_same(product.factors, products[0].factors) for product in products):
        return None
    return _Product(origin, not any(product.has_constants for product in products))


def _are_same(factors: Sequence[GraphOutput], others: Sequence[GraphOutput]) -> bool:
    """The same outputs of the same nodes, in any order."""
    remaining = list(others)
    for factor in factors:
        place = next((place for place, other in enumerate(remaining) if other[0] is factor[0] and other[1] == factor[1]), None)
        if place is None:
            return False
        del remaining[place]
    return not remaining


def _operands(basis: Tensor) -> _Operands | None:
    """What a basis is the product of; None for another function, and where somebody wants the gradient of the basis itself."""
    if basis.grad_fn is None or basis.retains_grad or basis._backward_hooks:
        return None
    found = _Operands([], [], False)
    pending: list[tuple[torch.autograd.graph.Node | None, int]] = [(basis.grad_fn, basis.output_nr)]
    while pending:
        node, number = pending.pop()
        made = None if node is None else made_at(node, number)
        if node is None:
            found = found._replace(has_constants=True)
        elif made is not None:
            found.made.append(made)
        elif node.name() == "MulBackward0":
            pending.extend(node.next_functions)
        else:
            factor = _factor_per_edge(node, number, len(basis))
            if factor is None:
                return None
            found.factors.append(factor)
    return found


def _factor_per_edge(node: torch.autograd.graph.Node, number: int, num_edges: int) -> GraphOutput | None:
    """Where a factor with a value per edge, or one value for all, comes from; None where it is something else."""
    is_expanded = True  # the axes are those of what comes next: the edges are the first of four
    dimensions = 4
    while True:
        shape = node._input_metadata[number].shape  # of the output of this number
        is_aligned = not is_expanded or len(shape) == dimensions
        is_expanded, dimensions = node.name() == "ExpandBackward0", len(shape)
        is_per_edge = is_aligned and list(shape[:1]) == [num_edges] and (is_expanded or math.prod(shape) == num_edges)
        if not is_per_edge and math.prod(shape) != 1:
            return None
        source, source_number = node.next_functions[0] if is_expanded or node.name() in _VIEWS else (None, 0)
        if source is None:
            return node, number
        node, number = source, source_number


# Values


class _Compared(NamedTuple):
    """Directions that a dict was found to be the bases of; constants.

    Attributes:
        rel_pos: [E, 3]; not zero where the factor is.
        factor: [E], or None where it is 1 to rounding.
        has_zeros: whether the factor is zero anywhere.
    """

    rel_pos: Tensor
    factor: Tensor | None
    has_zeros: bool


class _Verdict(NamedTuple):
    """What was found of some tensors, as they were then."""

    signature: tuple[object, ...]
    tensors: tuple[weakref.ref[Tensor], ...]
    compared: _Compared | None


_verdicts: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _compared(bases: dict[str, Tensor], max_degree: int, rel_pos: Tensor | None, is_certain: bool = False) -> _Compared | None:
    """The directions and the factor that the values are those of, found at the first call with these tensors and kept.

    ``rel_pos`` are the probable directions; with ``is_certain`` there may be no others.
    """
    if any(basis.is_inference() for basis in bases.values()):  # their changes are not counted
        return _compare(bases, max_degree, rel_pos, is_certain)
    tensors, anchor = tuple(bases.values()), next(iter(bases.values()))
    dtype = _rounding_dtype(bases)
    signature = (max_degree, dtype, rel_pos is not None, is_certain, *bases, *(tensor._version for tensor in tensors))
    verdict: _Verdict | None = _verdicts.get(anchor)
    if (
        verdict is None
        or verdict.signature != signature
        or any(of_verdict() is not tensor for of_verdict, tensor in zip(verdict.tensors, tensors, strict=True))
    ):
        verdict = _Verdict(signature, tuple(map(weakref.ref, tensors)), _compare(bases, max_degree, rel_pos, is_certain))
        _verdicts[anchor] = verdict
    return verdict.compared


@torch.no_grad()
def _compare(bases: dict[str, Tensor], max_degree: int, rel_pos: Tensor | None, is_certain: bool) -> _Compared | None:
    tolerance = TOLERANCE[_rounding_dtype(bases)]
    bases = {key: basis.detach() for key, basis in bases.items()}
    dtype = torch.float64 if any(basis.dtype == torch.float64 for basis in bases.values()) else torch.float32
    factor = _factor({key: basis.to(dtype) for key, basis in bases.items()})
    if is_certain and rel_pos is not None:
        directions = edge_directions(rel_pos.detach().to(dtype))
    elif not set(bases) & {"0,1", "1,0"} and max_degree > 0:
        return None
    else:
        directions = _directions(bases, factor, max_degree, rel_pos, tolerance)
    error = factor.new_zeros(len(factor))
    for key, expected in _expected(bases, directions, max_degree).items():
        difference = bases[key][..., : expected.shape[-1]] - factor[:, None, None, None] * expected
        error = torch.maximum(error, difference.abs().flatten(1).amax(1))  # not a number where one is not
    smallest = max(torch.finfo(basis.dtype).smallest_normal * torch.finfo(basis.dtype).eps for basis in bases.values())
    is_rounding = error <= tolerance * factor.abs() + 16 * smallest
    is_zero, is_one = factor == 0, (factor - 1).abs() <= tolerance
    agrees, has_zeros, is_plain = torch.stack([is_rounding.all(), is_zero.any(), is_one.all()]).tolist()
    return _Compared(directions, None if is_plain else factor, has_zeros) if agrees else None


def _directions(bases: dict[str, Tensor], factor: Tensor, max_degree: int, rel_pos: Tensor | None, tolerance: float) -> Tensor:
    """[E, 3] unit vectors read off the bases, or (0, 0, 0) for an edge that has no direction but a factor."""
    axis = factor.new_tensor([0.0, 1.0, 0.0]).expand(len(factor), 3)
    if max_degree == 0:
        return axis
    read = bases["0,1"][:, 0, 0, :3] if "0,1" in bases else bases["1,0"][:, :, 0, 0]
    directions = edge_directions(read.to(factor) * factor.sign()[:, None])
    is_zero = (factor == 0)[:, None]
    if rel_pos is None:
        return torch.where(is_zero, axis, directions)
    probable = edge_directions(rel_pos.detach().to(factor))
    is_probable = is_zero | ((directions - probable).abs().amax(1, keepdim=True) <= 4 * tolerance)
    return torch.where(is_probable, probable, directions)


def _factor(bases: dict[str, Tensor]) -> Tensor:
    """By what the bases of each edge are multiplied, [E], from the one path that no direction enters."""
    for key in ("0,0", "out0_fused", "in0_fused", "fully_fused"):
        if key in bases:
            return bases[key][:, 0, 0, 0] / Y0
    degree = min(int(key.partition(",")[0]) for key in bases if len(set(key.split(","))) == 1)
    return bases[f"{degree},{degree}"][:, 0, 0, 0] * (math.sqrt(2 * degree + 1) / Y0)


def _expected(bases: dict[str, Tensor], directions: Tensor, max_degree: int) -> dict[str, Tensor]:
    """The bases of these keys for directions, none of them padded but as wide as they are said to be."""
    made = get_basis(directions, max_degree)
    if any("fused" in key for key in bases):
        made |= update_basis_with_fused(made, max_degree, use_pad_trick=False, fully_fused="fully_fused" in bases)
    return {key: made[key] for key in bases}


def _rounding_dtype(bases: dict[str, Tensor]) -> torch.dtype:
    """The coarsest of the dtypes that the bases have and that the convolutions compute in."""
    dtypes = {basis.dtype for basis in bases.values()}
    device_type = next(iter(bases.values())).device.type
    if torch.is_autocast_enabled(device_type):
        dtypes.add(torch.get_autocast_dtype(device_type))
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
