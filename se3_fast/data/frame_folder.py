"""A folder of frames that need not fit into memory: raw arrays, which are mapped, and ``frames.json``, which says what they are.

Every array is one file of little-endian values, row after row, with nothing before them. Processes that read the same folder share
its pages in the system's cache. ``frames.json`` is written last: a folder without it is what an unfinished conversion has left.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from se3_fast.data.frames import CHUNK, LMDB, ForceFrames, FrameError
from se3_fast.data.molecules import LARGEST_POSITION, DataError
from se3_fast.error_text import one_line
from se3_fast.files import atomic_file
from se3_fast.forces import LARGEST_ATOMIC_NUMBER

INDEX_NAME = "frames.json"
FORMAT = "se3_fast frames"
VERSION = 2

_LARGEST_INDEX = 1 << 20
_BLOCK = 1 << 22
"""Bytes that are read together where all of a file is."""


class Column(NamedTuple):
    """What one of the arrays holds.

    Attributes:
        dtype: In NumPy's words.
        rows: ``frames``, ``atoms`` or ``ends``: how many rows it has.
        shape: Of a row.
    """

    dtype: str
    rows: str
    shape: tuple[int, ...] = ()


COLUMNS = {
    "first_atom": Column("<i8", "ends"),
    "atomic_numbers": Column("|u1", "atoms"),
    "pos": Column("<f4", "atoms", (3,)),
    "forces": Column("<f4", "atoms", (3,)),
    "energies": Column("<f8", "frames"),
    "edges": Column("<i4", "frames"),
    "cells": Column("<f8", "frames", (3, 3)),
    "pbc": Column("|u1", "frames", (3,)),
    "stresses": Column("<f4", "frames", (3, 3)),
    "dipoles": Column("<f4", "frames", (3,)),
    "split": Column("<i8", "frames"),
}
"""The arrays by name. ``first_atom`` [M + 1] has where each frame begins among the atoms, and their number at its end; ``edges``
how many each frame has within the cutoff of ``frames.json``; others are those of :class:`~se3_fast.data.frames.ForceFrames`."""

_MAY_BE_MISSING = ("cells", "pbc", "stresses", "dipoles", "split")


class FrameFolder:
    """The frames of a folder, which stay on disk; a batch of them is read when it is taken.

    Args:
        path: The folder.

    Attributes:
        path: The folder.
        has_cells: Whether some frame may be periodic.
        has_stresses: Whether some frame may have a stress.
        has_dipoles: Whether some frame may have a dipole.
        cutoff: For which its edges were counted, Angstrom.
        split: [M] int64, 0 for those that train; None: it does not say.

    Raises:
        DataError: It is not whole; names the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._index = _read_index(self.path / INDEX_NAME)
        self._arrays = {name: _mapped(self.path, name, entry) for name, entry in self._index["arrays"].items()}
        self._first_atom = self._arrays["first_atom"]
        self.has_cells, self.has_stresses, self.has_dipoles = (name in self._arrays for name in ("cells", "stresses", "dipoles"))
        self.cutoff: float = self._index["cutoff"]
        self.split = torch.from_numpy(self._arrays["split"].astype(np.int64)) if "split" in self._arrays else None
        self._check_first_atom()

    def __reduce__(self) -> tuple[type[FrameFolder], tuple[Path]]:
        """Another process maps the files itself."""
        return FrameFolder, (self.path,)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._first_atom) - 1

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending.

        Raises:
            DataError: One is none.
        """
        numbers = self._arrays["atomic_numbers"]
        blocks = (numbers[start : start + _BLOCK] for start in range(0, len(numbers), _BLOCK))
        counts = sum((np.bincount(block, minlength=256) for block in blocks), np.zeros(256, dtype=np.int64))
        elements = np.flatnonzero(counts).tolist()
        if not 1 <= elements[0] <= elements[-1] <= LARGEST_ATOMIC_NUMBER:
            fault = f"expected atomic numbers from 1 to {LARGEST_ATOMIC_NUMBER}, got {elements[0]} to {elements[-1]}"
            raise DataError(f"{_file_of(self.path, 'atomic_numbers')}: {fault}")
        return elements

    def edges_of_frames(self, cutoff: float) -> Tensor | None:
        """[M] int64, how many edges within a cutoff each frame has; None: they were counted for another."""
        return torch.from_numpy(self._arrays["edges"].astype(np.int64)) if cutoff == self.cutoff else None

    def select(self, numbers: Sequence[int] | Tensor) -> ForceFrames:
        """Return frames in the order of their numbers.

        Raises:
            FrameError: A position is not finite or too large, or a label is infinite.
        """
        chosen = np.asarray(numbers, dtype=np.int64)
        first = self._first_atom[chosen]
        n_atoms = self._first_atom[chosen + 1] - first
        ends = n_atoms.cumsum()
        atoms = np.arange(n_atoms.sum()) + np.repeat(first - (ends - n_atoms), n_atoms)
        pos = self._taken("pos", atoms)
        is_sound = (np.abs(pos) <= LARGEST_POSITION).all(1)
        if not is_sound.all():
            frame = int(chosen[np.searchsorted(ends, np.argmin(is_sound), side="right")])
            raise FrameError(f"{self.path}: frame {frame}: expected finite positions of at most {LARGEST_POSITION:.3g}")
        arrays: dict[str, Tensor] = {
            "n_atoms": torch.from_numpy(n_atoms),
            "pos": torch.from_numpy(pos),
            "forces": torch.from_numpy(self._taken("forces", atoms)),
            "atomic_numbers": torch.from_numpy(self._taken("atomic_numbers", atoms).astype(np.int64)),
            "energies": torch.from_numpy(self._taken("energies", chosen)),
        }
        if self.has_cells:
            arrays["cells"] = torch.from_numpy(self._taken("cells", chosen))
            arrays["pbc"] = torch.from_numpy(self._taken("pbc", chosen) != 0)
        for name in ("stresses", "dipoles"):
            if name in self._arrays:
                arrays[name] = torch.from_numpy(self._taken(name, chosen))
        self._check_labels(arrays, chosen, ends)
        return ForceFrames(**arrays)

    def _check_labels(self, arrays: Mapping[str, Tensor], chosen: np.ndarray, ends: np.ndarray) -> None:
        """Labels that are not known are not numbers; infinite ones are faults."""
        for name in ("energies", "forces", "stresses", "dipoles"):
            if name in arrays and bool((is_infinite := arrays[name].isinf()).any()):
                row = int(is_infinite.flatten(1).any(1).nonzero()[0] if is_infinite.ndim > 1 else is_infinite.nonzero()[0])
                frame = int(chosen[np.searchsorted(ends, row, side="right") if name == "forces" else row])
                raise FrameError(f"{self.path}: frame {frame}: expected finite {name}, or NaN for unknown ones, got infinite ones")

    def check_bytes(self) -> None:
        """Read all files, and compare them with their checksums.

        Raises:
            DataError: One has other bytes than were written; names it.
        """
        for name, entry in self._index["arrays"].items():
            file = _file_of(self.path, name)
            found = 0
            with _errors_name(file), open(file, "rb") as stream:
                while block := stream.read(_BLOCK):
                    found = zlib.crc32(block, found)
            if found != entry["crc32"]:
                raise DataError(f"{file}: damaged, expected the checksum {entry['crc32']:08x}, got {found:08x}")

    def _taken(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of an array, in memory, in the byte order of this machine."""
        values = self._arrays[name][rows]
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def _check_first_atom(self) -> None:
        ends, size = self._first_atom, _BLOCK // self._first_atom.itemsize
        rises = all((np.diff(ends[start : start + size + 1]) > 0).all() for start in range(0, len(ends), size))
        if not (rises and ends[0] == 0 and ends[-1] == self._index["atoms"]):
            file, atoms = _file_of(self.path, "first_atom"), self._index["atoms"]
            raise DataError(f"{file}: expected numbers that rise from 0 to {atoms}, got others")


