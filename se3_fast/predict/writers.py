"""Predictions as CSV, JSON lines, Parquet or SDF, written as they come; a file is whole or not there."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rdkit import Chem

from se3_fast.files import atomic_file

from .predictor import Prediction

_ROWS_OF_GROUP = 10_000
_DIGITS = 6


class Write(Protocol):
    """Writes one prediction."""

    def __call__(self, prediction: Prediction) -> None:
        """Write it."""


def column_name(task: str, unit: str) -> str:
    """Name of the column of a property, with its unit: `homo_eV`, `Cv_cal_per_mol_K`."""
    plain = unit.replace("/", " per ").replace("^", "").replace("(", " ").replace(")", " ")
    return "_".join([task, *plain.split()])


def row_of(prediction: Prediction, column: str, has_spread: bool) -> dict[str, Any]:
    """The columns of a prediction; None where there is no value."""

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, _DIGITS)

    spread = {f"{column}_spread": rounded(prediction.spread), "conformers": prediction.conformers} if has_spread else {}
    return {
        "file": prediction.file,
        "record": prediction.number,
        "name": prediction.name,
        column: rounded(prediction.value),
        f"{column}_uncertainty": rounded(prediction.uncertainty),
        **spread,
        "outside": prediction.outside,
        "error": prediction.error,
    }


@contextmanager
def open_writer(path: Path, column: str, has_spread: bool) -> Iterator[Write]:
    """Open a file of predictions by the ending of its name, one of ``WRITERS``.

    Args:
        path: The file; it appears, whole, when the block ends without an error.
        column: Name of the property's column.
        has_spread: Whether there are columns for the spread over conformers.

    Raises:
        ValueError: Another ending.
        ImportError: Parquet without pyarrow.
        OSError: It cannot be written.
    """
    check_output(path)
    with atomic_file(path) as file, WRITERS[path.suffix.lower()](file, column, has_spread) as write:
        yield write


def check_output(path: Path) -> None:
    """Check that predictions can be written in the format of a file.

    Raises:
        ValueError: The ending of its name is none of ``WRITERS``.
        ImportError: Parquet without pyarrow.
    """
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: expected an output whose name ends in {', '.join(WRITERS)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


@contextmanager
def csv_writer(file: BinaryIO, column: str, has_spread: bool) -> Iterator[Write]:
    """Write CSV to a binary file."""
    with _text(file) as text:
        table = csv.DictWriter(text, _columns(column, has_spread), lineterminator="\n")
        table.writeheader()
        yield lambda prediction: table.writerow(row_of(prediction, column, has_spread))


@contextmanager
def _json_lines_writer(file: BinaryIO, column: str, has_spread: bool) -> Iterator[Write]:
    with _text(file) as text:
        yield lambda prediction: _write_line(text, json.dumps(row_of(prediction, column, has_spread)))


@contextmanager
def _parquet_writer(file: BinaryIO, column: str, has_spread: bool) -> Iterator[Write]:
    arrow, parquet = _pyarrow()
    floats = dict.fromkeys((column, f"{column}_uncertainty", f"{column}_spread"), arrow.float64())
    kinds = {**floats, "record": arrow.int64(), "conformers": arrow.int64()}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in _columns(column, has_spread)])
    rows: list[dict[str, Any]] = []

    def write(prediction: Prediction) -> None:
        rows.append(row_of(prediction, column, has_spread))
        if len(rows) == _ROWS_OF_GROUP:
            write_group()

    def write_group() -> None:
        writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
        rows.clear()

    with parquet.ParquetWriter(file, schema) as writer:
        yield write
        write_group()


@contextmanager
def _sdf_writer(file: BinaryIO, column: str, has_spread: bool) -> Iterator[Write]:
    with _text(file) as text:
        writer = Chem.SDWriter(text)
        writer.SetKekulize(False)

        def write(prediction: Prediction) -> None:
            molecule = _writable(prediction.molecule)
            molecule.SetProp("_Name", _one_line(prediction.name))
            for name, value in row_of(prediction, column, has_spread).items():
                molecule.ClearProp(name)  # of an earlier prediction, perhaps
                if name != "name" and value not in (None, ""):
                    molecule.SetProp(name, _one_line(str(value)))
            writer.write(molecule)

        yield write
        writer.close()


def _writable(molecule: Chem.Mol | None) -> Chem.Mol:
    """A copy with bonds that are no aromatic ones, which programs read alike; without atoms for one that was not read."""
    copy = Chem.Mol() if molecule is None else Chem.Mol(molecule)
    Chem.Kekulize(copy, clearAromaticFlags=True)
    return copy


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write_line(file: io.TextIOWrapper, line: str) -> None:
    file.write(line + "\n")


@contextmanager
def _text(file: BinaryIO) -> Iterator[io.TextIOWrapper]:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
    try:
        yield text
        text.flush()
    finally:
        text.detach()


def _columns(column: str, has_spread: bool) -> list[str]:
    nothing = Prediction("", 0, "", None, None, None, 0, "", "", None, None)
    return list(row_of(nothing, column, has_spread))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("writing Parquet needs pyarrow: pip install 'se3_fast[parquet]'") from error
    return pyarrow, pyarrow.parquet


WRITERS: dict[str, Callable[[BinaryIO, str, bool], AbstractContextManager[Write]]] = {
    ".csv": csv_writer,
    ".jsonl": _json_lines_writer,
    ".parquet": _parquet_writer,
    ".sdf": _sdf_writer,
}
"""By ending of the name, how predictions are written."""
