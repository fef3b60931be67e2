"""Frames of atoms with the labels of force fields, as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from se3_fast.data.molecules import DataError, first_of_each, ragged_indices

CHUNK = 1024
"""Frames that are looked at together where all of a large data set are."""


COLLECTIONS = (".h5", ".hdf5")
"""How the names of HDF5 collections end."""

LMDB = (".aselmdb", ".lmdb")
"""How the names of LMDB files end."""


class FrameError(DataError):
    """A frame cannot be used; the message names it and what is wrong with it.

    A process that loads data hands it on as the text of its traceback, of which the last line says what this says.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip("\n").rpartition("FrameError: ")[2])


def chosen_slice(index: str) -> slice:
    """Which frames an index chooses: the number of one, or ``start:stop:step`` with a step of at least 1.

    Raises:
        DataError: It is neither.
    """
    try:
        parts = [int(part) if part.strip() else None for part in index.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or parts == [None]:
        raise DataError(f"index: expected the number of a frame or start:stop:step, got {index!r:.50}")
    if len(parts) == 1 and parts[0] is not None:
        return slice(parts[0], parts[0] + 1 or None)
    chosen = slice(*parts)
    if chosen.step is not None and chosen.step < 1:
        raise DataError(f"index: expected a step of at least 1, got {index!r:.50}")
    return chosen


def chosen_numbers(path: Path, index: str, count: int) -> range:
    """The numbers of the frames that an index chooses of all that a file has.

    Raises:
        DataError: It chooses none, or is no index.
    """
    numbers = range(count)[chosen_slice(index)]
    if not numbers:
        raise DataError(f"{path}: expected frames at index {index}, got none of its {count}")
    return numbers


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
        dipoles: [M, 3] float32, e Angstrom; None: no frame has one.
    """

    n_atoms: Tensor
    atomic_numbers: Tensor
    pos: Tensor
    energies: Tensor
    forces: Tensor
    cells: Tensor | None = None
    pbc: Tensor | None = None
    stresses: Tensor | None = None
    dipoles: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.n_atoms)

    @property
    def has_cells(self) -> bool:
        """Whether some frame may be periodic."""
        return self.cells is not None

    @property
    def has_stresses(self) -> bool:
        """Whether some frame may have a stress."""
        return self.stresses is not None

    @property
    def has_dipoles(self) -> bool:
        """Whether some frame may have a dipole."""
        return self.dipoles is not None

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending."""
        return self.atomic_numbers.unique().tolist()

    @cached_property
    def first_atom(self) -> Tensor:
        """[M] int64, where each frame begins among the atoms."""
        return first_of_each(self.n_atoms)

    def frame_of_atoms(self) -> Tensor:
        """[N] int64, the frame of each atom."""
        return torch.arange(len(self)).repeat_interleave(self.n_atoms)

    def select(self, numbers: Sequence[int] | Tensor) -> ForceFrames:
        """Return frames in the order of their numbers."""
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        atoms = ragged_indices(self.first_atom[chosen], self.n_atoms[chosen])
        of_frames = (None if part is None else part[chosen] for part in (self.cells, self.pbc, self.stresses, self.dipoles))
        return ForceFrames(
            self.n_atoms[chosen], self.atomic_numbers[atoms], self.pos[atoms], self.energies[chosen], self.forces[atoms], *of_frames
        )

    def edges_of_frames(self, cutoff: float) -> Tensor | None:
        """None: they are not known."""
        return None

    def completed(self, has_cells: bool, has_stresses: bool, has_dipoles: bool = False) -> ForceFrames:
        """The same frames, with cells, stresses, dipoles where they are to have them: of what is not periodic, and not known."""
        count, new = len(self), {}
        if has_cells and self.cells is None:
            new = {"cells": torch.zeros(count, 3, 3, dtype=torch.float64), "pbc": torch.zeros(count, 3, dtype=torch.bool)}
        if has_stresses and self.stresses is None:
            new["stresses"] = torch.full((count, 3, 3), torch.nan)
        if has_dipoles and self.dipoles is None:
            new["dipoles"] = torch.full((count, 3), torch.nan)
        return replace(self, **new) if new else self

    @staticmethod
    def joined(parts: Sequence[ForceFrames]) -> ForceFrames:
        """All frames of some, in order."""
        kinds = [any(getattr(part, f"has_{name}") for part in parts) for name in ("cells", "stresses", "dipoles")]
        whole = [part.completed(*kinds) for part in parts]
        columns = {field.name: [getattr(part, field.name) for part in whole] for field in fields(ForceFrames)}
        arrays: dict[str, Any] = {name: None if column[0] is None else torch.cat(column) for name, column in columns.items()}
        return ForceFrames(**arrays)

    @property
    def volumes(self) -> Tensor:
        """[M] float64, of the cells that are periodic in three directions, Angstrom^3; 1 where a frame has none."""
        if self.cells is None or self.pbc is None:
            return torch.ones(len(self), dtype=torch.float64)
        return torch.where(self.pbc.all(1), torch.linalg.det(self.cells).abs(), 1.0)


class FrameSource(Protocol):
    """Frames, in memory or in files, of which some are taken at a time."""

    @property
    def has_cells(self) -> bool:
        """Whether those that are taken have cells."""

    @property
    def has_stresses(self) -> bool:
        """Whether those that are taken have stresses."""

    @property
    def has_dipoles(self) -> bool:
        """Whether those that are taken have dipoles."""

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending."""

    def __len__(self) -> int:
        """Return the number of frames."""

    def select(self, numbers: Sequence[int] | Tensor) -> ForceFrames:
        """Return frames in the order of their numbers."""

    def edges_of_frames(self, cutoff: float) -> Tensor | None:
        """[M] int64, how many edges within a cutoff each frame has; None: that is not known."""


class JoinedFrames:
    """All frames of several sources, in order; nothing is copied before it is taken.

    Args:
        sources: The sources.
    """

    def __init__(self, sources: Sequence[FrameSource]) -> None:
        self._sources = sources
        self._ends = torch.tensor([len(source) for source in sources]).cumsum(0)
        self.has_cells = any(source.has_cells for source in sources)
        self.has_stresses = any(source.has_stresses for source in sources)
        self.has_dipoles = any(source.has_dipoles for source in sources)
        self.elements = sorted({element for source in sources for element in source.elements})

    def __len__(self) -> int:
        """Return the number of frames."""
        return int(self._ends[-1])

    def edges_of_frames(self, cutoff: float) -> Tensor | None:
        """[M] int64, how many edges within a cutoff each frame has; None: that is not known of all."""
        known = [edges for source in self._sources if (edges := source.edges_of_frames(cutoff)) is not None]
        return torch.cat(known) if len(known) == len(self._sources) else None

    def select(self, numbers: Sequence[int] | Tensor) -> ForceFrames:
        """Return frames in the order of their numbers."""
        chosen = torch.as_tensor(numbers, dtype=torch.int64)
        source_of, parts, places = torch.bucketize(chosen, self._ends, right=True), [], []
        for number, source in enumerate(self._sources):
            (place,) = (source_of == number).nonzero(as_tuple=True)
            if len(place) or not len(chosen):
                first = self._ends[number] - len(source)
                parts.append(source.select(chosen[place] - first).completed(self.has_cells, self.has_stresses, self.has_dipoles))
                places.append(place)
        if len(parts) == 1:
            return parts[0]
        return ForceFrames.joined(parts).select(torch.cat(places).argsort())


class SomeFrames:
    """Some frames of a source; nothing is copied before it is taken.

    Args:
        source: The source.
        numbers: Those of its frames that are meant, one at least.

    Attributes:
        source: As given.
    """

    def __init__(self, source: FrameSource, numbers: Sequence[int]) -> None:
        self.source = source
        self._numbers = torch.as_tensor(numbers, dtype=torch.int64)
        self.has_cells, self.has_stresses, self.has_dipoles = source.has_cells, source.has_stresses, source.has_dipoles

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._numbers)

    @cached_property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending."""
        return sorted({element for chunk in chunks_of(self) for element in chunk.elements})

    def edges_of_frames(self, cutoff: float) -> Tensor | None:
        """[M] int64, how many edges within a cutoff each frame has; None: that is not known."""
        known = self.source.edges_of_frames(cutoff)
        return None if known is None else known[self._numbers]

    def select(self, numbers: Sequence[int] | Tensor) -> ForceFrames:
        """Return frames in the order of their numbers."""
        return self.source.select(self._numbers[torch.as_tensor(numbers, dtype=torch.int64)])


def chunks_of(frames: FrameSource, numbers: Tensor | None = None) -> Iterator[ForceFrames]:
    """Some frames, a chunk after the other, in ascending order of their numbers; None: all."""
    ascending = torch.arange(len(frames)) if numbers is None else numbers.sort().values
    for part in ascending.split(CHUNK):
        yield frames.select(part)