def is_frame_folder(path: Path) -> bool:
    """Whether a path is to be read as a folder of frames; trajectories of ASE and LMDB may be folders, too."""
    return path.is_dir() and not (path / "metadata.json").exists() and path.suffix.lower() not in LMDB


def _file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _shape(column: Column, frames: int, atoms: int) -> list[int]:
    return [{"frames": frames, "atoms": atoms, "ends": frames + 1}[column.rows], *column.shape]


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from error


def _read_index(path: Path) -> dict[str, Any]:
    """What ``frames.json`` says, if that can be."""
    if not path.is_file():
        raise DataError(f"{path}: no such file: not a folder of frames, or its conversion has not ended (se3-fast pack-frames)")
    with _errors_name(path), open(path, "rb") as stream:
        content = stream.read(_LARGEST_INDEX + 1)
    try:
        index = json.loads(content)
        checksum = index.pop("crc32", None) if isinstance(index, dict) else None
        fault = _fault_of(index)
        if not fault and checksum != (found := checksum_of(index)):
            fault = f"damaged, expected the checksum {checksum!r:.20}, got {found}"
    except (ValueError, RecursionError) as error:
        fault = f"not JSON ({one_line(error)})"
    if fault:
        raise DataError(f"{path}: {fault}")
    return index


def checksum_of(index: dict[str, Any]) -> int:
    """CRC-32 of what ``frames.json`` says beside its own checksum: of JSON with sorted keys and without spaces."""
    return zlib.crc32(json.dumps(index, sort_keys=True, separators=(",", ":")).encode())


