"""The published bases by the Triton kernels (``kernels/basis.py``): all pairwise ones in one launch, all fused ones in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.autograd.operation import LinearOperation, Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.dense import basis as formula
from se3_fast.kernels import basis as kernels
from se3_fast.kernels import basis_tables
from se3_fast.kernels.basis_tables import FusedTables, PairwiseTables
from se3_fast.so3 import wigner_3j


def pairwise(rel_pos: Tensor, max_degree: int, is_padded: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """See :func:`se3_fast.ops.basis.get_basis`."""
    sum_dtype = torch.float64 if torch.float64 in (rel_pos.dtype, dtype) else torch.float32
    tables = _pairwise_tables(max_degree, is_padded, sum_dtype, rel_pos.device)
    operation = _PairwiseBases(tables, dtype, max_degree, is_padded)
    return dict(zip(tables.layout.shapes, operation.apply(rel_pos), strict=True))


def fused(bases: dict[str, Tensor], max_degree: int, use_pad_trick: bool, fully_fused: bool) -> dict[str, Tensor]:
    """See :func:`se3_fast.ops.basis.update_basis_with_fused`."""
    tables = _fused_tables(max_degree, use_pad_trick, fully_fused, bases["0,0"].device)
    num_edges = len(bases["0,0"])
    for key, shape in tables.pairwise.shapes.items():
        if bases[key].shape != (num_edges, *shape):
            raise ValueError(f"basis['{key}']: expected shape {[num_edges, *shape]}, got {list(bases[key].shape)}")
    of_pairs = [bases[key] for key in tables.pairwise.shapes]
    like = _Like(num_edges, of_pairs[0].dtype, of_pairs[0].device)
    found = _FusedBases(tables, like).apply(*of_pairs)
    return {key: basis for key, basis in zip(tables.layout.shapes, found, strict=True) if basis is not None}


@constant
def _pairwise_tables(max_degree: int, is_padded: bool, dtype: torch.dtype, device: torch.device) -> PairwiseTables:
    return basis_tables.pairwise_tables(max_degree, is_padded, wigner_3j, dtype, device)


@constant
def _fused_tables(max_degree: int, is_padded: bool, fully_fused: bool, device: torch.device) -> FusedTables:
    return basis_tables.fused_tables(max_degree, is_padded, fully_fused, device)


@dataclass(frozen=True, eq=False)
class _PairwiseBases(Operation):
    """All pairwise bases, from the relative positions; keeps those only."""

    tables: PairwiseTables
    dtype: torch.dtype
    max_degree: int
    is_padded: bool

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        (rel_pos,) = operands
        return kernels.pairwise_bases(rel_pos, self.tables, self.dtype)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        (rel_pos,) = operands
        return [kernels.position_gradient(rel_pos, gradients, self.tables)]

    @property
    def formula(self) -> PlainFormula:
        return PlainFormula(self._in_pytorch)

    def _in_pytorch(self, operands: Any) -> list[Tensor]:
        (rel_pos,) = operands
        wide = torch.promote_types(rel_pos.dtype, torch.float32)
        bases = formula.pairwise_bases(rel_pos.to(wide), self.max_degree, self.is_padded)
        return [bases[key] for key in self.tables.layout.shapes]


class _Like(NamedTuple):
    """Edges, dtype and device of bases."""

    num_edges: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, eq=False)
class _FusedBases(LinearOperation):
    """All fused bases, from the pairwise ones."""

    tables: FusedTables
    like: _Like

    def evaluate(self, operands: Any) -> Tensors:
        shapes = self.tables.pairwise.shapes.values()
        return kernels.fused_bases(_without_missing(operands, list(shapes), self.like), self.tables)

    @property
    def transpose(self) -> _FusedGradients:
        return _FusedGradients(self.tables, self.like)


@dataclass(frozen=True, eq=False)
class _FusedGradients(LinearOperation):
    """The gradients of the pairwise bases, from those of the fused ones."""

    tables: FusedTables
    like: _Like

    def evaluate(self, operands: Any) -> Tensors:
        return kernels.pairwise_gradients(operands, self.tables, *self.like)

    @property
    def transpose(self) -> _FusedBases:
        return _FusedBases(self.tables, self.like)


def _without_missing(bases: Tensors, shapes: Sequence[tuple[int, ...]], like: _Like) -> list[Tensor]:
    """Pairwise bases with zeros for those that are None."""
    num_edges, dtype, device = like
    return [
        torch.zeros(num_edges, *shape, dtype=dtype, device=device) if basis is None else basis
        for basis, shape in zip(bases, shapes, strict=True)
    ]
