"""Frames with energies, forces and stress from any file that ASE reads (needs the extra ``ase``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from se3_fast.data.frames import CHUNK, ForceFrames
from se3_fast.data.label_units import LabelNames
from se3_fast.data.molecules import LARGEST_NUMBER, LARGEST_POSITION, DataError
from se3_fast.data.near_origin import cell_near_origin
from se3_fast.data.structures import read_structures
from se3_fast.forces import LARGEST_ATOMIC_NUMBER


def labelled_chunks(path: Path, index: str, names: LabelNames) -> Iterator[tuple[ForceFrames, list[int]]]:
    """Read frames and check them, some at a time. A label that a frame does not have is not a number.

    Args:
        path: Extended XYZ, an ASE trajectory or data base, or what else ASE reads.
        index: Which frames, as for :func:`se3_fast.data.structures.read_structures`.
        names: Under which names the labels are: of what a calculator has left, in ``info`` or in ``arrays``; and their units.

    Yields:
        Frames, and their numbers in the file.

    Raises:
        DataError: The file or one of its frames cannot be used; or no frame has an energy or forces.
    """
    described, has_labels = "", False
    structures = read_structures(path, index)
    while part := list(islice(structures, CHUNK)):
        frames = ForceFrames.joined([_checked_frame(path, number, atoms, names) for number, atoms in part])
        described = described or _described(part[0][1])
        has_labels = has_labels or bool(frames.energies.isfinite().any() or frames.forces.isfinite().any())
        yield frames, [number for number, _ in part]
    if not described:
        raise DataError(f"{path}: expected frames at index {index}, got none")
    if not has_labels:
        raise DataError(f"{path}: expected {names.energy!r} or {names.forces!r} in some frame, got {described}")


def _checked_frame(path: Path, number: int, atoms: Atoms, names: LabelNames) -> ForceFrames:
    try:
        return _frame(atoms, names)
    except ValueError as error:
        raise DataError(f"{path}: frame {number}: {error}") from None


def _frame(atoms: Atoms, names: LabelNames) -> ForceFrames:
    """One frame.

    Raises:
        ValueError: What is wrong with it.
    """
    count = len(atoms)
    _check(count > 0, "expected one atom at least, got none")
    known = (atoms.numbers >= 1) & (atoms.numbers <= LARGEST_ATOMIC_NUMBER)
    _check(known.all(), f"expected atomic numbers from 1 to {LARGEST_ATOMIC_NUMBER}, got {atoms.numbers[~known][:1].tolist()}")
    _check((np.abs(atoms.positions) <= LARGEST_POSITION).all(), f"expected finite positions of at most {LARGEST_POSITION:.3g}")
    cell, pbc = np.asarray(atoms.cell.array), np.asarray(atoms.pbc)
    lengths = np.linalg.norm(cell, axis=1)
    spans = np.isfinite(cell).all() and (np.linalg.svd(cell[pbc] / np.maximum(lengths[pbc, None], 1e-9))[1] > 1e-6).all()
    _check(spans, f"expected lattice vectors that span a volume, got {cell.tolist()}")
    energy = _numbers(atoms, [names.energy], [()])
    forces = _numbers(atoms, [names.forces], [(count, 3)])
    stress = _stress(atoms, names)
    dipole = None if atoms.pbc.any() else _numbers(atoms, [names.dipole], [(3,)])
    units = names.units
    return ForceFrames(
        n_atoms=torch.tensor([count]),
        atomic_numbers=torch.from_numpy(atoms.numbers.astype(np.int64)),
        pos=torch.from_numpy(cell_near_origin(units.angstrom * atoms.positions, units.angstrom * cell[pbc]).astype(np.float32)),
        energies=torch.tensor([np.nan if energy is None else units.eV * float(energy)], dtype=torch.float64),
        forces=_float32(None if forces is None else names.forces_sign * units.eV_per_angstrom * forces, (count, 3)),
        cells=torch.from_numpy(units.angstrom * cell[None].astype(np.float64)) if pbc.any() else None,
        pbc=torch.from_numpy(pbc[None].copy()) if pbc.any() else None,
        stresses=None if stress is None else _float32(units.eV / units.angstrom**3 * stress[None], (1, 3, 3)),
        dipoles=None if dipole is None else _float32(units.e_angstrom * dipole[None], (1, 3)),
    )


def _stress(atoms: Atoms, names: LabelNames) -> np.ndarray | None:
    """[3, 3], as it is called or from a virial, in the file's units; None where a frame has none, or is no crystal."""
    shapes = [(3, 3), (6,), (9,)]
    is_crystal = bool(atoms.pbc.all())
    stress = _numbers(atoms, [names.stress], shapes) if is_crystal else None
    if stress is None:
        virial = _numbers(atoms, names.virials, shapes)
        _check(
            virial is None or is_crystal, "expected a cell that is periodic in three directions with a virial, got a virial alone"
        )
        stress = None if virial is None else -virial / abs(np.linalg.det(atoms.cell.array))
    if stress is None:
        return None
    return voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress.reshape(3, 3)


def _check(condition: bool | np.bool_, fault: str) -> None:
    if not condition:
        raise ValueError(fault)


def _numbers(atoms: Atoms, names: Sequence[str], shapes: list[tuple[int, ...]]) -> np.ndarray | None:
    """A label of one of some names and shapes, of finite numbers, or not numbers where they are not known; or None."""
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    places = [(place, name) for name in names for place in (results, atoms.info, atoms.arrays)]
    name, value = next(((name, place[name]) for place, name in places if place.get(name) is not None), ("", None))
    if value is None:
        return None
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"expected numbers as {name!r}, got {value!r:.50}") from None
    if () in shapes and array.size == 1:
        array = array.reshape(())
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    _check(array.shape in shapes, f"expected {name!r} of shape {wanted}, got {list(array.shape)}")
    is_possible = np.isnan(array) | (np.abs(array) <= LARGEST_NUMBER)
    _check(bool(is_possible.all()), f"expected finite numbers as {name!r}, or NaN for unknown ones, got others")
    return array


def _float32(values: np.ndarray | None, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.full(shape, torch.nan) if values is None else torch.from_numpy(values.astype(np.float32))


def _described(atoms: Atoms) -> str:
    """The names of what a frame has, for a message."""
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    return ", ".join(sorted({*results, *atoms.info, *atoms.arrays} - {"numbers", "positions"}))[:200] or "no labels"
