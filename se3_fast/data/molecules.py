"""Molecules in memory, and reading them from ``qm9_edge.npz`` with every fault named."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from se3_fast.archives import ArchiveError
from se3_fast.data.near_origin import near_origin
from se3_fast.data.npz_file import ArrayHeader, Arrays, NpzArchive, NpzRows
from se3_fast.data.tasks import TASKS
from se3_fast.error_text import one_line

NUM_NODE_FEATURES = 6
"""Node attributes that the model reads: one-hot H, C, N, O, F and the atomic number."""

NUM_EDGE_FEATURES = 4
"""Edge attributes that the model reads: one-hot single, double, triple, aromatic."""

ARRAY_NAMES = ("n_node", "n_edge", "node_attr", "node_pos", "edge_attr", "src", "dst", "targets")
"""Arrays that the file must hold."""

NODE_ROWS = np.array([[*np.eye(5, dtype=int)[column], number] for column, number in enumerate((1, 6, 7, 8, 9))], dtype=np.uint8)
"""Node attributes that there are, [5, 6]: those of H, C, N, O, F."""

EDGE_ROWS = np.eye(NUM_EDGE_FEATURES, dtype=np.uint8)
"""Edge attributes that there are, [4, 4]: those of single, double, triple and aromatic bonds."""

LARGEST_NUMBER = float(np.finfo(np.float32).max)
LARGEST_POSITION = 1e18
"""Squares of larger ones are infinite in single precision, and distances are roots of sums of squares."""

_MOST_ROWS = 1 << 48


class DataError(ValueError):
    """A data file cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Molecules:
    """M molecules with N atoms and E directed edges in all, one after the other.

    Attributes:
        numbers: [M] int64, numbers of the molecules in the file.
        n_node: [M] int64, atoms of each molecule.
        n_edge: [M] int64, directed edges of each molecule.
        node_attr: [N, 6], uint8 if all values are such integers, else float32.
        node_pos: [N, 3] float32, Angstrom.
        edge_attr: [E, 4], uint8 if all values are such integers, else float32.
        src: [E] uint8 or int32, source atom of each edge, counted from the molecule's first.
        dst: [E] uint8 or int32, destination atom of each edge, counted from the molecule's first.
        targets: [M], or [M, P] of several tasks, float32 or float64, in their units; NaN where unknown.
    """

    numbers: Tensor
    n_node: Tensor
    n_edge: Tensor
    node_attr: Tensor
    node_pos: Tensor
    edge_attr: Tensor
    src: Tensor
    dst: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return the number of molecules."""
        return len(self.numbers)

    def to(self, device: torch.device | str) -> Molecules:
        """These molecules on a device."""
        return Molecules(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class MoleculeDataset(torch.utils.data.Dataset[Molecules]):
    """Random access to molecules, one by one. Batches come from :class:`se3_fast.data.resident.ResidentMolecules`."""

    def __init__(self, molecules: Molecules) -> None:
        """Serve these molecules; nothing is copied."""
        self.molecules = molecules
        self._first_node = first_of_each(molecules.n_node)  # [M]
        self._first_edge = first_of_each(molecules.n_edge)  # [M]

    def __len__(self) -> int:
        """Return the number of molecules."""
        return len(self.molecules)

    def __getitem__(self, number: int) -> Molecules:
        """Return one molecule; nothing is copied."""
        everything = self.molecules
        nodes = _rows(self._first_node[number], everything.n_node[number])
        edges = _rows(self._first_edge[number], everything.n_edge[number])
        alone = slice(number, number + 1)
        return Molecules(
            numbers=everything.numbers[alone],
            n_node=everything.n_node[alone],
            n_edge=everything.n_edge[alone],
            node_attr=everything.node_attr[nodes],
            node_pos=everything.node_pos[nodes],
            edge_attr=everything.edge_attr[edges],
            src=everything.src[edges],
            dst=everything.dst[edges],
            targets=everything.targets[alone],
        )


def _rows(first: Tensor, count: Tensor) -> slice:
    return slice(int(first), int(first + count))


def ragged_indices(starts: Tensor, counts: Tensor) -> Tensor:
    """Return ``starts[0], starts[0] + 1, ...`` (``counts[0]`` of them), then the same from ``starts[1]``, and so on.

    Args:
        starts: [M] int64.
        counts: [M] int64.

    Returns:
        [sum of counts] int64.
    """
    shift = starts - first_of_each(counts)
    return torch.arange(int(counts.sum())) + shift.repeat_interleave(counts)


def first_of_each(counts: Tensor) -> Tensor:
    """Where each of several things begins that stand one after the other: ``counts`` [M] to [M]."""
    return counts.cumsum(0) - counts


def read_molecules(path: str | os.PathLike[str], task: str) -> Molecules:
    """Read a file of the layout of ``qm9_edge.npz`` and check it.

    Nothing in the file is unpickled. Of the node attributes only the first six are kept, of the edge attributes the
    first four, of the targets the column of ``task``. Rows of attributes must be among ``NODE_ROWS`` and ``EDGE_ROWS``,
    unless an array holds fractions and none of its rows is.

    Args:
        path: The ``.npz`` file.
        task: One of ``TASKS``.

    Raises:
        DataError: The file is missing, damaged, holds pickled objects, or its arrays do not fit together.
        ValueError: No such task.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    with open_arrays(path, ARRAY_NAMES) as file:
        num_molecules = file.length("n_node")
        file.check(num_molecules > 0, "n_node holds no molecules")
        file.check_shapes(n_node=(num_molecules,), n_edge=(num_molecules,), targets=(num_molecules, len(TASKS)))
        n_node = file.counts("n_node", num_molecules, at_least=1)
        n_edge = file.counts("n_edge", num_molecules, at_least=0)
        num_nodes, num_edges = int(n_node.sum()), int(n_edge.sum())
        file.check_shapes(node_pos=(num_nodes, 3), node_attr=(num_nodes, None))
        file.check_shapes(edge_attr=(num_edges, None), src=(num_edges,), dst=(num_edges,))

        targets = _targets(file, num_molecules, task)
        node_pos = file.positions("node_pos", n_node)
        atoms_of_edges = np.repeat(n_node, n_edge)
        src, dst = (_local_indices(file, name, atoms_of_edges, n_edge) for name in ("src", "dst"))
        node_attr = file.features("node_attr", n_node, NODE_ROWS)
        edge_attr = file.features("edge_attr", n_edge, EDGE_ROWS)
    return Molecules(
        numbers=torch.arange(num_molecules),
        n_node=torch.from_numpy(n_node),
        n_edge=torch.from_numpy(n_edge),
        node_attr=torch.from_numpy(node_attr),
        node_pos=torch.from_numpy(node_pos),
        edge_attr=torch.from_numpy(edge_attr),
        src=torch.from_numpy(src),
        dst=torch.from_numpy(dst),
        targets=torch.from_numpy(targets),
    )