def _fault_of(index: Any) -> str:
    """What is wrong with an index; empty: nothing."""
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        return f"expected the format {FORMAT!r}"
    if index.get("version") != VERSION:
        return f"expected version {VERSION} of the format, which se3-fast pack-frames writes, got {index.get('version')!r:.50}"
    counts = [index.get(name) for name in ("frames", "atoms")]
    if any(type(count) is not int or not 1 <= count < 1 << 48 for count in counts):
        return f"expected numbers of frames and atoms, got {counts!r:.100}"
    if type(index.get("cutoff")) not in (int, float) or not 0 < index["cutoff"] < float("inf"):
        return f"expected a cutoff above 0, got {index.get('cutoff')!r:.50}"
    return _fault_of_arrays(index.get("arrays"), index["frames"], index["atoms"])


def _fault_of_arrays(arrays: Any, frames: int, atoms: int) -> str:
    required = COLUMNS.keys() - set(_MAY_BE_MISSING)
    if not isinstance(arrays, dict) or not required <= arrays.keys() <= COLUMNS.keys() or ("cells" in arrays) != ("pbc" in arrays):
        return f"expected the arrays {', '.join(COLUMNS)}, of which {', '.join(_MAY_BE_MISSING)} may be missing"
    for name, entry in arrays.items():
        expected = {"dtype": COLUMNS[name].dtype, "shape": _shape(COLUMNS[name], frames, atoms)}
        checksum = entry.get("crc32") if isinstance(entry, dict) else None
        if type(checksum) is not int or not 0 <= checksum < 1 << 32 or entry != {**expected, "crc32": checksum}:
            return f"expected {json.dumps(expected)} and a checksum of {name!r}, got {json.dumps(entry):.200}"
    return ""


def _mapped(folder: Path, name: str, entry: dict[str, Any]) -> np.ndarray:
    file = _file_of(folder, name)
    dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
    expected = dtype.itemsize * int(np.prod(shape, dtype=object))
    with _errors_name(file):
        found = file.stat().st_size
        if found != expected:
            raise DataError(f"{file}: expected {expected} bytes, got {found}")
        # A plain array over the mapping: subclasses cost time with every batch.
        return np.asarray(np.memmap(file, dtype, mode="r", shape=shape))


