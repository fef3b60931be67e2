"""Frames with energies, forces and stress from any file that ASE reads (needs the extra ``ase``)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from se3_fast.data.frames import CHUNK, ForceFrames, LabelNames
from se3_fast.data.molecules import LARGEST_NUMBER, LARGEST_POSITION, DataError
from se3_fast.data.structures import read_structures
from se3_fast.forces import LARGEST_ATOMIC_NUMBER


def labelled_chunks(path: Path, index: str, names: LabelNames) -> Iterator[tuple[ForceFrames, list[int]]]:
    """Read frames and check them, some at a time. A label that a frame does not have is not a number.

    Args:
        path: Extended XYZ, an ASE trajectory or data base, or what else ASE reads.
        index: Which frames, as for :func:`se3_fast.data.structures.read_structures`.
        names: Under which names the labels are: of what a calculator has left, in ``info`` or in ``arrays``; eV and Angstrom.

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
    energy = _numbers(atoms, names.energy, [()])
    forces = _numbers(atoms, names.forces, [(count, 3)])
    stress = _numbers(atoms, names.stress, [(3, 3), (6,), (9,)]) if pbc.all() else None
    if stress is not None:
        stress = voigt_6_to_full_3x3_stress(stress) if stress.shape == (6,) else stress.reshape(3, 3)
    return ForceFrames(
        n_atoms=torch.tensor([count]),
        atomic_numbers=torch.from_numpy(atoms.numbers.astype(np.int64)),
        pos=torch.from_numpy(atoms.positions.astype(np.float32)),
        energies=torch.tensor([np.nan if energy is None else float(energy)], dtype=torch.float64),
        forces=_float32(forces, (count, 3)),
        cells=torch.from_numpy(cell[None].astype(np.float64)) if pbc.any() else None,
        pbc=torch.from_numpy(pbc[None].copy()) if pbc.any() else None,
        stresses=None if stress is None else _float32(stress[None], (1, 3, 3)),
    )


def _check(condition: bool | np.bool_, fault: str) -> None:
    if not condition:
        raise ValueError(fault)


def _numbers(atoms: Atoms, name: str, shapes: list[tuple[int, ...]]) -> np.ndarray | None:
    """A label of one of some shapes, finite, or None."""
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    value: Any = next((place[name] for place in (results, atoms.info, atoms.arrays) if place.get(name) is not None), None)
    if value is None:
        return None
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        raise ValueError(f"expected numbers as {name!r}, got {value!r:.50}") from None
    if () in shapes and array.size == 1:
        array = array.reshape(())
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    _check(array.shape in shapes, f"expected {name!r} of shape {wanted}, got {list(array.shape)}")
    _check(bool((np.abs(array) <= LARGEST_NUMBER).all()), f"expected finite numbers as {name!r}, got others")
    return array


def _float32(values: np.ndarray | None, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.full(shape, torch.nan) if values is None else torch.from_numpy(values.astype(np.float32))


def _described(atoms: Atoms) -> str:
    """The names of what a frame has, for a message."""
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    return ", ".join(sorted({*results, *atoms.info, *atoms.arrays} - {"numbers", "positions"}))[:200] or "no labels"
