"""Predictions as CSV, JSON lines, Parquet or SDF, written as they come; a file is whole or not there."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rdkit import Chem

from se3_fast.data.objective import Objective
from se3_fast.files import atomic_file

from .options import WRITTEN_SUFFIXES
from .predictor import PredictedValue, Prediction
from .records import items_of

_ROWS_OF_GROUP = 10_000
_OTHER_COLUMNS = ("file", "record", "name", "conformers", "outside", "error")


class Write(Protocol):
    """Writes one prediction."""

    def __call__(self, prediction: Prediction) -> None:
        """Write it."""


@dataclass(frozen=True)
class Layout:
    """The columns of an output.

    Attributes:
        titles: By the name of each property, the title of its column, with the unit: `homo_eV`, `Cv_cal_per_mol_K`; of a class
            `active_probability`; with `_predicted` after it where another column has the title.
        decimals: By the name of each property, digits after the point.
        has_uncertainty: Whether each has a column for its uncertainty.
        has_spread: Whether each has a column for the spread over conformers.
        kept: Properties of the molecules themselves that an SDF is to keep: those of predictions that are called so have
            `_predicted` after their title, of every molecule.
    """

    titles: Mapping[str, str]
    decimals: Mapping[str, int]
    has_uncertainty: bool
    has_spread: bool
    kept: frozenset[str] = frozenset()

    @classmethod
    def of(cls, objective: Objective, has_spread: bool) -> Layout:
        """The columns for what a model says."""
        is_classification = objective.is_classification
        titles: dict[str, str] = {}
        taken = set(_OTHER_COLUMNS)
        for one in objective.properties:
            title = _title(one.name, "probability" if is_classification else one.unit)
            while not taken.isdisjoint(_with_its_own(title)):
                title += "_predicted"
            titles[one.name] = title
            taken.update(_with_its_own(title))
        decimals = {one.name: one.decimals for one in objective.properties}
        return cls(titles, decimals, not is_classification, has_spread)

    def renamed(self) -> dict[str, str]:
        """By title, what the properties of an SDF are called that would take the place of others."""
        return {title: free_title(title, self.kept) for title in self.columns if title in self.kept and title != "name"}

    @property
    def columns(self) -> list[str]:
        """Titles of all columns, in their order."""
        return list(self.row(Prediction("", 0, "", {name: PredictedValue() for name in self.titles})))

    @property
    def number_columns(self) -> list[str]:
        """Those of numbers with a fraction."""
        return list(self._numbers(Prediction("", 0, "", {name: PredictedValue() for name in self.titles})))

    def row(self, prediction: Prediction) -> dict[str, Any]:
        """The columns of a prediction; None where there is no value."""
        return {
            "file": prediction.file,
            "record": prediction.number,
            "name": prediction.name,
            **self._numbers(prediction),
            **({"conformers": prediction.conformers} if self.has_spread else {}),
            "outside": prediction.outside,
            "error": prediction.error,
        }

    def _numbers(self, prediction: Prediction) -> dict[str, float | None]:
        numbers: dict[str, float | None] = {}
        for name, title in self.titles.items():
            found, decimals = prediction.values[name], self.decimals[name]
            numbers[title] = _rounded(found.value, decimals)
            if self.has_uncertainty:
                numbers[f"{title}_uncertainty"] = _rounded(found.uncertainty, decimals)
            if self.has_spread:
                numbers[f"{title}_spread"] = _rounded(found.spread, decimals)
        return numbers


def free_title(title: str, taken: Container[str]) -> str:
    """The title, with `_predicted` after it as often as it takes to be none of others."""
    while title in taken:
        title += "_predicted"
    return title


def _rounded(value: float | None, decimals: int) -> float | None:
    return None if value is None else round(value, decimals)


def _title(name: str, unit: str) -> str:
    plain = unit.replace("/", " per ").replace("^", "").replace("(", " ").replace(")", " ")
    return "_".join([name, *plain.split()])


def _with_its_own(title: str) -> tuple[str, ...]:
    """The title of a property, and those of the columns that it may have beside it."""
    return title, f"{title}_uncertainty", f"{title}_spread"


@contextmanager
def open_writer(path: Path, layout: Layout) -> Iterator[Write]:
    """Open a file of predictions by the ending of its name, one of ``WRITTEN_SUFFIXES``.

    Args:
        path: The file; it appears, whole, when the block ends without an error.
        layout: Its columns.

    Raises:
        ValueError: Another ending.
        ImportError: Parquet without pyarrow.
        OSError: It cannot be written.
    """
    check_output(path)
    with atomic_file(path) as file, WRITERS[path.suffix.lower()](file, layout) as write:
        yield write


def check_output(path: Path) -> None:
    """Check that predictions can be written in the format of a file.

    Raises:
        ValueError: The ending of its name is none of ``WRITTEN_SUFFIXES``.
        ImportError: Parquet without pyarrow.
    """
    if path.suffix.lower() not in WRITTEN_SUFFIXES:
        raise ValueError(f"{path}: expected an output whose name ends in {', '.join(WRITTEN_SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


@contextmanager
def csv_writer(file: BinaryIO, layout: Layout) -> Iterator[Write]:
    """Write CSV to a binary file."""
    with _text(file) as text:
        table = csv.DictWriter(text, layout.columns, lineterminator="\n")
        table.writeheader()
        yield lambda prediction: table.writerow(layout.row(prediction))


@contextmanager
def _json_lines_writer(file: BinaryIO, layout: Layout) -> Iterator[Write]:
    with _text(file) as text:
        yield lambda prediction: _write_line(text, json.dumps(layout.row(prediction)))


@contextmanager
def _parquet_writer(file: BinaryIO, layout: Layout) -> Iterator[Write]:
    arrow, parquet = _pyarrow()
    kinds = {**dict.fromkeys(layout.number_columns, arrow.float64()), "record": arrow.int64(), "conformers": arrow.int64()}
    schema = arrow.schema([(name, kinds.get(name, arrow.string())) for name in layout.columns])
    rows: list[dict[str, Any]] = []

    def write(prediction: Prediction) -> None:
        rows.append(layout.row(prediction))
        if len(rows) == _ROWS_OF_GROUP:
            write_group()

    def write_group() -> None:
        writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
        rows.clear()

    with parquet.ParquetWriter(file, schema) as writer:
        yield write
        write_group()


@contextmanager
def _sdf_writer(file: BinaryIO, layout: Layout) -> Iterator[Write]:
    """Write an SDF. Not with RDKit's writer, which passes over some names that begin with `_`."""
    numbers = count(1)
    with _text(file) as text:

        def write(prediction: Prediction) -> None:
            molecule, number = _writable(prediction.molecule), next(numbers)
            molecule.SetProp("_Name", _one_line(prediction.name))
            own = {name: _without_blank_lines(value) for name, value in items_of(molecule).items()}
            found = {title: value for title, value in layout.row(prediction).items() if title != "name" and value not in (None, "")}
            said = {free_title(title, layout.kept | own.keys()): _one_line(str(value)) for title, value in found.items()}
            items = "".join(f">  <{name}>  ({number}) \n{value}\n\n" for name, value in (own | said).items())
            text.write(f"{Chem.MolToMolBlock(molecule, kekulize=False)}{items}$$$$\n")

        yield write


def _without_blank_lines(text: str) -> str:
    """A blank line ends a data item."""
    return "\n".join(line for line in text.splitlines() if line.strip())


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


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("writing Parquet needs pyarrow: pip install 'se3_fast[parquet]'") from error
    return pyarrow, pyarrow.parquet


WRITERS: dict[str, Callable[[BinaryIO, Layout], AbstractContextManager[Write]]] = {
    ".csv": csv_writer,
    ".jsonl": _json_lines_writer,
    ".parquet": _parquet_writer,
    ".sdf": _sdf_writer,
}
"""By ending of the name, how predictions are written."""
