"""Molecules of files, one after the other: nothing is read before it is asked for, and no record is kept.

A record that cannot be read comes as one with a fault; the next one is read.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import TextIO

import numpy as np
from rdkit import Chem

from se3_fast.data.molecule_arrays import MOST_ATOMS, MoleculeArrays
from se3_fast.data.molecules import MoleculeDataset, read_molecules
from se3_fast.data.number_text import number_of_text

from .options import SUFFIXES
from .records import (
    Record,
    RecordError,
    charge_of,
    check_positions,
    first_line,
    items_of,
    keep_item,
    molecule_of_atoms,
    molecule_of_block,
    molecule_of_smiles,
)

_MOST_LINES = 10_000
"""Lines of a record that are kept; the longest molecule that is served has far fewer."""

_DATA_HEADER = re.compile(r">.*?<([^<>]+)>")
_NAME_COLUMNS = ("name", "id", "title")
_PLAIN_COLUMNS = {"species": (0, 1), "pos": (1, 3)}


def read_file(path: Path, smiles_column: str = "smiles", columns: Sequence[str] = ()) -> Iterator[Record]:
    """The molecules of a file, by the ending of its name: one of ``SUFFIXES``.

    Args:
        path: The file.
        smiles_column: Of a CSV file, the column of its SMILES; case matters only where titles differ in nothing else.
        columns: Of a CSV file the columns, likewise, of an SDF the properties, whose contents records are to have.

    Raises:
        ValueError: Another ending, or the whole file is none of its kind.
        OSError: It cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _read_npz(path)
    if suffix == ".csv":
        return _read_text(path, partial(_read_csv, path=path, smiles_column=smiles_column, columns=columns))
    if suffix not in _TEXT_READERS:
        raise ValueError(f"{path}: expected a file whose name ends in {', '.join(SUFFIXES)}")
    records = _read_text(path, _TEXT_READERS[suffix])
    return (_with_properties(record, columns) for record in records) if columns else records


def check_columns(path: Path, smiles_column: str = "smiles", columns: Sequence[str] = ()) -> None:
    """Check that a CSV file has the columns that :func:`read_file` is to read; other files have no list of what is in them.

    Raises:
        ValueError: It has not, or has one of them twice.
        OSError: It cannot be read.
    """
    if path.suffix.lower() == ".csv":
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            _places(path, _titles(csv.reader(file)), smiles_column, columns)


def _with_properties(record: Record, names: Sequence[str]) -> Record:
    """The record with those of these properties that its molecule has."""
    molecule = record.molecule
    if not isinstance(molecule, Chem.Mol):
        return record
    items = items_of(molecule)
    return replace(record, columns={name: items[name] for name in names if name in items})


def item_names(path: Path) -> set[str]:
    """Names of the data items of an SDF; none of another file.

    Raises:
        OSError: It cannot be read.
    """
    if _TEXT_READERS.get(path.suffix.lower()) is not _read_sdf:
        return set()
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return {header[1] for header in map(_DATA_HEADER.match, file) if header is not None}


def read_smiles(texts: Iterable[str]) -> Iterator[Record]:
    """The molecules of SMILES, numbered from 1."""
    for number, text in enumerate(texts, 1):
        yield _record(partial(molecule_of_smiles, text), "", number, text)


def _record(make: Callable[[], Chem.Mol], file: str, number: int, name: str) -> Record:
    try:
        return Record(file, number, name, make())
    except (ValueError, RuntimeError) as error:  # the latter of RDKit
        return Record(file, number, name, fault=first_line(error))


def _read_text(path: Path, read: Callable[[TextIO, str], Iterator[Record]]) -> Iterator[Record]:
    # Other bytes than text spoil their record, not the file.
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from read(file, str(path))


def _read_sdf(file: TextIO, name: str) -> Iterator[Record]:
    lines: list[str] = []
    count = number = 0
    for line in file:
        if line.startswith("$$$$"):
            number += 1
            yield _block_record(lines, count, name, number)
            lines, count = [], 0
        else:
            count += 1
            if count <= _MOST_LINES:
                lines.append(line)
    if any(map(str.strip, lines)):
        yield _block_record(lines, count, name, number + 1)


