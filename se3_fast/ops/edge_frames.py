"""EdgeGeometry: what the convolutions need to know of the edges' directions, made once per graph and shared by all layers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from se3_fast.ops.backend import selected_backend
from se3_fast.ops.basis import get_basis
from se3_fast.reference import basis as reference_basis
from se3_fast.reference.edge_frames import edge_directions, wigner_blocks
from se3_fast.so3 import axis_swap
from se3_fast.transforms import is_batched, is_followed, values


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


@_wigner_blocks.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], direction: Tensor, max_degree: int) -> tuple[Tensor, int]:
    batch = direction.movedim(in_dims[0] or 0, 0)  # edges of a batch are as good as others
    return _wigner_blocks(batch.flatten(0, 1), max_degree).unflatten(0, batch.shape[:2]), 0


@torch.library.custom_op("se3_fast::frame_angles", mutates_args=())
def _frame_angles(rel_pos: Tensor) -> Tensor:
    """The kernel of ``kernels/edge_frames.py`` as one node of compiled graphs."""
    from se3_fast.kernels.edge_frames import frame_angles

    return frame_angles(rel_pos)


@_frame_angles.register_fake
def _(rel_pos: Tensor) -> Tensor:
    return rel_pos.new_empty(4, rel_pos.shape[0])


@_frame_angles.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], rel_pos: Tensor) -> tuple[Tensor, int]:
    batch = rel_pos.movedim(in_dims[0] or 0, 0)
    return _frame_angles(batch.flatten(0, 1).contiguous()).unflatten(1, batch.shape[:2]), 1


def edge_lengths(rel_pos: Tensor) -> Tensor:
    """Lengths of the edges, [E, 3] to [E]; at length zero derivatives of every order are zero instead of not finite."""
    lengths = rel_pos.detach().norm(dim=-1)
    if not is_followed(rel_pos):
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
    """

    def __init__(
        self,
        rel_pos: Tensor,
        max_degree: int,
        wigner: Tensor | None = None,
        bases: dict[str, Tensor] | None = None,
        angles: Tensor | None = None,
        zero_length_edges: Tensor | None = None,
    ) -> None:
        self.rel_pos = rel_pos
        self.max_degree = max_degree
        self._bases = dict(bases or {})
        self._casts: dict[torch.dtype, Tensor] = {}
        self._ordered: tuple[Tensor, Tensor] | None = None
        given = {"wigner": wigner, "angles": angles, "zero_length_edges": zero_length_edges}
        self._made = {name: tensor for name, tensor in given.items() if tensor is not None}

    @staticmethod
    def from_relative_positions(rel_pos: Tensor, max_degree: int, zero_length_edges: Tensor | None = None) -> EdgeGeometry:
        """Geometry from relative positions.

        Args:
            rel_pos: [E, 3] relative positions, any unit; zero-length edges are allowed.
            max_degree: largest degree of the features.
            zero_length_edges: [n] int64, the edges of length zero where they are known; otherwise they are looked for, which waits
                for the device.

        Raises:
            ValueError: for another shape, or a value that is not finite (checked for tensors on the CPU).
        """
        if rel_pos.ndim != 2 or rel_pos.shape[1] != 3:
            raise ValueError(f"rel_pos: expected shape [E, 3], got {list(rel_pos.shape)}")
        is_checked = rel_pos.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_checked and not values(rel_pos).isfinite().all():
            edges = values(rel_pos).view(-1, 3)
            edge = int((~edges.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"rel_pos: expected finite relative positions, got {edges[edge].tolist()} at edge {edge % len(rel_pos)}"
            )
        return EdgeGeometry(rel_pos, max_degree, zero_length_edges=zero_length_edges)

    @staticmethod
    def from_bases(bases: dict[str, Tensor], max_degree: int) -> EdgeGeometry:
        """Geometry from a published basis dict (pairwise keys, with or without fused ones; padded or not).

        The directions are read off the basis ``'0,1'``, which is proportional to them.

        Raises:
            ValueError: if the basis is missing degrees.
        """
        largest = f"{max_degree},{max_degree}"
        if max_degree > 0 and largest not in bases:
            raise ValueError(f"basis: expected bases up to degree {max_degree}, got {sorted(bases)}")
        if "0,1" in bases:
            directions = bases["0,1"][:, 0, 0, :3].detach()
        else:
            example = next(iter(bases.values()))
            directions = example.new_zeros(len(example), 3)
        return EdgeGeometry(directions, max_degree, bases=bases)

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return len(self.rel_pos)

    @property
    def has_differentiable_bases(self) -> bool:
        """Whether it was made from a basis dict that is to be differentiated (``get_basis(compute_gradients=True)``)."""
        return torch.is_grad_enabled() and any(basis.requires_grad for basis in self._bases.values())

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

    def angles_by(self, edges: Tensor, dtype: torch.dtype) -> Tensor:
        """The angles with the edges in another order, [n] int64; kept for the next layer."""
        order, angles = self._ordered if self._ordered is not None else (None, None)
        if order is not edges or angles is None or angles.dtype != dtype:
            angles = self.angles.to(dtype).index_select(1, edges)
            self._ordered = edges, angles
        return angles

    @property
    def zero_length_edges(self) -> Tensor:
        """[n] int64, the edges that have no direction."""
        return self._once("zero_length_edges", self._find_zero_length_edges)

    def _find_zero_length_edges(self) -> Tensor:
        if not is_batched(self.rel_pos):
            return (self.direction == 0).all(-1).nonzero().squeeze(-1)
        if (values(self.rel_pos) == 0).all(-1).any():
            raise ValueError(
                "rel_pos: expected no edge of length zero within vmap, got some; backend dense serves them "
                "(with se3_fast.backend('dense'))"
            )
        return torch.empty(0, dtype=torch.int64, device=self.rel_pos.device)

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
        """A published basis, pairwise or fused, made at the first call and kept (backend ``dense``)."""
        if key not in self._bases:
            self._bases[key] = self._make_basis(key)
        return self._bases[key]

    def _make_basis(self, key: str) -> Tensor:
        if not self._bases:
            self._bases = get_basis(
                self.rel_pos,
                self.max_degree,
                compute_gradients=is_followed(self.rel_pos),
                amp=torch.is_autocast_enabled(self.rel_pos.device.type),
            )
        if "0,0" not in self._bases:  # a dict from update_basis_with_fused comes without it
            self._bases["0,0"] = reference_basis.scalar_basis(next(iter(self._bases.values())))
        if key == "fully_fused":
            return reference_basis.fully_fused(self._bases, self.max_degree)
        if key.endswith("_fused"):
            fuse = reference_basis.fused_over_inputs if key.startswith("out") else reference_basis.fused_over_outputs
            return fuse(self._bases, self.max_degree, int(key.removesuffix("_fused").lstrip("outin")))
        return self._bases[key]

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
        return EdgeGeometry(
            self.rel_pos[edge_numbers],
            self.max_degree,
            wigner=None if wigner is None else wigner[edge_numbers],
            bases={key: basis[edge_numbers] for key, basis in self._bases.items()},
            angles=None if angles is None else angles[:, edge_numbers],
            zero_length_edges=zero_length_edges,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EdgeGeometry:
        """This geometry on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EdgeGeometry:
        """This geometry in page-locked host memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: object) -> EdgeGeometry:
        assert callable(function)
        mapped = EdgeGeometry(function(self.rel_pos), self.max_degree)
        mapped._bases = {key: function(basis) for key, basis in self._bases.items()}
        mapped._made = {name: function(tensor) for name, tensor in self._made.items()}
        return mapped
