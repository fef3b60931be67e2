"""EdgeGeometry: what the convolutions need to know of the edges' directions, made once per graph and shared by all layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype, check_dtype, compute_dtype
from se3_fast.autograd.modes import has_changed, is_readable, made_beside, uncounted_values, version_of
from se3_fast.autograd.transforms import is_followed, is_variable, values
from se3_fast.backends.choice import implementation
from se3_fast.backends.dense import basis as reference_basis
from se3_fast.backends.operands import FrameForm
from se3_fast.contraction import RADIAL_WIDTH
from se3_fast.ops.basis import get_basis
from se3_fast.ops.edge_frames import directions, edges_without_length, frame_angles, wigner_blocks
from se3_fast.ops.given_bases import directions_of


def edge_lengths(rel_pos: Tensor) -> Tensor:
    """Lengths of the edges, [E, 3] to [E]; at length zero derivatives of every order are zero instead of not finite."""
    lengths = rel_pos.detach().norm(dim=-1)
    if not is_followed(rel_pos):
        return lengths
    has_length = lengths > 0
    return torch.where(has_length, torch.where(has_length[:, None], rel_pos, 1.0).norm(dim=-1), 0.0)


class EdgeGeometry:
    """Directions of the edges in the forms that the backends read, each made when it is first asked for.

    Positions may be changed in place: what was made of them before is then made again (but for a tensor on a GPU that was made in
    inference mode, whose changes PyTorch does not count). May be given to the models and layers wherever they take a published
    basis dict.

    Attributes:
        rel_pos: [E, 3] relative positions, or directions of any length where only a basis was given. If it requires grad, the
            convolutions differentiate with respect to it.
        num_edges: E.
        max_degree: largest degree of the features that this geometry serves.
        factor: [E], by which the bases are multiplied (a cutoff), or None; with its graph where it has one. As in the published
            formula the messages from degree 0 to degree 0 of a convolution without fused pairs have no basis, and so no factor.
        is_given: whether it stands for a basis dict that no directions explain: all backends compute with its tensors then.
        by_formula: [E] bool, edges of which the tensors given are needed although the others have directions, or None.

    Raises:
        ValueError: if ``rel_pos`` is not a floating-point tensor of shape [E, 3], or has a value that is not finite (checked for
            tensors on the CPU, where no basis dict is given).
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
        if bases is None:
            _check_relative_positions(rel_pos, with_values=zero_length_edges is None)  # else they have been looked at
        self.rel_pos = rel_pos
        self.num_edges = rel_pos.shape[0]  # len() would fix the number in a graph that is exported
        self.max_degree = max_degree
        self.factor = factor
        self.is_given = False
        self.by_formula: Tensor | None = None
        self._bases = dict(bases or {})
        self._own_bases: dict[torch.dtype, dict[str, Tensor]] = {}
        self._casts: dict[torch.dtype, Tensor] = {}
        self._ordered: tuple[Tensor, Tensor] | None = None
        self._of_fewer_degrees: dict[int, EdgeGeometry] = {}
        given = {"wigner": wigner, "angles": angles, "zero_length_edges": zero_length_edges}
        self._made = {name: tensor.contiguous() for name, tensor in given.items() if tensor is not None}
        self._version, self._values = version_of(rel_pos), uncounted_values(rel_pos)

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
            ValueError: as the class, or if ``factor`` has another shape.
        """
        if factor is not None and factor.shape != rel_pos.shape[:1]:
            raise ValueError(f"factor: expected shape [{len(rel_pos)}], got {list(factor.shape)}")
        return EdgeGeometry(rel_pos, max_degree, zero_length_edges=zero_length_edges, factor=factor)

    @staticmethod
    def with_made_frames(rel_pos: Tensor, max_degree: int, form: FrameForm, frames: Tensor) -> EdgeGeometry:
        """Geometry from relative positions [E, 3] and the edges' frames in one of their forms."""
        if form == "angles":
            return EdgeGeometry(rel_pos, max_degree, angles=frames)
        return EdgeGeometry(rel_pos, max_degree, wigner=frames)

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
        reads_bases = _frames_read(example) is None
        directions = None if reads_bases else directions_of(bases, max_degree, rel_pos)
        if directions is None:
            geometry = EdgeGeometry(example.new_zeros(len(example), 3), max_degree, bases=bases)
            geometry.is_given = True
            return geometry
        geometry = EdgeGeometry(directions.rel_pos, max_degree, bases=bases, factor=directions.factor)
        geometry.by_formula = directions.by_formula
        return geometry

    @property
    def direction(self) -> Tensor:
        """[E, 3] unit vectors in at least float32, (0, 0, 0) for zero-length edges; constants."""
        return self._once("direction", lambda: directions(self.rel_pos))

    @property
    def wigner(self) -> Tensor:
        """[E, sum of (2d+1)^2] Wigner D blocks of the edge frames (see backends/dense/edge_frames.py); constants."""
        return self._once("wigner", lambda: wigner_blocks(self.direction, self.max_degree))

    @property
    def angles(self) -> Tensor:
        """[4, E] cos and sin of the two angles of each edge's frame (``kernels/edge_frames.py``); constants."""
        return self._once("angles", lambda: frame_angles(self.rel_pos))

    def angles_by(self, edges: Tensor, dtype: torch.dtype) -> Tensor:
        """The angles with the edges in another order, [n] int64; kept for the next layer."""
        self._forget_changed_positions()
        order, angles = self._ordered if self._ordered is not None else (None, None)
        if order is not edges or angles is None or angles.dtype != dtype:
            angles = self.angles.to(dtype).index_select(1, edges)
            self._ordered = edges, angles
        return angles

    @property
    def zero_length_edges(self) -> Tensor:
        """[n] int64, the edges that have no direction."""
        return self._once("zero_length_edges", lambda: edges_without_length(self.rel_pos))

    def _once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` makes, kept; not ``cached_property``, whose lock ``torch.compile`` cannot follow."""
        self._forget_changed_positions()
        if name not in self._made:
            self._made[name] = made_beside(self.rel_pos, make)
        return self._made[name]

    def _forget_changed_positions(self) -> None:
        """Drop what was made of positions that have been changed in place since."""
        is_other = has_changed(self.rel_pos, self._version) if self._values is None else not self.rel_pos.equal(self._values)
        if not is_other:
            return
        self._made.clear()
        self._casts.clear()
        self._own_bases.clear()
        self._ordered, self._version, self._values = None, version_of(self.rel_pos), uncounted_values(self.rel_pos)

    def wigner_as(self, dtype: torch.dtype) -> Tensor:
        """The Wigner blocks in another dtype, kept for the next layer."""
        self._forget_changed_positions()
        if dtype not in self._casts:
            self._casts[dtype] = made_beside(self.rel_pos, lambda: self.wigner.to(dtype))
        return self._casts[dtype]

    def basis(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """A published basis, pairwise or fused, times the factor; made at the first call and kept.

        Args:
            key: its key in a basis dict.
            dtype: what it is made in, unless it was given; default: the compute dtype of the positions.
        """
        self._forget_changed_positions()
        dtype = dtype or compute_dtype(self.rel_pos)
        bases = self._bases or self._own_bases.setdefault(dtype, {})
        if key not in bases:
            sources = (self.rel_pos, *bases.values(), *([] if self.factor is None else [self.factor]))
            with_gradients = any(map(is_variable, sources))
            bases[key] = made_beside(self.rel_pos, lambda: self._make_basis(bases, key, dtype), with_gradients)
        return bases[key]

    def _make_basis(self, bases: dict[str, Tensor], key: str, dtype: torch.dtype) -> Tensor:
        if not bases:
            bases.update(self._pairwise_bases(dtype))
        if "0,0" not in bases:  # a dict from update_basis_with_fused comes without it
            bases["0,0"] = _scalar_basis(bases)
        if key not in bases and "fused" not in key:
            raise ValueError(f"basis: expected one of degrees '{key}', got {sorted(bases)}")
        return reference_basis.fused_basis(bases, self.max_degree, key) if "fused" in key else bases[key]

    def _pairwise_bases(self, dtype: torch.dtype) -> dict[str, Tensor]:
        bases = get_basis(self.rel_pos, self.max_degree, compute_gradients=is_variable(self.rel_pos))
        if self.factor is not None:
            factor = self.factor[:, None, None, None]
            bases = {key: basis * factor for key, basis in bases.items()}
        return {key: basis.to(dtype) for key, basis in bases.items()}

    def up_to(self, max_degree: int) -> EdgeGeometry:
        """This geometry for degrees up to ``max_degree``, if it was made for more; kept for the next layer.

        A fused basis has the components of all degrees, so that one of more degrees fits no convolution of fewer.
        """
        if self.max_degree <= max_degree:
            return self
        if max_degree not in self._of_fewer_degrees:
            geometry = EdgeGeometry(self.rel_pos, max_degree, bases=_checked(self._bases, max_degree) if self._bases else {})
            geometry.factor, geometry.is_given, geometry.by_formula = self.factor, self.is_given, self.by_formula
            self._of_fewer_degrees[max_degree] = geometry
        return self._of_fewer_degrees[max_degree]

    def without_factor(self) -> EdgeGeometry:
        """The same directions alone."""
        geometry = EdgeGeometry(self.rel_pos, self.max_degree)
        geometry._made, geometry._casts = self._made, self._casts
        return geometry

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

    def frames(self, form: FrameForm) -> Tensor:
        """The edges' frames in one of their forms, :attr:`angles` or :attr:`wigner`."""
        return self.angles if form == "angles" else self.wigner

    def frames_read(self) -> FrameForm | None:
        """The form that the convolutions of the device's backend read; None where they read bases."""
        return _frames_read(self.rel_pos)

    def with_frames(self) -> EdgeGeometry:
        """This geometry, the edges' frames made now in the form that the convolutions of the device's backend read."""
        form = self.frames_read()
        if form is not None:
            self.frames(form)
        return self

    def has_constant_frames(self) -> bool:
        """Whether every edge has a frame, and none is differentiated with respect to."""
        if self.is_given or self.by_formula is not None or is_followed(self.rel_pos):
            return False
        return len(self.zero_length_edges) == 0

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


def _frames_read(example: Tensor) -> FrameForm | None:
    return implementation("tfn_conv", example.device, accumulation_dtype(example.dtype), RADIAL_WIDTH).FRAMES


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


def _scalar_basis(bases: dict[str, Tensor]) -> Tensor:
    """The basis ``'0,0'`` of a dict that comes without it, as its fused ones have it."""
    for key in ("out0_fused", "in0_fused", "fully_fused"):
        if key in bases:
            return bases[key][:, :1, :1, :1]
    return reference_basis.scalar_basis(next(iter(bases.values())))


def _check_relative_positions(rel_pos: Tensor, with_values: bool) -> None:
    if not isinstance(rel_pos, Tensor):
        raise TypeError(f"rel_pos: expected a tensor of shape [E, 3], got an object of type {type(rel_pos).__name__}")
    if rel_pos.ndim != 2 or rel_pos.shape[1] != 3:
        raise ValueError(f"rel_pos: expected shape [E, 3], got {list(rel_pos.shape)}")
    check_dtype("rel_pos", rel_pos)
    if not with_values:
        return
    given = values(rel_pos)
    if is_readable(given) and not given.isfinite().all():
        edges = given.view(-1, 3)
        edge = int((~edges.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"rel_pos: expected finite relative positions, got {edges[edge].tolist()} at edge {edge % len(rel_pos)}")