def _block_record(lines: list[str], count: int, file: str, number: int) -> Record:
    title = lines[0].strip() if lines else ""
    if count > _MOST_LINES:
        return Record(file, number, title, fault=f"more than {_MOST_LINES} lines")
    return _record(partial(_molecule_with_properties, [line.rstrip("\r\n") for line in lines]), file, number, title)


def _molecule_with_properties(lines: list[str]) -> Chem.Mol:
    """The molecule of a record of an SDF, with its data items, which go on to an SDF that is written.

    Raises:
        RecordError: It cannot be read.
    """
    molecule = molecule_of_block([line + "\n" for line in lines])
    for name, value in _data_items(lines):
        keep_item(molecule, name, value)
    return molecule


def _data_items(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Names and values of the data items below a MOL block."""
    below = iter(lines)
    for line in below:
        header = _DATA_HEADER.match(line)
        if header is not None:
            yield header[1], "\n".join(takewhile(str.strip, below))


def _read_smiles_file(file: TextIO, name: str) -> Iterator[Record]:
    for number, line in enumerate(file, 1):
        words = line.split(maxsplit=1)
        if not words or (number == 1 and words[0].lower() == "smiles"):
            continue
        title = words[1].strip() if len(words) > 1 else ""
        yield _record(partial(molecule_of_smiles, words[0]), name, number, title)


def _titles(table: Iterator[list[str]]) -> list[str]:
    try:
        return next(table, [])
    except csv.Error:  # no table, so that it has no columns
        return []


def _places(
    path: Path, titles: Sequence[str], smiles_column: str, columns: Sequence[str]
) -> tuple[int, dict[str, int], int | None]:
    """Where SMILES, further columns and names stand in a table with these titles.

    Raises:
        ValueError: One of the columns is not there, or there twice.
    """
    of_smiles = _place(path, titles, smiles_column, "of SMILES")
    header = [title.strip().lower() for title in titles]
    of_name = next((header.index(title) for title in _NAME_COLUMNS if title in header), None)
    return of_smiles, {column: _place(path, titles, column, "as well") for column in columns}, of_name


def _place(path: Path, titles: Sequence[str], column: str, purpose: str) -> int:
    """Where a column stands: the one of exactly this title, else the one whose title differs in case alone.

    Raises:
        ValueError: There is none, or more than one.
    """
    stripped = [title.strip() for title in titles]
    places = [place for place, title in enumerate(stripped) if title == column.strip()]
    places = places or [place for place, title in enumerate(stripped) if title.lower() == column.strip().lower()]
    if not places:
        raise ValueError(f"{path}: expected a column {column!r} {purpose}, got {', '.join(stripped)[:200] or 'nothing'}")
    if len(places) > 1:
        raise ValueError(f"{path}: expected one column {column!r}, got {len(places)} of this name")
    return places[0]


def _read_csv(file: TextIO, name: str, path: Path, smiles_column: str, columns: Sequence[str]) -> Iterator[Record]:
    table = csv.reader(file)
    of_smiles, places, of_name = _places(path, _titles(table), smiles_column, columns)
    while True:
        try:
            row = next(table, None)
        except csv.Error as error:
            yield Record(name, table.line_num, fault=f"not a line of CSV ({error})")
            continue
        if row is None:
            return
        if not row:
            continue
        title = row[of_name] if of_name is not None and of_name < len(row) else ""
        smiles = row[of_smiles] if of_smiles < len(row) else ""
        contents = {column: row[place] for column, place in places.items() if place < len(row)}
        yield replace(_record(partial(molecule_of_smiles, smiles), name, table.line_num, title), columns=contents)


def _read_xyz(file: TextIO, name: str) -> Iterator[Record]:
    """Frames of a number of atoms, a comment, and a line for each atom. Where no number stands, lines are passed over up to one."""
    number, is_lost = 0, False
    for line in file:
        number += 1
        start, text = number, line.strip()
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            if text and not is_lost:
                yield Record(name, start, fault=f"not XYZ: expected a number of atoms, got {text!r:.50}")
            is_lost = is_lost or bool(text)
            continue
        is_lost, count = False, int(text)
        comment = file.readline().strip()
        rows = list(islice(file, min(count, MOST_ATOMS)))
        passed = sum(1 for _ in islice(file, count - len(rows))) if len(rows) == MOST_ATOMS else 0
        number += 1 + len(rows) + passed
        title = "" if "=" in comment else comment
        yield _record(partial(_molecule_of_frame, count, comment, rows), name, start, title)


def _molecule_of_frame(count: int, comment: str, rows: list[str]) -> Chem.Mol:
    if count > MOST_ATOMS:
        raise RecordError(f"{count} atoms, at most {MOST_ATOMS} are possible")
    if len(rows) != count:
        raise RecordError(f"not XYZ: expected {count} atoms, got {len(rows)}")
    columns, charge = _extended_comment(comment)
    (of_species, _), (of_position, _) = columns["species"], columns["pos"]
    try:
        words = [row.split() for row in rows]
        symbols = [row[of_species] for row in words]
        positions = np.array([[number_of_text(word) for word in row[of_position : of_position + 3]] for row in words]).reshape(
            -1, 3
        )
    except (ValueError, IndexError):
        raise RecordError("not XYZ: expected lines of an element and three numbers") from None
    if len(positions) != count:
        raise RecordError("not XYZ: expected lines of an element and three numbers")
    check_positions(positions)
    return molecule_of_atoms(
        [int(symbol) if symbol.isascii() and symbol.isdecimal() else symbol for symbol in symbols], positions, charge
    )


def _extended_comment(comment: str) -> tuple[dict[str, tuple[int, int]], int]:
    """Where species and positions stand, as (column, number of columns), and the charge, in extended XYZ; plain XYZ has its own."""
    try:
        entries = dict(word.split("=", 1) for word in shlex.split(comment) if "=" in word)
    except ValueError:
        entries = {}
    properties = entries.get("Properties", "species:S:1:pos:R:3").split(":")
    columns, first = {}, 0
    for name, width in zip(properties[::3], properties[2::3], strict=False):
        if not width.isdecimal():
            raise RecordError(f"not extended XYZ: Properties={':'.join(properties)[:100]}")
        columns[name] = (first, int(width))
        first += int(width)
    if not columns.keys() >= _PLAIN_COLUMNS.keys() or columns["pos"][1] != 3:
        raise RecordError("not extended XYZ: expected species and pos in Properties")
    # With a cell and nothing said, the format repeats it in all directions.
    repeated = entries.get("pbc", "T" if "Lattice" in entries else "F").upper().split()
    if {"T", "TRUE", "1"} & set(repeated):
        raise RecordError("periodic: expected a molecule")
    return columns, charge_of(entries)


def _read_npz(path: Path) -> Iterator[Record]:
    """Molecules of the layout of `qm9_edge.npz`, featurised already; targets are not looked at."""
    molecules = read_molecules(path, "homo")
    if molecules.node_attr.is_floating_point() or molecules.edge_attr.is_floating_point():
        raise ValueError(f"{path}: expected features of this package, got others")
    dataset = MoleculeDataset(molecules)
    for index in range(len(dataset)):
        alone = dataset[index]
        arrays = {name: getattr(alone, name).numpy() for name in ("node_attr", "node_pos", "edge_attr", "src", "dst")}
        yield Record(str(path), index + 1, molecule=MoleculeArrays(**arrays))


_TEXT_READERS: dict[str, Callable[[TextIO, str], Iterator[Record]]] = {
    ".sdf": _read_sdf,
    ".sd": _read_sdf,
    ".mol": _read_sdf,
    ".xyz": _read_xyz,
    ".extxyz": _read_xyz,
    ".smi": _read_smiles_file,
    ".smiles": _read_smiles_file,
}
