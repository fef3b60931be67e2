"""Frames of atoms with the labels of force fields, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from se3_fast.data.molecules import ragged_indices


@dataclass(frozen=True)
class LabelNames:
    """Under which names files have the labels.

    Attributes:
        energy: Of a frame, eV.
        forces: Of its atoms, eV/Angstrom.
        stress: Of its cell, eV/Angstrom^3; ASE's sign and order.
    """

    energy: str = "energy"
    forces: str = "forces"
    stress: str = "stress"


DEFAULT_NAMES = LabelNames()


@dataclass(frozen=True)
class ForceFrames:
    """M frames (atoms in a geometry) with N atoms in all, one after the other. What is not known is not a number.

    Attributes:
        n_atoms: [M] int64, atoms of each frame.
        atomic_numbers: [N] int64.
        pos: [N, 3] float32, Angstrom.
        energies: [M] float64, eV.
        forces: [N, 3] float32, eV/Angstrom.
        cells: [M, 3, 3] float64, lattice vectors in rows, Angstrom; None: no frame is periodic.
        pbc: [M, 3] bool, the periodic directions; None as `cells`.
        stresses: [M, 3, 3] float32, eV/Angstrom^3; None: no frame has one.
    """

    n_atoms: Tensor
    atomic_numbers: Tensor
    pos: Tensor
    energies: Tensor
    forces: Tensor
    cells: Tensor | None = None
    pbc: Tensor | None = None
    stresses: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.n_atoms)

    def select(self, numbers: Sequence[int] | Tensor) -> ForceFrames:
        """Return frames in the order of their numbers."""
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        first_atom = self.n_atoms.cumsum(0) - self.n_atoms
        atoms = ragged_indices(first_atom[chosen], self.n_atoms[chosen])
        of_frames = (None if part is None else part[chosen] for part in (self.cells, self.pbc, self.stresses))
        return ForceFrames(
            self.n_atoms[chosen], self.atomic_numbers[atoms], self.pos[atoms], self.energies[chosen], self.forces[atoms], *of_frames
        )

    @staticmethod
    def joined(parts: Sequence[ForceFrames]) -> ForceFrames:
        """All frames of some, in order."""
        absent = {"cells": (0.0, torch.float64, (3, 3)), "pbc": (False, torch.bool, (3,))}
        absent["stresses"] = (torch.nan, torch.float32, (3, 3))
        columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(ForceFrames)}
        for name, (value, dtype, shape) in absent.items():
            if all(column is None for column in columns[name]):
                columns[name] = []
            else:
                columns[name] = [
                    torch.full((len(part), *shape), value, dtype=dtype) if column is None else column
                    for part, column in zip(parts, columns[name], strict=True)
                ]
        arrays: dict[str, Any] = {name: torch.cat(column) if column else None for name, column in columns.items()}
        return ForceFrames(**arrays)

    @property
    def volumes(self) -> Tensor:
        """[M] float64, of the cells that are periodic in three directions, Angstrom^3; 1 where a frame has none."""
        if self.cells is None or self.pbc is None:
            return torch.ones(len(self), dtype=torch.float64)
        return torch.where(self.pbc.all(1), torch.linalg.det(self.cells).abs(), 1.0)
