"""The published basis functions: ``get_basis`` and ``update_basis_with_fused``.

Formula and layouts: :mod:`se3_fast.reference.basis`. The models of this package need no bases; these serve code written for the
published implementation, and backend ``dense``. Backend ``triton`` writes all pairwise bases in one launch, and all fused
ones in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from se3_fast.differentiable import LinearOperation, Operation, PlainFormula, Tensors, Wanted
from se3_fast.ops.backend import selected_backend
from se3_fast.reference import basis as reference
from se3_fast.so3 import wigner_3j

if TYPE_CHECKING:
    from se3_fast.kernels.basis import FusedTables, PairwiseTables


def get_basis(
    relative_pos: Tensor,
    max_degree: int = 4,
    compute_gradients: bool = False,
    use_pad_trick: bool = False,
    amp: bool = False,
) -> dict[str, Tensor]:
    """The pairwise bases of all pairs of degrees 0..max_degree.

    Args:
        relative_pos: [E, 3] relative positions of the edges, any unit.
        max_degree: largest degree.
        compute_gradients: keep the graph to ``relative_pos``; otherwise the bases are constants.
        use_pad_trick: append one zero to the last axis (Tensor Core tiles).
        amp: return the autocast dtype of the device (float16 on CUDA, bfloat16 on the CPU unless set otherwise).

    Returns:
        ``{'d_in,d_out': [E, 2d_in+1, 2 min(d_in,d_out)+1, 2d_out+1 (+1 padded)]}``.

    Raises:
        ValueError: if ``relative_pos`` is not of shape [E, 3].
    """
    if relative_pos.ndim != 2 or relative_pos.shape[1] != 3:
        raise ValueError(f"relative_pos: expected shape [E, 3], got {list(relative_pos.shape)}")
    device_type = relative_pos.device.type
    dtype = torch.get_autocast_dtype(device_type) if amp else relative_pos.dtype
    with torch.set_grad_enabled(compute_gradients and torch.is_grad_enabled()), torch.autocast(device_type, enabled=False):
        if selected_backend(relative_pos.device) == "triton":
            return _pairwise_by_kernel(relative_pos, max_degree, use_pad_trick, dtype)
        bases = reference.pairwise_bases(relative_pos, max_degree, use_pad_trick)
    return {key: basis.to(dtype) for key, basis in bases.items()}


def update_basis_with_fused(basis: dict[str, Tensor], max_degree: int, use_pad_trick: bool, fully_fused: bool) -> dict[str, Tensor]:
    """The given pairwise bases and the fused ones made from them.

    Args:
        basis: pairwise bases as :func:`get_basis` returns them; left as it is.
        max_degree: largest degree.
        use_pad_trick: whether ``basis`` is padded.
        fully_fused: add the key ``fully_fused`` too.

    Returns:
        A new dict: the pairwise bases without ``'0,0'``, and for every degree d ``out{d}_fused`` and ``in{d}_fused``.

    Raises:
        ValueError: if ``use_pad_trick`` does not fit the bases, or a basis is not of the shape that its key says.
    """
    is_padded = basis["0,0"].shape[-1] == 2
    if is_padded != use_pad_trick:
        raise ValueError(f"use_pad_trick: expected {is_padded}, as the bases were made, got {use_pad_trick}")
    fused = {key: tensor for key, tensor in basis.items() if key != "0,0"}
    if selected_backend(basis["0,0"].device) == "triton":
        return fused | _fused_by_kernel(basis, max_degree, use_pad_trick, fully_fused)
    for degree in range(max_degree + 1):
        fused[f"out{degree}_fused"] = reference.fused_over_inputs(basis, max_degree, degree)
        fused[f"in{degree}_fused"] = reference.fused_over_outputs(basis, max_degree, degree)
    if fully_fused:
        fused["fully_fused"] = reference.fully_fused(basis, max_degree)
    return fused


def _pairwise_by_kernel(rel_pos: Tensor, max_degree: int, is_padded: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    sum_dtype = torch.float64 if torch.float64 in (rel_pos.dtype, dtype) else torch.float32
    tables = _pairwise_tables(max_degree, is_padded, sum_dtype, rel_pos.device)
    operation = _PairwiseBases(tables, dtype, max_degree, is_padded)
    return dict(zip(tables.layout.shapes, operation.apply(rel_pos), strict=True))


def _fused_by_kernel(bases: dict[str, Tensor], max_degree: int, is_padded: bool, fully_fused: bool) -> dict[str, Tensor]:
    tables = _fused_tables(max_degree, is_padded, fully_fused, bases["0,0"].device)
    num_edges = len(bases["0,0"])
    for key, shape in tables.pairwise.shapes.items():
        if bases[key].shape != (num_edges, *shape):
            raise ValueError(f"basis['{key}']: expected shape {[num_edges, *shape]}, got {list(bases[key].shape)}")
    pairwise = [bases[key] for key in tables.pairwise.shapes]
    like = _Like(num_edges, pairwise[0].dtype, pairwise[0].device)
    fused = _FusedBases(tables, like).apply(*pairwise)
    return {key: basis for key, basis in zip(tables.layout.shapes, fused, strict=True) if basis is not None}


@cache
def _pairwise_tables(max_degree: int, is_padded: bool, dtype: torch.dtype, device: torch.device) -> PairwiseTables:
    from se3_fast.kernels.basis import pairwise_tables

    return pairwise_tables(max_degree, is_padded, wigner_3j, dtype, device)


@cache
def _fused_tables(max_degree: int, is_padded: bool, fully_fused: bool, device: torch.device) -> FusedTables:
    from se3_fast.kernels.basis import fused_tables

    return fused_tables(max_degree, is_padded, fully_fused, device)


@dataclass(frozen=True, eq=False)
class _PairwiseBases(Operation):
    """All pairwise bases, from the relative positions; keeps those only."""

    tables: PairwiseTables
    dtype: torch.dtype
    max_degree: int
    is_padded: bool

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        from se3_fast.kernels.basis import pairwise_bases

        return pairwise_bases(*operands, self.tables, self.dtype)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        from se3_fast.kernels.basis import position_gradient

        return [position_gradient(*operands, gradients, self.tables)]

    @property
    def formula(self) -> PlainFormula:
        return PlainFormula(self._in_pytorch)

    def _in_pytorch(self, operands: Any) -> list[Tensor]:
        (rel_pos,) = operands
        wide = torch.promote_types(rel_pos.dtype, torch.float32)
        bases = reference.pairwise_bases(rel_pos.to(wide), self.max_degree, self.is_padded)
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
        from se3_fast.kernels.basis import fused_bases

        shapes = self.tables.pairwise.shapes.values()
        return fused_bases(_without_missing(operands, list(shapes), self.like), self.tables)

    @property
    def transpose(self) -> _FusedGradients:
        return _FusedGradients(self.tables, self.like)


@dataclass(frozen=True, eq=False)
class _FusedGradients(LinearOperation):
    """The gradients of the pairwise bases, from those of the fused ones."""

    tables: FusedTables
    like: _Like

    def evaluate(self, operands: Any) -> Tensors:
        from se3_fast.kernels.basis import pairwise_gradients

        return pairwise_gradients(operands, self.tables, *self.like)

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
