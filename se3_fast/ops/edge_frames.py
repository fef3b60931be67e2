"""EdgeGeometry: what the convolutions need to know of the edges' directions, made once per graph and shared by all layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from se3_fast.ops.backend import selected_backend
from se3_fast.ops.basis import get_basis
from se3_fast.ops.given_bases import directions_of
from se3_fast.reference import basis as reference_basis
from se3_fast.reference.edge_frames import edge_directions, wigner_blocks
from se3_fast.so3 import axis_swap


@torch.library.custom_op("se3_fast::wigner_blocks", mutates_args=())
def _wigner_blocks(direction: Tensor, max_degree: int) -> Tensor:
    """:func:`~se3_fast.reference.edge_frames.wigner_blocks`, or ``csrc/edge_frames.cpp``, as one node of compiled graphs."""
    if selected_backend(direction.device) == "cpp":
        return torch.ops.se3_fast_cpp.wigner_blocks(direction.contiguous(), max_degree, _axis_swaps(max_degree))
    with torch.autocast(direction.device.type, enabled=False):
        return wigner_blocks(direction, max_degree)


@cache
def _axis_swaps(max_degree: int) -> Tensor:
    """J_d of the degrees 0..max_degree in a row, float64."""
    return torch.cat([axis_swap(degree).flatten() for degree in range(max_degree + 1)])


@_wigner_blocks.register_fake
def _(direction: Tensor, max_degree: int) -> Tensor:
    return direction.new_empty(direction.shape[0], sum((2 * degree + 1) ** 2 for degree in range(max_degree + 1)))


@torch.library.custom_op("se3_fast::frame_angles", mutates_args=())
def _frame_angles(rel_pos: Tensor) -> Tensor:
    """The kernel of ``kernels/edge_frames.py`` as one node of compiled graphs."""
    from se3_fast.kernels.edge_frames import frame_angles

    return frame_angles(rel_pos)


@_frame_angles.register_fake
def _(rel_pos: Tensor) -> Tensor:
    return rel_pos.new_empty(4, rel_pos.shape[0])


def edge_lengths(rel_pos: Tensor) -> Tensor:
    """Lengths of the edges, [E, 3] to [E]; at length zero derivatives of every order are zero instead of not finite."""
    lengths = rel_pos.detach().norm(dim=-1)
    if not rel_pos.requires_grad:
        return lengths
    has_length = lengths > 0
    return torch.where(has_length, torch.where(has_length[:, None], rel_pos, 1.0).norm(dim=-1), 0.0)


class EdgeGeometry:
    """Directions of the edges in the forms that the backends read, each made when it is first asked for.

    May be given to the models and layers wherever they take a published basis dict.

    Attributes:
        rel_pos: [E, 3] relative positions, or directions of any length where only a basis was given. If it requires grad, the
            convolutions differentiate with respect to it.
        max_degree: largest degree of the features that this geometry serves.
        factor: [E], by which the bases are multiplied (a cutoff), or None; with its graph where it has one. As in the published
            formula the messages from degree 0 to degree 0 of a convolution without fused pairs have no basis, and so no factor.
        is_given: whether it stands for a basis dict that no directions explain: all backends compute with its tensors then.
        by_formula: [E] bool, edges of which the tensors given are needed although the others have directions, or None.
    """

    def __init__(
        self,
        rel_pos: Tensor,
        max_degree: int,
        wigner: Tensor | None = None,
        bases: dict[str, Tensor] | None = None,
        angles: Tensor | None = None,
        zero_length_edges: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> None:
        self.rel_pos = rel_pos
        self.max_degree = max_degree
        self.factor = factor
        self.is_given = False
        self.by_formula: Tensor | None = None
        self._bases = dict(bases or {})
        self._casts: dict[torch.dtype, Tensor] = {}
        given = {"wigner": wigner, "angles": angles, "zero_length_edges": zero_length_edges}
        self._made = {name: tensor for name, tensor in given.items() if tensor is not None}

    @staticmethod
    def from_relative_positions(
        rel_pos: Tensor, max_degree: int, zero_length_edges: Tensor | None = None, factor: Tensor | None = None
    ) -> EdgeGeometry:
        """Geometry from relative positions.

        Args:
            rel_pos: [E, 3] relative positions, any unit; zero-length edges are allowed.
            max_degree: largest degree of the features.
            zero_length_edges: [n] int64, the edges of length zero where they are known; otherwise they are looked for, which waits
                for the device.
            factor: [E], by which the bases of every edge are multiplied, such as a smooth cutoff; may require grad.

        Raises:
            ValueError: for another shape, or a position that is not finite (checked for tensors on the CPU).
        """
        if rel_pos.ndim != 2 or rel_pos.shape[1] != 3:
            raise ValueError(f"rel_pos: expected shape [E, 3], got {list(rel_pos.shape)}")
        if factor is not None and factor.shape != rel_pos.shape[:1]:
            raise ValueError(f"factor: expected shape [{len(rel_pos)}], got {list(factor.shape)}")
        is_checked = rel_pos.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_checked and not rel_pos.isfinite().all():
            edge = int((~rel_pos.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"rel_pos: expected finite relative positions, got {rel_pos[edge].tolist()} at edge {edge}")
        return EdgeGeometry(rel_pos, max_degree, zero_length_edges=zero_length_edges, factor=factor)

    @staticmethod
    def from_bases(bases: dict[str, Tensor], max_degree: int, rel_pos: Tensor | None = None) -> EdgeGeometry:
        """Geometry from a published basis dict (pairwise keys, with or without fused ones; padded or not).

        A dict as ``get_basis`` and ``update_basis_with_fused`` made it has the directions that it was made from, at no cost. In any
        other dict the values are looked at (:mod:`se3_fast.ops.given_bases`): bases times a factor per edge have directions and
        that factor; with anything else the convolutions run the published formula, on all backends. So they do in compiled code.

        Args:
            bases: the dict; larger degrees than ``max_degree`` are not read.
            max_degree: largest degree of the features.
            rel_pos: [E, 3], what the bases were probably made from.

        Raises:
            ValueError: if the basis is missing degrees, or a tensor has another shape than its key says.
        """
        largest = f"{max_degree},{max_degree}"
        if largest not in bases and (max_degree > 0 or not bases):
            raise ValueError(f"basis: expected bases up to degree {max_degree}, got {sorted(bases)}")
        bases = _checked(bases, max_degree)
        example = next(iter(bases.values()))
        if rel_pos is not None and (len(rel_pos) != len(example) or rel_pos.device != example.device):
            rel_pos = None
        is_dense = selected_backend(example.device) == "dense"
        directions = None if is_dense else directions_of(bases, max_degree, rel_pos)
        if directions is None:
            geometry = EdgeGeometry(example.new_zeros(len(example), 3), max_degree, bases=bases)
            geometry.is_given = True
            return geometry
        geometry = EdgeGeometry(directions.rel_pos, max_degree, bases=bases, factor=directions.factor)
        geometry.by_formula = directions.by_formula
        return geometry

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return len(self.rel_pos)

    @property
    def _working_positions(self) -> Tensor:
        """Constants in at least float32."""
        return self.rel_pos.detach().to(self.rel_pos.dtype if self.rel_pos.dtype == torch.float64 else torch.float32)

    @property
    def direction(self) -> Tensor:
        """[E, 3] unit vectors in at least float32, (0, 0, 0) for zero-length edges; constants."""
        return self._once("direction", lambda: edge_directions(self._working_positions))

    @property
    def wigner(self) -> Tensor:
        """[E, sum of (2d+1)^2] Wigner D blocks of the edge frames (see reference/edge_frames.py); constants."""
        return self._once("wigner", lambda: _wigner_blocks(self.direction, self.max_degree))

    @property
    def angles(self) -> Tensor:
        """[4, E] cos and sin of the two angles of each edge's frame (backend ``triton``, ``kernels/edge_frames.py``); constants."""
        return self._once("angles", lambda: _frame_angles(self._working_positions))

    @property
    def zero_length_edges(self) -> Tensor:
        """[n] int64, the edges that have no direction."""
        return self._once("zero_length_edges", lambda: (self.direction == 0).all(-1).nonzero().squeeze(-1))

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` makes, kept; not ``cached_property``, whose lock ``torch.compile`` cannot follow."""
        if name not in self._made:
            with torch.no_grad():
                self._made[name] = make()
        return self._made[name]

    def wigner_as(self, dtype: torch.dtype) -> Tensor:
        """The Wigner blocks in another dtype, kept for the next layer."""
        if dtype not in self._casts:
            self._casts[dtype] = self.wigner.to(dtype)
        return self._casts[dtype]

    def basis(self, key: str) -> Tensor:
        """A published basis, pairwise or fused, times the factor; made at the first call and kept (backend ``dense``)."""
        if key not in self._bases:
            with torch.enable_grad():  # whatever the mode is now: it is kept
                self._bases[key] = self._make_basis(key)
        return self._bases[key]

    def _make_basis(self, key: str) -> Tensor:
        if not self._bases:
            self._bases = self._pairwise_bases()
        if "0,0" not in self._bases:  # a dict from update_basis_with_fused comes without it
            self._bases["0,0"] = self._scalar_basis()
        if key not in self._bases and "fused" not in key:
            raise ValueError(f"basis: expected one of degrees '{key}', got {sorted(self._bases)}")
        if key == "fully_fused":
            return reference_basis.fully_fused(self._bases, self.max_degree)
        if key.endswith("_fused"):
            fuse = reference_basis.fused_over_inputs if key.startswith("out") else reference_basis.fused_over_outputs
            return fuse(self._bases, self.max_degree, int(key.removesuffix("_fused").lstrip("outin")))
        return self._bases[key]

    def _pairwise_bases(self) -> dict[str, Tensor]:
        is_amp = torch.is_autocast_enabled(self.rel_pos.device.type)
        bases = get_basis(self.rel_pos, self.max_degree, compute_gradients=self.rel_pos.requires_grad, amp=is_amp)
        if self.factor is None:
            return bases
        factor = self.factor[:, None, None, None]
        return {key: (basis * factor).to(basis.dtype) for key, basis in bases.items()}

    def _scalar_basis(self) -> Tensor:
        """The basis ``'0,0'`` of a dict that comes without it, as its fused ones have it."""
        for key in ("out0_fused", "in0_fused", "fully_fused"):
            if key in self._bases:
                return self._bases[key][:, :1, :1, :1]
        return reference_basis.scalar_basis(next(iter(self._bases.values())))

    def without_factor(self) -> EdgeGeometry:
        """The same directions alone."""
        return self.with_positions(self.rel_pos)

    @property
    def edges_by_formula(self) -> Tensor:
        """[n] int64, the edges in ``by_formula``."""
        chosen = self.by_formula
        assert chosen is not None
        return self._once("edges_by_formula", lambda: chosen.nonzero().squeeze(-1))

    def given_bases_of(self, edge_numbers: Tensor) -> EdgeGeometry:
        """The tensors given, of some edges [n] int64, as a geometry that stands for them alone."""
        bases = {key: basis[edge_numbers] for key, basis in self._bases.items()}
        geometry = EdgeGeometry(self.rel_pos[edge_numbers], self.max_degree, bases=bases)
        geometry.is_given = True
        return geometry

    def with_positions(self, rel_pos: Tensor) -> EdgeGeometry:
        """This geometry with other tensors of the same relative positions ([E, 3]), to be differentiated apart."""
        geometry = EdgeGeometry(rel_pos, self.max_degree)
        geometry._made, geometry._casts = self._made, self._casts
        return geometry

    def with_frames(self) -> EdgeGeometry:
        """This geometry, the edges' frames made now in the form that the device's backend reads."""
        _ = self.angles if selected_backend(self.rel_pos.device) == "triton" else self.wigner
        return self

    def index_select(self, edge_numbers: Tensor, zero_length_edges: Tensor | None = None) -> EdgeGeometry:
        """The geometry of some edges: ``edge_numbers`` [n] int64, in that order, with the frames that are there already.

        Args:
            edge_numbers: [n] int64.
            zero_length_edges: as for :meth:`from_relative_positions`, counted among the chosen ones.
        """
        wigner, angles = self._made.get("wigner"), self._made.get("angles")
        geometry = EdgeGeometry(
            self.rel_pos[edge_numbers],
            self.max_degree,
            wigner=None if wigner is None else wigner[edge_numbers],
            bases={key: basis[edge_numbers] for key, basis in self._bases.items()},
            angles=None if angles is None else angles[:, edge_numbers],
            zero_length_edges=zero_length_edges,
            factor=None if self.factor is None else self.factor[edge_numbers],
        )
        geometry.is_given = self.is_given
        geometry.by_formula = None if self.by_formula is None else self.by_formula[edge_numbers]
        return geometry

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EdgeGeometry:
        """This geometry on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EdgeGeometry:
        """This geometry in page-locked host memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: object) -> EdgeGeometry:
        assert callable(function)
        mapped = EdgeGeometry(function(self.rel_pos), self.max_degree)
        mapped.factor = None if self.factor is None else function(self.factor)
        mapped.by_formula = None if self.by_formula is None else function(self.by_formula)
        mapped.is_given = self.is_given
        mapped._bases = {key: function(basis) for key, basis in self._bases.items()}
        mapped._made = {name: function(tensor) for name, tensor in self._made.items()}
        return mapped


def _checked(bases: dict[str, Tensor], max_degree: int) -> dict[str, Tensor]:
    """The bases that serve degrees up to ``max_degree``, of the shapes that their keys say."""
    num_edges = len(next(iter(bases.values())))
    chosen = {}
    for key, basis in bases.items():
        shape = reference_basis.shape_of(key, max_degree)
        if shape is None:
            continue
        expected = [num_edges, *shape]
        padded = [*expected[:-1], expected[-1] + 1]
        if list(basis.shape) not in (expected, padded):
            if "fused" in key:  # made for other degrees
                continue
            raise ValueError(f"basis['{key}']: expected shape {expected}, got {list(basis.shape)}")
        chosen[key] = basis
    return chosen
