"""Molecules in memory, and reading them from ``qm9_edge.npz`` with every fault named."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from se3_fast.data.tasks import TASKS

NUM_NODE_FEATURES = 6
"""Node attributes that the model reads: one-hot H, C, N, O, F and the atomic number."""

NUM_EDGE_FEATURES = 4
"""Edge attributes that the model reads: one-hot single, double, triple, aromatic."""

ARRAY_NAMES = ("n_node", "n_edge", "node_attr", "node_pos", "edge_attr", "src", "dst", "targets")
"""Arrays that the file must hold."""


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
        targets: [M] float32, in the task's unit; NaN where unknown.
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
    first four, of the targets the column of ``task``.

    Args:
        path: The ``.npz`` file.
        task: One of ``TASKS``.

    Raises:
        DataError: The file is missing, damaged, holds pickled objects, or its arrays do not fit together.
        ValueError: No such task.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    file = ArrayFile(Path(path), ARRAY_NAMES)
    n_node = file.integers("n_node", (None,))
    n_edge = file.integers("n_edge", (len(n_node),))
    file.check(len(n_node) > 0, "n_node holds no molecules")
    file.check(n_node.min() >= 1, "n_node must be 1 or more for every molecule")
    file.check(n_edge.min() >= 0, "n_edge must be 0 or more for every molecule")
    num_nodes, num_edges = int(n_node.sum()), int(n_edge.sum())

    targets = file.numbers("targets", (len(n_node), len(TASKS)))
    column = targets[:, TASKS.index(task)].astype(np.float32)
    file.check(not np.isinf(column).any(), f"targets of {task} hold infinite values")
    node_pos = file.numbers("node_pos", (num_nodes, 3)).astype(np.float32, copy=False)
    file.check_finite("node_pos", node_pos, n_node)
    atoms_of_edges = np.repeat(n_node, n_edge)
    src, dst = (_local_indices(file, name, file.integers(name, (num_edges,)), atoms_of_edges, n_edge) for name in ("src", "dst"))
    return Molecules(
        numbers=torch.arange(len(n_node)),
        n_node=torch.from_numpy(n_node),
        n_edge=torch.from_numpy(n_edge),
        node_attr=torch.from_numpy(file.features("node_attr", NUM_NODE_FEATURES, n_node)),
        node_pos=torch.from_numpy(node_pos),
        edge_attr=torch.from_numpy(file.features("edge_attr", NUM_EDGE_FEATURES, n_edge)),
        src=torch.from_numpy(src),
        dst=torch.from_numpy(dst),
        targets=torch.from_numpy(column),
    )


def check_archive(path: str | os.PathLike[str]) -> None:
    """Check that a file is a whole ``.npz`` archive (every byte, by its checksums) with the arrays of the layout.

    Raises:
        DataError: It is not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).stem for name in archive.namelist()}
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise DataError(f"{path}: not a whole .npz archive ({_one_line(error)})") from error
    if damaged is not None:
        raise DataError(f"{path}: array {Path(damaged).stem!r} is damaged")
    missing = [name for name in ARRAY_NAMES if name not in names]
    if missing:
        raise DataError(f"{path}: expected the arrays {', '.join(ARRAY_NAMES)}; missing {', '.join(missing)}")


class ArrayFile:
    """An ``.npz`` file whose arrays are read one at a time, so that only what is kept stays in memory.

    Args:
        path: The file.
        names: Arrays that it must hold.

    Raises:
        DataError: It is missing or not an archive, or an array is missing.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.check(path.is_file(), "no such file")
        try:
            with zipfile.ZipFile(path) as archive:
                self.names = {Path(name).stem for name in archive.namelist()}
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise DataError(f"{path}: not a whole .npz archive ({_one_line(error)})") from error
        missing = [name for name in names if name not in self.names]
        self.check(not missing, f"expected the arrays {', '.join(names)}; missing {', '.join(missing)}")

    def check(self, condition: bool | np.bool_, fault: str) -> None:
        """Report a fault unless a condition holds."""
        if not condition:
            raise DataError(f"{self.path}: {fault}")

    def check_rows(self, sound: np.ndarray, counts: np.ndarray, fault: str) -> None:
        """Report the molecule of the first row that is not sound; ``counts`` are the rows of every molecule."""
        if not sound.all():
            row = int(np.argmin(sound))
            molecule = int(np.searchsorted(np.cumsum(counts), row, side="right"))
            raise DataError(f"{self.path}: {fault} (molecule {molecule}, row {row})")

    def check_finite(self, name: str, rows: np.ndarray, counts: np.ndarray) -> None:
        """Report the molecule of the first row [*, columns] with a value that is not finite."""
        self.check_rows(np.isfinite(rows).min(axis=1), counts, f"array {name!r} has values that are not finite")

    def read(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Read one array; None in ``shape`` stands for any length."""
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                array = archive[name]
        except ValueError as error:
            # What NumPy says of an array that could only be unpickled.
            if "Object arrays cannot be loaded" in str(error):
                fault = "holds pickled Python objects, expected numbers"
            else:
                fault = f"cannot be read ({_one_line(error)})"
            raise DataError(f"{self.path}: array {name!r} {fault}") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, MemoryError, SyntaxError) as error:
            raise DataError(f"{self.path}: array {name!r} is damaged ({_one_line(error)})") from error
        fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        self.check(fits, f"array {name!r} must have shape [{wanted}], got {list(array.shape)}")
        return array

    def integers(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Read an array of integers, as int64."""
        array = self.read(name, shape)
        self.check(array.dtype.kind in "iu", f"array {name!r} must hold integers, got {array.dtype}")
        return array.astype(np.int64, copy=False)

    def numbers(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Read an array of numbers, in their own type."""
        array = self.read(name, shape)
        self.check(array.dtype.kind in "biuf", f"array {name!r} must hold numbers, got {array.dtype}")
        return array

    def features(self, name: str, columns: int, counts: np.ndarray) -> np.ndarray:
        """Read the first columns of an attribute array, as uint8 where that loses nothing."""
        array = self.numbers(name, (int(counts.sum()), None))
        fault = f"array {name!r} must have {columns} columns or more, got {array.shape[1]}"
        self.check(array.shape[1] >= columns, fault)
        kept = array[:, :columns]
        if kept.dtype.kind == "f":
            self.check_finite(name, kept, counts)
        with np.errstate(invalid="ignore"):  # values that do not fit are what the comparison is for
            compact = kept.astype(np.uint8)
        return compact if np.array_equal(compact, kept) else kept.astype(np.float32)


def _local_indices(file: ArrayFile, name: str, indices: np.ndarray, atoms_of_edges: np.ndarray, n_edge: np.ndarray) -> np.ndarray:
    file.check_rows((indices >= 0) & (indices < atoms_of_edges), n_edge, f"{name} names an atom that its molecule does not have")
    return indices.astype(np.uint8 if len(indices) == 0 or indices.max() < 256 else np.int32)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
