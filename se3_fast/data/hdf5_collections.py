"""Frames of HDF5 collections: a group for each molecule, with its conformations one after the other (needs the extra ``hdf5``).

Every group that holds ``atomic_numbers`` and positions is a molecule, however deep it lies. Nothing outside of the file is read,
and nothing is unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from se3_fast.data.frames import CHUNK, ForceFrames, chosen_numbers, chosen_slice
from se3_fast.data.hdf5_heaps import Heaps
from se3_fast.data.label_units import LabelNames, dipole_unit, energy_unit, forces_unit, length_unit
from se3_fast.data.molecules import LARGEST_NUMBER, LARGEST_POSITION, DataError
from se3_fast.data.near_origin import near_origin
from se3_fast.error_text import one_line
from se3_fast.forces import LARGEST_ATOMIC_NUMBER

try:
    import h5py
except ImportError:
    raise ImportError("HDF5 collections need h5py: pip install 'se3_fast[hdf5]'") from None

ATOMIC_NUMBERS = "atomic_numbers"
POSITIONS = ("conformations", "coordinates", "positions")
"""What positions may be called, unless an option says it."""

_PERIODIC = ("cell", "cells", "lattice", "pbc")
_MOST_PACKED = 2000
"""Bytes that a stored byte may stand for: more than compression makes of atoms, less than a made-up file would claim."""

_MOST_CHUNK = 1 << 28
"""Bytes that are unpacked together, unless the whole dataset has more."""

_MOST_FRAMES = 1 << 48
_ATOMS_TOGETHER = 1 << 20
_CACHE = 1 << 18


def collection_chunks(path: Path, index: str, names: LabelNames) -> Iterator[tuple[ForceFrames, list[int]]]:
    """Read frames and check them, some at a time. A label that a frame does not have, or that is NaN, is not a number.

    Args:
        path: The file.
        index: Which of its frames, which are numbered through its groups in their order: a number, or ``start:stop:step``.
        names: Names of positions and labels; units of those whose dataset has no attribute ``units``.

    Yields:
        Frames, and their numbers in the file.

    Raises:
        DataError: The file or one of its groups cannot be used; or no frame has an energy or forces.
    """
    described: set[str] = set()
    has_labels, parts, numbers = False, list[ForceFrames](), list[int]()
    with _opened(path) as file:
        for molecule, part in _chosen_parts(path, file, index, names):
            frames = molecule.frames(part)
            described |= molecule.members if len(described) < CHUNK else set()
            has_labels = has_labels or bool(frames.energies.isfinite().any() or frames.forces.isfinite().any())
            parts.append(frames)
            numbers += range(molecule.first + part.start, molecule.first + part.stop, part.step)
            if len(numbers) >= CHUNK:
                yield ForceFrames.joined(parts), numbers
                parts, numbers = [], []
    if parts:
        yield ForceFrames.joined(parts), numbers
    if not described:
        raise DataError(f"{path}: expected frames at index {index}, got none")
    if not has_labels:
        found = ", ".join(sorted(described - {ATOMIC_NUMBERS}))[:300]
        raise DataError(f"{path}: expected {names.energy!r} or {names.forces!r} in some group, got {found}")


def _chosen_parts(path: Path, file: h5py.File, index: str, names: LabelNames) -> Iterator[tuple[_Molecule, range]]:
    """Molecules, and which of their conformations are chosen, at most a chunk of them together."""
    chosen = chosen_slice(index)
    if (chosen.start or 0) < 0 or (chosen.stop or 0) < 0:  # counted from the end
        numbers = chosen_numbers(path, index, sum(len(molecule) for molecule in _molecules(path, file, names)))
    else:
        numbers = range(_MOST_FRAMES)[chosen]
    if not numbers:
        return
    is_found = False
    for molecule in _molecules(path, file, names):
        is_found = True
        if not len(molecule):
            molecule.frames(range(0))  # labels have as many rows: none
        first, stop = (
            max(0, -((numbers.start - place) // numbers.step)) for place in (molecule.first, molecule.first + len(molecule))
        )
        here = numbers[first:stop]
        size = max(1, min(CHUNK, _ATOMS_TOGETHER // molecule.num_atoms))
        for start in range(0, len(here), size):
            part = here[start : start + size]
            yield molecule, range(part.start - molecule.first, part[-1] + 1 - molecule.first, part.step)
        if molecule.first + len(molecule) > numbers[-1]:
            return
    if not is_found:
        wanted = " or ".join(POSITIONS if names.positions is None else (names.positions,))
        raise DataError(f"{path}: expected groups with {ATOMIC_NUMBERS} and {wanted}, got none")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            _keep_little(file)
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:  # h5py has them for damaged files
        raise DataError(f"{path}: cannot be read as HDF5 ({one_line(error)})") from error


def _keep_little(file: h5py.File) -> None:
    """Bound what the library keeps of groups it has seen.

    What it keeps by itself is small, but lies between blocks of frames that are freed, whose memory then does not go back to the
    system: it grew with the file.
    """
    cache = file.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = _CACHE
    cache.incr_mode = cache.flash_incr_mode = cache.decr_mode = 0
    file.id.set_mdc_config(cache)


def _molecules(path: Path, file: h5py.File, names: LabelNames) -> Iterator[_Molecule]:
    """All groups that are molecules, from the first on; a group before those within it."""
    seen: set[int] = set()
    first = 0
    waiting: list[Iterator[h5py.Group]] = [iter([file])]
    heaps = Heaps(path, file.userblock_size)
    while waiting:
        group = next(waiting[-1], None)
        if group is None:
            waiting.pop()
            continue
        place = h5py.h5o.get_info(group.id).addr
        if place in seen:  # a group may have several names, and be within itself
            continue
        seen.add(place)
        wanted = POSITIONS if names.positions is None else (names.positions,)
        members = set(group)
        positions = [name for name in wanted if name in members]
        if ATOMIC_NUMBERS in members and positions:
            molecule = _Molecule(f"{path}: group {group.name!r:.100}", group, positions, first, names, heaps)
            first += len(molecule)
            yield molecule
        waiting.append(_groups_within(group))


def _groups_within(group: h5py.Group) -> Iterator[h5py.Group]:
    """Not those behind links, which may lead out of the file."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink) and group.get(name, getclass=True) is h5py.Group:
            yield group[name]