def read_gdb_index(path: str | os.PathLike[str], num_molecules: int) -> np.ndarray | None:
    """Read the molecules' numbers in QM9, [M] int64; None where the file has none.

    Raises:
        DataError: The file is damaged, or has the numbers of other than M molecules.
    """
    with open_arrays(path, ()) as file:
        return file.integers("gdb_index", (num_molecules,)) if "gdb_index" in file.names else None


def check_archive(path: str | os.PathLike[str]) -> None:
    """Check that a file is a whole ``.npz`` archive (every byte, by its checksums) with the arrays of the layout.

    Raises:
        DataError: It is not.
    """
    with open_arrays(path, ARRAY_NAMES) as file:
        file.check_bytes()


@contextmanager
def open_arrays(path: str | os.PathLike[str], names: Sequence[str]) -> Iterator[ArrayFile]:
    """Open an ``.npz`` file that must hold the arrays of these names, to be read one at a time.

    Raises:
        DataError: It is missing or not an archive, or an array is missing.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        with open(path, "rb") as stream:
            file = ArrayFile(Path(path), NpzArchive(stream))
            missing = [name for name in names if name not in file.names]
            file.check(not missing, f"expected the arrays {', '.join(names)}; missing {', '.join(missing)}")
            yield file
    except (ArchiveError, OSError) as error:
        raise DataError(f"{path}: not a whole .npz archive ({one_line(error)})") from error


class ArrayFile:
    """The arrays of an ``.npz`` file, each read and checked when asked for, so that only what is kept stays in memory.

    None is read whose own header does not say what is expected of it.

    Args:
        path: The file, for messages.
        arrays: What is in it.
        first: Number of the first molecule in these arrays; None: they are all that the file has.

    Attributes:
        path: The file.
        names: Names of the arrays.
    """

    def __init__(self, path: Path, arrays: Arrays, first: int | None = None) -> None:
        self.path = path
        self.names = frozenset(arrays.names)
        self._arrays = arrays
        self._first = first

    def chunks(self, counts: np.ndarray, of_rows: Sequence[str], size: int) -> Iterator[ArrayFile]:
        """The arrays of some molecules, then of those after them, never all in memory.

        Args:
            counts: [M], rows of every molecule in the arrays named in `of_rows`; in the others it has one.
            of_rows: Names of these arrays.
            size: Molecules in a chunk.
        """
        assert isinstance(self._arrays, NpzArchive)
        rows = NpzRows(self._arrays)
        for first in range(0, len(counts), size):
            part = counts[first : first + size]
            rows.advance({name: int(part.sum()) if name in of_rows else len(part) for name in self.names})
            yield ArrayFile(self.path, rows, first)

    def check(self, condition: bool | np.bool_, fault: str) -> None:
        """Report a fault unless a condition holds."""
        if not condition:
            raise DataError(f"{self.path}: {fault}")

    def check_rows(self, sound: np.ndarray, counts: np.ndarray, fault: str) -> None:
        """Report the molecule of the first row that is not sound; ``counts`` are the rows of every molecule."""
        if not sound.all():
            row = int(np.argmin(sound))
            molecule = int(np.searchsorted(np.cumsum(counts), row, side="right"))
            where = f"molecule {molecule}, row {row}" if self._first is None else f"molecule {self._first + molecule}"
            raise DataError(f"{self.path}: {fault} ({where})")

    def check_shapes(self, **shapes: tuple[int | None, ...]) -> None:
        """Compare what arrays say of themselves with shapes, by name, before any is read; None stands for any length."""
        for name, shape in shapes.items():
            got = self._header(name).shape
            fits = len(got) == len(shape) and all(want in (None, length) for want, length in zip(shape, got, strict=True))
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            self.check(fits, f"array {name!r} must have shape [{wanted}], got {list(got)}")

    def check_bytes(self) -> None:
        """Read all arrays, and report the first that has other bytes than were written."""
        for name in sorted(self.names):
            self._header(name)
            with self._errors_of(f"array {name!r}"):
                self._arrays.check_bytes(name)

    def length(self, name: str) -> int:
        """The length of the only axis of an array, as the array says."""
        self.check_shapes(**{name: (None,)})
        return self._header(name).shape[0]

    def integers(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Read an array of integers, as int64."""
        array = self._read(name, shape, "iu", "integers")
        too_large = array.dtype == np.uint64 and array.size > 0 and int(array.max()) > np.iinfo(np.int64).max
        self.check(not too_large, f"array {name!r} must hold integers below 2^63")
        return array.astype(np.int64)

    def counts(self, name: str, length: int, at_least: int) -> np.ndarray:
        """Read how many rows each molecule has in other arrays, [length] int64, one at least; their sum is exact."""
        counts = self.integers(name, (length,))
        self.check(counts.min() >= at_least, f"{name} must be {at_least} or more for every molecule")
        # Not as int64, whose sum would start again from below.
        self.check(counts.sum(dtype=np.float64) < _MOST_ROWS, f"{name} must add up to fewer than {_MOST_ROWS} rows")
        return counts

    def numbers(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Read an array of numbers, in their own type."""
        return self._read(name, shape, "biuf", "numbers")

    def labels(self, name: str, shape: tuple[int | None, ...], counts: np.ndarray) -> np.ndarray:
        """Read labels that single precision holds, in their own type; those that are not known are not numbers.

        Args:
            name: The array.
            shape: Its shape; None: any length.
            counts: Rows of every molecule.
        """
        array = self.numbers(name, shape)
        self.as_float32(name, np.where(np.isnan(array), 0, array), counts)
        return array

    def positions(self, name: str, counts: np.ndarray) -> np.ndarray:
        """Read positions [sum of counts, 3] whose distances single precision holds, as float32; see :func:`near_origin`."""
        array = self.numbers(name, (int(counts.sum()), 3))
        single = self.as_float32(name, array, counts, LARGEST_POSITION)
        moved = near_origin(array, counts)
        return single if moved is array else moved.astype(np.float32)

    def features(self, name: str, counts: np.ndarray, known_rows: np.ndarray) -> np.ndarray:
        """Read the first columns of an attribute array.

        Args:
            name: The array.
            counts: Rows of every molecule.
            known_rows: [kinds, columns] uint8, the rows that there may be.

        Returns:
            uint8 if its rows are among these, which they must be unless the array has fractions and none of its rows is;
            then float32.
        """
        columns = known_rows.shape[1]
        array = self.numbers(name, (int(counts.sum()), None))
        self.check(array.shape[1] >= columns, f"array {name!r} must have {columns} columns or more, got {array.shape[1]}")
        kept = array[:, :columns]
        with np.errstate(invalid="ignore"):  # values that do not fit are what the comparison is for
            compact = kept.astype(np.uint8, order="C")
        known = _are_among(compact, known_rows)
        if kept.dtype != np.uint8:
            known &= (compact == kept).all(axis=1)
        if kept.dtype.kind == "f":
            single = self.as_float32(name, kept, counts)
            if len(known) and not known.any():
                return single
        if not known.all():
            got, example = kept[int(np.argmin(known))].tolist(), known_rows[0].tolist()
            self.check_rows(known, counts, f"array {name!r} must have one-hot rows such as {example}, got {got}")
        return compact

    def as_float32(self, name: str, array: np.ndarray, counts: np.ndarray, largest: float = LARGEST_NUMBER) -> np.ndarray:
        """Return numbers [rows, ...] as float32; report the molecule of the first row with one that is larger, or not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            single = array.astype(np.float32)
        sound = np.abs(single) <= largest
        if not sound.all():
            self.check_rows(_all_of_row(np.isfinite(array)), counts, f"array {name!r} has values that are not finite")
            fault = f"array {name!r} must hold values of at most {largest:.3g}, got a larger one"
            self.check_rows(_all_of_row(sound), counts, fault)
        return single

    def _header(self, name: str) -> ArrayHeader:
        with self._errors_of(f"array {name!r}"):
            header = self._arrays.header(name)
        self.check(not header.dtype.hasobject, f"array {name!r} holds pickled Python objects, expected numbers")
        return header

    def _read(self, name: str, shape: tuple[int | None, ...], kinds: str, wanted: str) -> np.ndarray:
        self.check_shapes(**{name: shape})
        dtype = self._header(name).dtype
        self.check(dtype.kind in kinds, f"array {name!r} must hold {wanted}, got {dtype}")
        with self._errors_of(f"array {name!r}"):
            return self._arrays.read(name)

    @contextmanager
    def _errors_of(self, what: str) -> Iterator[None]:
        try:
            yield
        except ArchiveError as error:
            raise DataError(f"{self.path}: {what} is damaged ({error})") from error


def _targets(file: ArrayFile, num_molecules: int, task: str) -> np.ndarray:
    """The targets of a task, [M] float32; NaN where unknown."""
    column = file.numbers("targets", (num_molecules, len(TASKS)))[:, TASKS.index(task)]
    with np.errstate(over="ignore"):
        single = column.astype(np.float32)
    file.check(not np.isinf(column).any(), f"targets of {task} hold infinite values")
    file.check(not np.isinf(single).any(), f"targets of {task} must be at most {LARGEST_NUMBER:.3g}, got a larger one")
    return single


def _local_indices(file: ArrayFile, name: str, atoms_of_edges: np.ndarray, n_edge: np.ndarray) -> np.ndarray:
    indices = file.integers(name, atoms_of_edges.shape)
    file.check_rows((indices >= 0) & (indices < atoms_of_edges), n_edge, f"{name} names an atom that its molecule does not have")
    return indices.astype(np.uint8 if len(indices) == 0 or indices.max() < 256 else np.int32)


def _all_of_row(conditions: np.ndarray) -> np.ndarray:
    return conditions.reshape(len(conditions), -1).min(axis=1)


def _are_among(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which rows [R, columns] uint8, of 8 columns at most, are among the known ones [kinds, columns]: [R] bool."""
    found = np.zeros(len(rows), dtype=bool)
    packed = _packed(rows)
    for one in _packed(known):
        found |= packed == one
    return found


def _packed(rows: np.ndarray) -> np.ndarray:
    """Each row [R, 8 columns or fewer] uint8, contiguous, as one number, [R]."""
    size = math.gcd(rows.shape[1], 8)
    words = rows.view(f"<u{size}")
    packed = words[:, 0]
    for column in range(1, words.shape[1]):
        packed = packed | words[:, column].astype(np.uint64) << np.uint64(8 * size * column)
    return packed
