"""The published basis functions: ``get_basis`` and ``update_basis_with_fused``.

Formula and layouts: :mod:`se3_fast.backends.dense.basis`. The models of this package need no bases; these serve code written for
the published implementation, and backend ``dense``. Backend ``triton`` writes all pairwise bases in one launch, and all fused ones
in another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.autograd.opaque import OpaqueOperation
from se3_fast.autograd.operation import LinearOperation, Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.choice import backend, selected_backend
from se3_fast.backends.dense import basis as reference
from se3_fast.ops.basis_origin import remember_fused, remember_pairwise
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
    with_gradients = compute_gradients and torch.is_grad_enabled()
    with _not_in_inference_mode(), torch.set_grad_enabled(with_gradients):
        bases = _pairwise(relative_pos, max_degree, use_pad_trick, amp)
        remember_pairwise(bases, relative_pos)
    return bases


def _not_in_inference_mode() -> AbstractContextManager[object]:
    """Tensors made in inference mode do not count their changes; the bases have to. To leave it turns grad mode on."""
    is_left = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if is_left else nullcontext()


def _pairwise(rel_pos: Tensor, max_degree: int, is_padded: bool, amp: bool) -> dict[str, Tensor]:
    device_type = rel_pos.device.type
    dtype = torch.get_autocast_dtype(device_type) if amp else rel_pos.dtype
    if torch.compiler.is_compiling():
        operand = rel_pos if torch.is_grad_enabled() else rel_pos.detach()
        bases = _opaque_bases(_description(max_degree, is_padded, dtype), [operand])
        return dict(zip(_keys(max_degree), bases, strict=True))
    return _pairwise_now(rel_pos, max_degree, is_padded, dtype)


def _pairwise_now(rel_pos: Tensor, max_degree: int, is_padded: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    with torch.autocast(rel_pos.device.type, enabled=False):
        if selected_backend(rel_pos.device) == "triton":
            bases = _pairwise_by_kernel(rel_pos, max_degree, is_padded, dtype)
        else:
            bases = {key: basis.to(dtype) for key, basis in reference.pairwise_bases(rel_pos, max_degree, is_padded).items()}
    if bases["0,0"].requires_grad:  # a constant with a graph of its own: what is read off it needs none of the others'
        constant = bases["0,0"].detach()
        bases["0,0"] = torch.where(torch.ones_like(constant, dtype=torch.bool), constant, rel_pos[:, :1, None, None].to(dtype))
    return bases


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
    is_grad_enabled = torch.is_grad_enabled()
    with _not_in_inference_mode(), torch.set_grad_enabled(is_grad_enabled):
        fused = _fused(basis, max_degree, use_pad_trick, fully_fused)
        remember_fused(fused, basis)
    return {key: tensor for key, tensor in basis.items() if key != "0,0"} | fused


def _fused(basis: dict[str, Tensor], max_degree: int, use_pad_trick: bool, fully_fused: bool) -> dict[str, Tensor]:
    if selected_backend(basis["0,0"].device) == "triton":
        return _fused_by_kernel(basis, max_degree, use_pad_trick, fully_fused)
    fused = {}
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


@constant
def _pairwise_tables(max_degree: int, is_padded: bool, dtype: torch.dtype, device: torch.device) -> PairwiseTables:
    from se3_fast.kernels.basis import pairwise_tables

    return pairwise_tables(max_degree, is_padded, wigner_3j, dtype, device)


@constant
def _fused_tables(max_degree: int, is_padded: bool, fully_fused: bool, device: torch.device) -> FusedTables:
    from se3_fast.kernels.basis import fused_tables

    return fused_tables(max_degree, is_padded, fully_fused, device)


def _keys(max_degree: int) -> list[str]:
    """Of the pairwise bases, in their order."""
    return [f"{degree_in},{degree_out}" for degree_in, degree_out in product(range(max_degree + 1), repeat=2)]


@torch.compiler.assume_constant_result
def _description(max_degree: int, is_padded: bool, dtype: torch.dtype) -> str:
    return json.dumps([max_degree, is_padded, str(dtype).removeprefix("torch.")])


def _opaque_run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    max_degree, is_padded, dtype_name = json.loads(description)
    with backend("dense"):
        return list(_pairwise_now(operands[0], max_degree, is_padded, getattr(torch, dtype_name)).values())


def _opaque_shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    max_degree, is_padded, dtype_name = json.loads(description)
    shapes = [reference.shape_of(key, max_degree) or () for key in _keys(max_degree)]
    dtype = getattr(torch, dtype_name)
    return [operands[0].new_empty(operands[0].shape[0], *shape[:-1], shape[-1] + is_padded, dtype=dtype) for shape in shapes]


_opaque_bases = OpaqueOperation("pairwise_bases", _opaque_run, _opaque_shapes)


@dataclass(frozen=True, eq=False)
class _PairwiseBases(Operation):
    """All pairwise bases, from the relative positions; keeps those only."""

    tables: PairwiseTables
    dtype: torch.dtype
    max_degree: int
    is_padded: bool

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        from se3_fast.kernels.basis import pairwise_bases

        (rel_pos,) = operands
        return pairwise_bases(rel_pos, self.tables, self.dtype)

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        from se3_fast.kernels.basis import position_gradient

        (rel_pos,) = operands
        return [position_gradient(rel_pos, gradients, self.tables)]

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