class FrameFolderWriter:
    """Writes a folder of frames, chunk after chunk; use as a context manager.

    At the end of the block ``frames.json`` is written; after an error in it nothing stays. What a killed process has left is
    overwritten.

    Args:
        path: The folder; it is made.
        cutoff: For which edges are counted.

    Attributes:
        frames: Frames written.
        atoms: Their atoms.
        sources: Names of the files that frames come from, and how many; written as they stand.

    Raises:
        DataError: It holds frames.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path, cutoff: float) -> None:
        if (path / INDEX_NAME).exists():
            raise DataError(f"{path}: expected a new folder, got one that holds frames")
        self.path, self._cutoff = path, cutoff
        self.frames = self.atoms = 0
        self.sources: list[dict[str, Any]] = []
        path.mkdir(parents=True, exist_ok=True)
        self._columns: dict[str, _ColumnWriter] = {}

    @property
    def has_split(self) -> bool:
        """Whether the frames so far say which of them train."""
        return "split" in self._columns

    def add(self, frames: ForceFrames, edges: Tensor, split: Tensor | None) -> None:
        """Write more frames.

        Args:
            frames: The frames.
            edges: [M] int64, their edges within the cutoff.
            split: [M] int64, 0 for those that train; None: it is not known. For all of a folder, or for none.
        """
        ends = self.atoms + frames.n_atoms.cumsum(0)
        whole = frames.completed(*(name in self._columns for name in ("cells", "stresses", "dipoles")))
        kept = ("atomic_numbers", "pos", "forces", "energies", "cells", "pbc", "stresses", "dipoles")
        arrays = {
            "first_atom": ends if self.frames else torch.cat([ends.new_zeros(1), ends]),
            **{name: getattr(whole, name) for name in kept},
            "edges": edges,
            "split": split,
        }
        for name, values in arrays.items():
            if values is not None:
                self._column(name).add(values)
        self.frames, self.atoms = self.frames + len(frames), int(ends[-1])

    def _column(self, name: str) -> _ColumnWriter:
        """The file of an array; one that earlier frames had not has what they would have had."""
        if name not in self._columns:
            self._columns[name] = column = _ColumnWriter(_file_of(self.path, name), np.dtype(COLUMNS[name].dtype))
            if name in _MAY_BE_MISSING:
                rest = self.frames
                while rest:
                    rest -= (count := min(rest, CHUNK))
                    column.add(_absent(name, count))
        return self._columns[name]

    def __enter__(self) -> FrameFolderWriter:
        """Nothing is written yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the folder; after an error, remove what was written."""
        is_whole = False
        try:
            if kind is None:
                for column in self._columns.values():
                    column.finish()
                self._write_index()
                is_whole = True
        finally:
            for column in self._columns.values():
                column.close()
            if not is_whole:
                self._remove()

    def _write_index(self) -> None:
        entries = {
            name: {
                "dtype": COLUMNS[name].dtype,
                "shape": _shape(COLUMNS[name], self.frames, self.atoms),
                "crc32": self._columns[name].checksum,
            }
            for name in COLUMNS
            if name in self._columns
        }
        counts = {"frames": self.frames, "atoms": self.atoms, "cutoff": self._cutoff}
        index = {"format": FORMAT, "version": VERSION, **counts, "arrays": entries, "sources": self.sources}
        with atomic_file(self.path / INDEX_NAME) as stream:
            stream.write(json.dumps(index | {"crc32": checksum_of(index)}, indent=1).encode())

    def _remove(self) -> None:
        for column in self._columns.values():
            column.path.unlink(missing_ok=True)
        with suppress(OSError):  # it was there before, and holds other files
            self.path.rmdir()


def _absent(name: str, count: int) -> Tensor:
    """What frames have in a column that they lack."""
    nothing = torch.zeros(0)
    empty = ForceFrames(torch.zeros(count, dtype=torch.int64), nothing, nothing, nothing, nothing)
    return getattr(empty.completed(True, True, True), name)


class _ColumnWriter:
    """One array, written as it comes.

    Args:
        path: Its file.
        dtype: Of its values.

    Attributes:
        checksum: CRC-32 of what is written.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self._dtype = path, dtype
        self.checksum = 0
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by the writer of the folder

    def add(self, values: Tensor) -> None:
        content = values.numpy().astype(self._dtype).tobytes()
        self.checksum = zlib.crc32(content, self.checksum)
        with self._errors_name_it():
            self._file.write(content)

    def finish(self) -> None:
        """What was written is on the disk."""
        with self._errors_name_it():
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # what it cannot write any more, after an error
            self._file.close()

    @contextmanager
    def _errors_name_it(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fspath(self.path)) from error