class _Molecule:
    """A group with the conformations of a molecule.

    Args:
        called: What errors call it.
        group: The group.
        positions: Names of what may be its positions.
        first: Number of its first conformation in the file.
        names: Names and units of what it holds.
        heaps: Of the file.

    Attributes:
        members: Names of what the group holds.
        first: As given.
        num_atoms: Of a conformation.

    Raises:
        DataError: Its arrays do not fit together.
    """

    def __init__(self, called: str, group: h5py.Group, positions: list[str], first: int, names: LabelNames, heaps: Heaps) -> None:
        self._called, self._group, self.first, self._names, self._heaps = called, group, first, names, heaps
        self._check(len(positions) == 1, f"expected one of {', '.join(positions)} (--positions_name says which), got all")
        self.members = set(group)
        periodic = [name for name in _PERIODIC if name in self.members]
        self._check(not periodic, f"expected a molecule without a cell, got {', '.join(periodic)}")
        self._numbers, self._positions = (self._dataset(name, is_whole=True) for name in (ATOMIC_NUMBERS, positions[0]))
        shape = self._positions.shape
        is_known = len(shape) == 3 and shape[1] >= 1 and shape[2] == 3
        self._check(is_known, f"expected {positions[0]!r} of shape [conformations, atoms, 3], got {list(shape)}")
        self._count, self.num_atoms = shape[0], shape[1]
        is_fitting = self._numbers.shape in ((self.num_atoms,), shape[:2]) and self._numbers.dtype.kind in "iu"
        self._check(
            is_fitting,
            f"expected {ATOMIC_NUMBERS!r} of shape {[self.num_atoms]} or {list(shape[:2])}, integers, "
            f"got {list(self._numbers.shape)}, {self._numbers.dtype}",
        )

    def __len__(self) -> int:
        """Return the number of conformations."""
        return self._count

    def frames(self, part: range) -> ForceFrames:
        """Some of the conformations.

        Raises:
            DataError: A number in them cannot be.
        """
        count, rows = len(part), slice(part.start, part.stop, part.step)
        numbers = self._numbers[()] if self._numbers.ndim == 1 else self._numbers[rows]
        is_element = (numbers >= 1) & (numbers <= LARGEST_ATOMIC_NUMBER)
        self._check(is_element.all(), f"expected atomic numbers from 1 to {LARGEST_ATOMIC_NUMBER}, got others")
        lengths = self._unit(self._positions, length_unit, self._names.units.angstrom)
        positions = lengths * self._floats(self._positions, rows)
        self._check((np.abs(positions) <= LARGEST_POSITION).all(), f"expected finite positions of at most {LARGEST_POSITION:.3g}")
        names, units = self._names, self._names.units
        energies, in_eV = self._label(names.energy, rows, [(count,), (count, 1)], energy_unit, units.eV)
        otherwise = in_eV / lengths if units.forces is None else units.eV_per_angstrom
        forces, in_eV_per_angstrom = self._label(names.forces, rows, [(count, self.num_atoms, 3)], forces_unit, otherwise)
        dipoles = None
        if names.dipole in self.members:
            values, in_e_angstrom = self._label(names.dipole, rows, [(count, 3)], dipole_unit, units.e_angstrom)
            dipoles = torch.from_numpy((in_e_angstrom * values).astype(np.float32))
        return ForceFrames(
            n_atoms=torch.full((count,), self.num_atoms),
            atomic_numbers=torch.from_numpy(np.broadcast_to(numbers, (count, self.num_atoms)).astype(np.int64).reshape(-1)),
            pos=torch.from_numpy(near_origin(positions.reshape(-1, 3), np.full(count, self.num_atoms)).astype(np.float32)),
            energies=torch.from_numpy(in_eV * energies.reshape(count)),
            forces=torch.from_numpy((names.forces_sign * in_eV_per_angstrom * forces).reshape(-1, 3).astype(np.float32)),
            dipoles=dipoles,
        )

    def _label(
        self, name: str, rows: slice, shapes: list[tuple[int, ...]], known: Callable[[str], float], otherwise: float
    ) -> tuple[np.ndarray, float]:
        """A label, float64 of one of some shapes, and what its unit is in ours; not numbers where there is none."""
        if name not in self.members:
            return np.full(shapes[0], np.nan), otherwise
        dataset = self._dataset(name)
        shape = (len(range(*rows.indices(dataset.shape[0]))), *dataset.shape[1:]) if dataset.ndim else ()
        wanted = " or ".join(str([self._count, *shape[1:]]) for shape in shapes)
        is_fitting = dataset.ndim > 0 and dataset.shape[0] == self._count and shape in shapes
        self._check(is_fitting, f"expected {name!r} of shape {wanted}, got {list(dataset.shape)}")
        values = self._floats(dataset, rows)
        is_possible = np.isnan(values) | (np.abs(values) <= LARGEST_NUMBER)
        self._check(is_possible.all(), f"expected finite numbers as {name!r}, or NaN for unknown ones, got others")
        return values, self._unit(dataset, known, otherwise)

    def _dataset(self, name: str, is_whole: bool = False) -> h5py.Dataset:
        """A dataset whose values stand in the file; `is_whole`: all of them."""
        is_own = isinstance(self._group.get(name, getlink=True), h5py.HardLink)
        dataset = self._group[name] if is_own else None
        is_own = isinstance(dataset, h5py.Dataset) and not dataset.is_virtual and dataset.external is None
        self._check(is_own, f"expected {name!r} to be a dataset with its values in the file, got something else")
        assert isinstance(dataset, h5py.Dataset)
        is_number = dataset.shape is not None and dataset.dtype.kind in "fiu"
        self._check(is_number, f"expected numbers as {name!r}, got {'none' if dataset.shape is None else dataset.dtype}")
        size, chunk = (math.prod(shape) * dataset.dtype.itemsize for shape in (dataset.shape, dataset.chunks or ()))
        self._check(
            chunk <= max(size, _MOST_CHUNK), f"expected chunks within {list(dataset.shape)} in {name!r}, got {dataset.chunks}"
        )
        if is_whole:
            stored = dataset.id.get_storage_size()
            self._check(size <= _MOST_PACKED * stored, f"expected values of all of {list(dataset.shape)} in {name!r}, got fewer")
        return dataset

    def _floats(self, dataset: h5py.Dataset, rows: slice) -> np.ndarray:
        return np.asarray(dataset[rows], dtype=np.float64)

    def _unit(self, dataset: h5py.Dataset, known: Callable[[str], float], otherwise: float) -> float:
        """What its attribute ``units`` says."""
        if "units" not in dataset.attrs:
            return otherwise
        kind = h5py.h5a.open(dataset.id, b"units").get_type()
        self._check(
            isinstance(kind, h5py.h5t.TypeStringID), f"expected text as 'units' of {dataset.name!r:.100}, got something else"
        )
        if kind.is_variable_str():
            self._heaps.check(h5py.h5o.get_info(dataset.id).addr, "units")
        stated = dataset.attrs["units"]
        text = stated.decode("utf-8", "replace") if isinstance(stated, bytes) else str(stated)
        try:
            return known(text)
        except ValueError as error:
            raise DataError(f"{self._called}: {dataset.name!r:.100}: {error}") from None

    def _check(self, condition: bool | np.bool_, fault: str) -> None:
        if not condition:
            raise DataError(f"{self._called}: {fault}")
