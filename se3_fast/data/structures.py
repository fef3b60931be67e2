"""Structures of any file that ASE reads, one after the other; a fault names the file and the frame (needs the extra ``ase``)."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import ase.io
from ase import Atoms

from se3_fast.data.frames import LMDB, chosen_slice
from se3_fast.data.molecules import DataError
from se3_fast.error_text import one_line

_XYZ = (".xyz", ".extxyz")


def read_structures(path: str | os.PathLike[str], index: str = ":") -> Iterator[tuple[int, Atoms]]:
    """Read structures; of extended XYZ one at a time, however many there are.

    Args:
        path: The file.
        index: Which: a number, or ``start:stop:step``, as ASE takes it.

    Yields:
        The number of the frame in the file, from 0 on (of a slice that counts from the end: in the slice), and the structure.

    Raises:
        DataError: The file is missing, ASE does not know its format, or a frame cannot be read.
    """
    path = Path(path)
    chosen = chosen_slice(index)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.suffix.lower() in LMDB:
        # Not at the top: other files do without LMDB.
        from se3_fast.data.lmdb_shards import lmdb_structures

        yield from lmdb_structures(path, index)
        return
    counts_from_start = (chosen.start or 0) >= 0 and (chosen.stop or 0) >= 0
    if not counts_from_start:
        yield from _frames(path, chosen)
        return
    frames = _xyz_frames(path) if path.suffix.lower() in _XYZ else _frames(path, slice(None))
    yield from islice(frames, chosen.start, chosen.stop, chosen.step)


def _frames(path: Path, chosen: slice) -> Iterator[tuple[int, Atoms]]:
    frames = ase.io.iread(str(path), index=chosen, do_not_split_by_at_sign=True)  # it would take what follows for an index
    for number in count():
        try:
            atoms = next(frames, None)
        except Exception as error:  # its readers fail in as many ways as there are formats
            raise DataError(f"{path}: frame {number}: ASE cannot read it ({type(error).__name__}: {one_line(error)})") from error
        if atoms is None:
            return
        yield number, atoms


def _xyz_frames(path: Path) -> Iterator[tuple[int, Atoms]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for number in count():
            head = next((line for line in file if line.strip()), None)
            if head is None:
                return
            try:
                yield number, _xyz_frame(head, file)
            except Exception as error:  # ASE's parser has no list of what it raises
                raise DataError(f"{path}: frame {number}: cannot be read as extended XYZ ({one_line(error)})") from error


def _xyz_frame(head: str, file: io.TextIOBase) -> Atoms:
    num_atoms = int(head)
    lines = list(islice(file, num_atoms + 1))
    if len(lines) != num_atoms + 1:
        raise ValueError(f"expected {num_atoms} atoms, got {max(len(lines) - 1, 0)}")
    atoms = ase.io.read(io.StringIO("".join([head, *lines])), format="extxyz")
    assert isinstance(atoms, Atoms)
    return atoms
