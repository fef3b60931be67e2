"""Structures of LMDB files in the form of ASE's data bases, ``.aselmdb``: compressed JSON (needs the extra ``lmdb``).

Other projects keep pickled objects in LMDB files; those are refused, never unpickled.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from ase import Atoms

from se3_fast.data.frames import chosen_numbers
from se3_fast.data.molecules import DataError
from se3_fast.error_text import one_line

try:
    import lmdb
    from ase_db_backends.aselmdb import LMDBDatabase
except ImportError:
    raise ImportError("LMDB files need ase-db-backends: pip install 'se3_fast[lmdb]'") from None

_PICKLE = b"\x80"
_BEGIN = 64
_MOST_JSON = 1 << 26
"""Bytes of the list of rows that were deleted."""


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
        _check_form(path)
        database = LMDBDatabase(str(path), readonly=True)
    except lmdb.Error as error:
        raise DataError(f"{path}: cannot be read as LMDB ({one_line(error)})") from error
    try:
        for number in chosen_numbers(path, index, len(database.ids)):
            yield number, _structure(path, database, number)
    finally:
        database.close()


def _structure(path: Path, database: LMDBDatabase, number: int) -> Atoms:
    try:
        row = database.get(id=database.ids[number])
        atoms = row.toatoms()
        atoms.info.update({**row.data, **row.key_value_pairs})
    except Exception as error:  # there is no list of what a row that somebody made up can raise
        raise DataError(f"{path}: frame {number}: ASE cannot read it ({type(error).__name__}: {one_line(error)})") from error
    assert isinstance(atoms, Atoms)
    return atoms


def _check_form(path: Path) -> None:
    """Whether the file is whole, and its values are what ASE writes.

    Raises:
        DataError: They are not.
        lmdb.Error: It is no LMDB file.
    """
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False, create=False) as environment:
        size = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if path.stat().st_size < size:
            raise DataError(f"{path}: expected {size} bytes, got {path.stat().st_size}: the file is cut short")
        with environment.begin() as transaction:
            for _, value in transaction.cursor():
                if bytes(value[:1]) == _PICKLE or _unpacked(value)[:1] == _PICKLE:
                    raise DataError(
                        f"{path}: expected the compressed JSON of ASE's .aselmdb files, got pickled objects, which are never read: "
                        "write them anew by ase.db, in a program that trusts them"
                    )
                break
            entries, stated = environment.stat()["entries"], transaction.get(b"nextid")
            rows = _unpacked(stated, _BEGIN) if stated else b""
            deleted = _unpacked(transaction.get(b"deleted_ids") or b"", _MOST_JSON)
            if not rows.isdigit() or not 1 < int(rows) <= entries + deleted.count(b",") + 2:
                raise DataError(f"{path}: expected rows of ASE's .aselmdb files, got {entries} other entries")


def _unpacked(value: bytes, most: int = 1) -> bytes:
    """The first bytes of what is compressed; none where that is damaged, or another form."""
    try:
        return zlib.decompressobj().decompress(value, most)
    except zlib.error:
        return b""
