"""Where the tensors of a basis dict come from, remembered beside them.

A basis is told to be as :func:`~se3_fast.ops.basis.get_basis` made it by its identity and its count of changes in place: that costs
no look at its values, and the dicts stay plain dicts that can be copied, saved and sent. Tensors with a graph are remembered at
their node of it, so that a product with a basis is known for one too (:mod:`se3_fast.ops.given_bases`).

Changes that PyTorch does not count (through ``.data``, or a NumPy array of the same memory) are not seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_AT_NODE = "se3_fast.basis"


class Origin:
    """The relative positions of one call of ``get_basis``; each call has its own.

    Args:
        rel_pos: [E, 3], a copy where the bases are constants, otherwise what they are differentiated with respect to.
    """

    def __init__(self, rel_pos: Tensor) -> None:
        self.rel_pos = rel_pos
        self._version = rel_pos._version

    @property
    def is_current(self) -> bool:
        """Whether the positions still are what the bases were made from."""
        return self.rel_pos._version == self._version


class Made(NamedTuple):
    """A basis as it was made: of which call, and the key it has."""

    origin: Origin
    key: str


class _Versioned(NamedTuple):
    made: Made
    version: int


class _Parents(NamedTuple):
    version: int
    pairwise: dict[str, Tensor]
    versions: tuple[int, ...]


_constants: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_parents: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember_pairwise(bases: Mapping[str, Tensor], rel_pos: Tensor) -> None:
    """Remember bases just made from relative positions [E, 3]. In compiled code nothing is remembered."""
    if torch.compiler.is_compiling():
        return
    _remember(bases, Origin(rel_pos if next(iter(bases.values())).requires_grad else rel_pos.detach().clone()))


def remember_fused(fused: Mapping[str, Tensor], pairwise: Mapping[str, Tensor]) -> None:
    """Remember fused bases just made from pairwise ones, which anybody may have made."""
    if torch.compiler.is_compiling() or any(basis.is_inference() for basis in pairwise.values()):
        return
    versions = tuple(basis._version for basis in pairwise.values())
    for basis in fused.values():
        _parents[basis] = _Parents(basis._version, dict(pairwise), versions)
    origin = common_origin(pairwise)
    if origin is not None:
        _remember(fused, origin)


def common_origin(bases: Mapping[str, Tensor]) -> Origin | None:
    """The call that made all these bases, if they are unchanged and under their keys."""
    origin: Origin | None = None
    for key, basis in bases.items():
        made = made_as(basis)
        if made is None or made.key != key or made.origin is not (origin or made.origin):
            return None
        origin = made.origin
    return origin if origin is not None and origin.is_current else None


def made_as(basis: Tensor) -> Made | None:
    """How a basis was made, if it is unchanged and nobody wants a gradient of its own for it."""
    if basis.retains_grad or basis._backward_hooks or (basis.grad_fn is None and basis.requires_grad):
        return None
    remembered = _constants.get(basis) if basis.grad_fn is None else _at_node(basis.grad_fn).get(basis.output_nr)
    return remembered.made if remembered is not None and remembered.version == basis._version else None


def made_at(node: torch.autograd.graph.Node, number: int) -> Made | None:
    """How the output of a node of an autograd graph was made, if it is a basis."""
    remembered = _at_node(node).get(number)
    return None if remembered is None else remembered.made


def without_derived(bases: dict[str, Tensor]) -> dict[str, Tensor]:
    """The bases that say all: without fused ones that were made from pairwise ones of the same dict and not changed since.

    The basis ``'0,0'``, which a dict with fused ones comes without, is there again.
    """
    fused = {key: basis for key, basis in bases.items() if "fused" in key}
    pairwise = {key: basis for key, basis in bases.items() if key not in fused}
    result = dict(pairwise)
    for key, basis in fused.items():
        parents: _Parents | None = _parents.get(basis)
        if parents is not None and _is_derived(basis, parents, pairwise):
            result["0,0"] = parents.pairwise["0,0"]
        else:
            result[key] = basis
    return result


def _is_derived(basis: Tensor, parents: _Parents, pairwise: dict[str, Tensor]) -> bool:
    made_from = parents.pairwise
    return (
        basis._version == parents.version
        and tuple(parent._version for parent in made_from.values()) == parents.versions
        and all(made_from.get(key) is basis for key, basis in pairwise.items())
    )


def _remember(bases: Mapping[str, Tensor], origin: Origin) -> None:
    for key, basis in bases.items():
        remembered = _Versioned(Made(origin, key), basis._version)
        if basis.grad_fn is None:
            _constants[basis] = remembered
        else:
            _at_node(basis.grad_fn)[basis.output_nr] = remembered


def _at_node(node: torch.autograd.graph.Node) -> dict[int, _Versioned]:
    """What is remembered of the outputs of a node."""
    of_node: dict[str, Any] = node.metadata  # type: ignore[assignment]
    found: dict[int, _Versioned] = of_node.setdefault(_AT_NODE, {})
    return found
