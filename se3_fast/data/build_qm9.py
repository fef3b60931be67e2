"""Build ``qm9_edge.npz`` from ``gdb9.sdf`` and its csv: ``python -m se3_fast.data.build_qm9``.

Needs the extra ``chem`` (RDKit). Molecules whose geometry turned into another molecule when it was optimised (the
list ``uncharacterized.txt`` that comes with QM9) can be left out, as in the published file.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from se3_fast.commands.build_qm9 import main
from se3_fast.data.featuriser import QM9_FEATURISER
from se3_fast.data.molecule_arrays import featurise, stack_molecules
from se3_fast.data.molecules import LARGEST_NUMBER, DataError
from se3_fast.data.npz_file import write_npz
from se3_fast.data.number_text import number_of_text
from se3_fast.data.tasks import HARTREE_IN_EV, TASKS
from se3_fast.error_text import one_line

try:
    from rdkit import Chem, rdBase
except ImportError as error:
    raise ImportError("building qm9_edge.npz needs RDKit: pip install 'se3_fast[chem]'") from error

CSV_COLUMNS = {
    "mu": "mu", "alpha": "alpha", "homo": "homo", "lumo": "lumo", "gap": "gap", "r2": "r2", "zpve": "zpve",
    "U0": "u0", "U": "u298", "H": "h298", "G": "g298", "Cv": "cv", "A": "A", "B": "B", "C": "C",
}  # fmt: skip
"""Column of the csv for every task that is read from it."""

_COUNTS_LINE = 3
"""Line of a molecule, counted from 0, that has the numbers of atoms and bonds."""

HARTREE_TASKS = ("homo", "lumo", "gap", "zpve", "U0", "U", "H", "G")

ATOM_ENERGIES = {
    "U0": {1: -0.500273, 6: -37.846772, 7: -54.583861, 8: -75.064579, 9: -99.718730},
    "U": {1: -0.498857, 6: -37.845355, 7: -54.582445, 8: -75.063163, 9: -99.717314},
    "H": {1: -0.497912, 6: -37.844411, 7: -54.581501, 8: -75.062219, 9: -99.716370},
    "G": {1: -0.510927, 6: -37.861317, 7: -54.598897, 8: -75.079532, 9: -99.733544},
}
"""Energies of the free atoms in Hartree, by atomic number (QM9's ``atomref.txt``), for ``U0_atom`` and its like."""


def targets_of(row: Mapping[str, str], atomic_numbers: np.ndarray) -> np.ndarray:
    """Return the targets [19] of one molecule in the published order and units.

    Args:
        row: Its line of ``gdb9.sdf.csv``, by column name (energies in Hartree).
        atomic_numbers: [n], of all atoms.

    Raises:
        KeyError: A column is missing.
        ValueError: A value is not a number that single precision holds.
    """
    values = {task: number_of_text(row[column]) for task, column in CSV_COLUMNS.items()}
    for task, energies in ATOM_ENERGIES.items():
        values[f"{task}_atom"] = values[task] - sum(energies[number] for number in atomic_numbers.tolist())
    for task in (*HARTREE_TASKS, *(f"{task}_atom" for task in ATOM_ENERGIES)):
        values[task] *= HARTREE_IN_EV
    for task, value in values.items():
        if not abs(value) <= LARGEST_NUMBER:
            raise ValueError(f"{task} must be a finite number of at most {LARGEST_NUMBER:.3g}, got {value}")
    return np.array([values[task] for task in TASKS])


def build_qm9(sdf: Path, table: Path, excluded: frozenset[int] = frozenset()) -> dict[str, np.ndarray]:
    """Make the arrays of ``qm9_edge.npz``, and ``gdb_index`` [M] int32, the molecules' numbers in QM9.

    Args:
        sdf: ``gdb9.sdf``; its titles are ``gdb_<number>``.
        table: ``gdb9.sdf.csv``; its ``mol_id`` are those titles.
        excluded: Numbers of molecules to leave out.

    Raises:
        DataError: A file is missing or incomplete; the message names the file and the molecule.
    """
    rows = _read_table(table)
    molecules, targets, numbers = [], [], []
    found: set[int] = set()
    for title, molecule in _read_molecules(sdf):
        number = _number_of(title, sdf)
        if number in excluded:
            continue
        if number in found:
            raise DataError(f"{sdf}: expected every molecule once, got {title} twice")
        found.add(number)
        if title not in rows:
            raise DataError(f"{table}: expected a line for {title} of {sdf}, found none")
        try:
            arrays = featurise(molecule, molecule.GetConformer().GetPositions(), QM9_FEATURISER)
            targets.append(targets_of(rows[title], arrays.node_attr[:, 5]))
        except KeyError as error:
            raise DataError(f"{table}: expected a column {error}, found none") from error
        except ValueError as error:
            raise DataError(f"{sdf}, {table}: {title}: {one_line(error)}") from error
        molecules.append(arrays)
        numbers.append(number)
    if not molecules:
        raise DataError(f"{sdf}: no molecules")
    return {**stack_molecules(molecules, np.stack(targets)), "gdb_index": np.array(numbers, dtype=np.int32)}


def read_excluded(path: Path) -> frozenset[int]:
    """Read the numbers at the start of the lines of ``uncharacterized.txt``; header and closing count are passed over.

    Raises:
        DataError: The file is missing or has no such line.
    """
    words = [line.split() for line in _read_text(path).splitlines()]
    numbers = frozenset(int(line[0]) for line in words if len(line) > 1 and _is_number(line[0]) and line[1] != "compounds")
    if not numbers:
        raise DataError(f"{path}: expected lines that begin with the number of a molecule, found none")
    return numbers


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    reader = csv.reader(_read_text(path).splitlines())
    rows: dict[str, dict[str, str]] = {}
    try:
        columns = next(reader, [])
        if "mol_id" not in columns:
            raise DataError(f"{path}: expected a column mol_id, got {', '.join(columns)[:200] or 'nothing'}")
        if len(set(columns)) < len(columns):
            raise DataError(f"{path}: expected every column once, got {', '.join(columns)[:200]}")
        for values in reader:
            if len(values) != len(columns):
                raise DataError(f"{path}: line {reader.line_num}: expected {len(columns)} values, got {len(values)}")
            row = dict(zip(columns, values, strict=True))
            if row["mol_id"] in rows:
                raise DataError(f"{path}: line {reader.line_num}: expected every molecule once, got {row['mol_id']!r:.50} again")
            rows[row["mol_id"]] = row
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {one_line(error)}") from error
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from error


def _read_molecules(path: Path) -> Iterator[tuple[str, Chem.Mol]]:
    for position, lines in enumerate(tqdm(_blocks(path))):
        # Of a V3000 block RDKit believes how many atoms it has, and makes room for them.
        is_known = len(lines) > _COUNTS_LINE and "V3000" not in lines[_COUNTS_LINE]
        molecule = Chem.MolFromMolBlock("".join(lines), removeHs=False, sanitize=False) if is_known else None
        if molecule is None:
            raise DataError(f"{path}: molecule {position} (counted from 0) cannot be read")
        yield lines[0].strip(), molecule


def _blocks(path: Path) -> Iterator[list[str]]:
    """The lines of every molecule of an sdf, without the `$$$$` that ends it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with open(path, encoding="utf-8") as file:
            block: list[str] = []
            for line in file:
                if line.startswith("$$$$"):
                    yield block
                    block = []
                else:
                    block.append(line)
            if any(map(str.strip, block)):
                yield block
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from error


def _number_of(title: str, sdf: Path) -> int:
    number = title.removeprefix("gdb_")
    if not _is_number(number):
        raise DataError(f"{sdf}: expected titles gdb_<number>, got {title!r:.50}")
    return int(number)


def _is_number(text: str) -> bool:
    """Whether it is the number of a molecule, which 32 bits hold."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    rdBase.DisableLog("rdApp.*")
    try:
        excluded = read_excluded(arguments.exclude) if arguments.exclude else frozenset()
        write_npz(arguments.output, build_qm9(arguments.sdf, arguments.csv, excluded))
    except (DataError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
