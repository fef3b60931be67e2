"""Structures of LMDB files in the form of ASE's data bases, ``.aselmdb``: compressed JSON (needs the extra ``ase``).

Other projects keep pickled objects in LMDB files; those are refused, never unpickled.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import dict2constraint
from ase.io.jsonio import fix_int_keys_in_dicts, numpyfy, object_hook

from se3_fast.data.frames import chosen_numbers
from se3_fast.data.lmdb_file import LmdbError, LmdbFile
from se3_fast.data.molecules import DataError
from se3_fast.error_text import one_line

_PICKLE = b"\x80"
_FEW = 1 << 20
_MOST_PACKED = 100
"""Bytes that a stored byte may stand for in values of more than so few bytes: more than compression makes of structures."""

_OF_ATOMS = {"magmoms": "initial_magmoms", "charges": "initial_charges", "tags": "tags", "masses": "masses", "momenta": "momenta"}
"""What ASE's atoms may have, and what rows call it."""


def lmdb_structures(path: Path, index: str) -> Iterator[tuple[int, Atoms]]:
    """Read structures, one at a time. What rows have beside atoms and results stands in ``info``.

    Args:
        path: The file.
        index: Which: a number, or ``start:stop:step``.

    Yields:
        The number of the structure in the file, from 0 on, and the structure.

    Raises:
        DataError: The file is missing, damaged, pickled, or a row cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a file of LMDB, got {'a folder' if path.is_dir() else 'none'}")
    try:
        with LmdbFile(path) as file:
            rows = _rows(path, file)
            for number in chosen_numbers(path, index, len(rows)):
                yield number, _structure(path, file, number, rows[number])
    except (LmdbError, OSError) as error:
        raise DataError(f"{path}: cannot be read as LMDB ({one_line(error)})") from error


def _rows(path: Path, file: LmdbFile) -> Sequence[int]:
    """Numbers of the rows that were not deleted.

    Raises:
        DataError: The values are not what ASE writes.
        LmdbError: The file is damaged.
    """
    _refuse_pickles(path, file)
    stop, deleted = file.get(b"nextid") or b"", file.get(b"deleted_ids") or zlib.compress(b"[]")
    try:
        return _numbers(_json(stop), _json(deleted), file.entries)
    except Exception as error:  # somebody may have made up anything
        raise DataError(f"{path}: expected rows of ASE's .aselmdb files, got {file.entries} other entries") from error


def _numbers(stop: Any, deleted: Any, entries: int) -> Sequence[int]:
    """Numbers below the next one, without those that were deleted.

    Raises:
        ValueError: There cannot be so many.
    """
    gone = {number for number in deleted if type(number) is int}
    if type(stop) is not int or len(gone) != len(deleted) or not 1 < stop <= entries + len(gone) + 2:
        raise ValueError
    return [number for number in range(1, stop) if number not in gone] if gone else range(1, stop)


def _refuse_pickles(path: Path, file: LmdbFile) -> None:
    """Say what is in files of other projects, by the first value.

    Raises:
        DataError: It is pickled.
        LmdbError: The file is damaged.
    """
    value = file.first() or b""
    try:
        unpacked = zlib.decompressobj().decompress(value, 1)
    except zlib.error:
        unpacked = b""
    if _PICKLE in (value[:1], unpacked):
        raise DataError(
            f"{path}: expected the compressed JSON of ASE's .aselmdb files, got pickled objects, which are never read: "
            "write them anew by ase.db, in a program that trusts them"
        )


def _structure(path: Path, file: LmdbFile, number: int, row: int) -> Atoms:
    value = file.get(b"%d" % row)
    try:
        if value is None:
            raise KeyError(f"row {row} is missing")
        return _atoms(numpyfy(fix_int_keys_in_dicts(_json(value))))
    except Exception as error:  # there is no list of what a row that somebody made up can raise
        raise DataError(f"{path}: frame {number}: ASE cannot read it ({type(error).__name__}: {one_line(error)})") from error


def _atoms(row: dict[str, Any]) -> Atoms:
    """What a row describes."""
    more = {argument: row[name] for argument, name in _OF_ATOMS.items() if row.get(name) is not None}
    constraints = [dict2constraint(described) for described in row.get("constraints") or []]
    cell, pbc = (row.get(name) for name in ("cell", "pbc"))
    atoms = Atoms(row["numbers"], row["positions"], cell=cell, pbc=pbc, constraint=constraints, **more)
    results = {name: row[name] for name in all_properties if name in row}
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info.update({**row.get("data", {}), **row.get("key_value_pairs", {})})
    return atoms


def _json(value: bytes) -> Any:
    """The JSON of a compressed value, with ASE's arrays.

    Raises:
        ValueError: It is damaged, or unpacks to more than it can be.
    """
    most = max(_FEW, _MOST_PACKED * len(value))
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(value, most)
    except zlib.error as error:
        raise ValueError(one_line(error)) from None
    if not unpacking.eof:
        raise ValueError(f"expected at most {most} bytes of {len(value)} compressed ones, all of them there, got others")
    return json.loads(text, object_hook=_object)


def _object(described: dict[str, Any]) -> Any:
    """What ASE writes as an object: arrays of numbers that are as large as they say, cells; no other of ASE's classes is made.

    Raises:
        ValueError: An array is not what it says.
    """
    if "__ndarray__" in described:
        shape, dtype, values = described["__ndarray__"]
        kind = np.dtype(dtype)
        if kind.kind not in "fiub":
            return values
        if math.prod(shape) != len(values):
            raise ValueError(f"expected an array of {shape!s:.50}, got {len(values)} values")
        return np.array(values).astype(kind).reshape(shape)
    if "__ase_objtype__" in described:
        return described.get("array", described)
    return object_hook(described)
