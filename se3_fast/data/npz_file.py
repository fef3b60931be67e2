"""Writing ``.npz`` archives whole or not at all, and reading those that nobody vouches for."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from se3_fast.archives import Archive, ArchiveError, MemberStream
from se3_fast.error_text import one_line
from se3_fast.files import atomic_file

_ENDING = ".npy"
_LONGEST_HEADER = 1 << 14
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` that other processes only ever see complete.

    NumPy gives every member the same time stamp, so equal arrays make equal bytes.

    Args:
        path: Final name of the file; its directory is made if it is missing.
        arrays: Named arrays of numbers or fixed-length strings.

    Raises:
        TypeError: An array holds Python objects, which could only be stored by pickling.
    """
    target = Path(path)
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"arrays[{name!r}] must hold numbers or fixed-length strings, got dtype {array.dtype}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as stream:
        # The stubs take every keyword for `allow_pickle`.
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


class Arrays(Protocol):
    """Named arrays, or some rows of each.

    Attributes:
        names: Their names.
    """

    names: Collection[str]

    def header(self, name: str) -> ArrayHeader:
        """What an array says of itself."""

    def read(self, name: str) -> np.ndarray:
        """Its values; they cannot be written to."""

    def check_bytes(self, name: str) -> None:
        """Read it and drop it."""


class ArrayHeader(NamedTuple):
    """What an array says of itself before its values.

    Attributes:
        shape: Lengths of its axes.
        dtype: Type of its values.
        is_fortran: Whether its first axis runs fastest.
        start: Bytes before its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool
    start: int

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzArchive:
    """The arrays of an ``.npz`` file, none of which is read before it is asked for.

    Args:
        file: The archive; it must stay open as long as arrays are read.

    Attributes:
        names: Names of the arrays.

    Raises:
        ArchiveError: It is not a whole archive of arrays.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._archive = Archive(file)
        self.names: Collection[str] = [name.removesuffix(_ENDING) for name in self._archive.sizes if name.endswith(_ENDING)]

    def header(self, name: str) -> ArrayHeader:
        """What an array says of itself; its values are as many as the file holds.

        Raises:
            ArchiveError: It says what cannot be.
        """
        member = name + _ENDING
        header = _read_header(self._archive.head(member, _LONGEST_HEADER))
        size = header.start + header.num_bytes
        if header.dtype.hasobject or size == self._archive.sizes[member]:
            return header
        raise ArchiveError(f"expected {size} bytes for the shape {list(header.shape)}, got {self._archive.sizes[member]}")

    def read(self, name: str) -> np.ndarray:
        """An array of values that are no Python objects; it cannot be written to.

        Raises:
            ArchiveError: It is damaged, or could only be unpickled.
        """
        header = self.header(name)
        if header.dtype.hasobject:
            raise ArchiveError("holds pickled Python objects")
        return _array_of(self._archive.read(name + _ENDING), header)

    def stream(self, name: str) -> MemberStream:
        """The bytes of the values of an array, some at a time.

        Raises:
            ArchiveError: It is damaged.
        """
        stream = self._archive.stream(name + _ENDING)
        stream.read(self.header(name).start)
        return stream

    def check_bytes(self, name: str) -> None:
        """Read an array, of whatever values, and drop it.

        Raises:
            ArchiveError: Its bytes are not those that were written.
        """
        self._archive.read(name + _ENDING)


class NpzRows:
    """Some rows of each array of an archive, then the rows after them, so that no array is ever whole in memory.

    Of every array all rows must be read that are asked for before more are. One whose rows do not stand one after the other, in the
    order of FORTRAN, is kept in memory.

    Args:
        arrays: The archive.

    Attributes:
        names: Names of the arrays.
    """

    def __init__(self, arrays: NpzArchive) -> None:
        self.names: Collection[str] = arrays.names
        self._arrays = arrays
        self._streams: dict[str, MemberStream] = {}
        self._whole: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}

    def advance(self, counts: dict[str, int]) -> None:
        """Go on to the next rows, as many of each array as are given."""
        self._counts = counts

    def header(self, name: str) -> ArrayHeader:
        """What an array of these rows would say of itself; see :class:`NpzArchive`."""
        header = self._arrays.header(name)
        return header._replace(shape=(self._counts[name], *header.shape[1:]), is_fortran=False)

    def read(self, name: str) -> np.ndarray:
        """These rows; see :class:`NpzArchive`."""
        header = self.header(name)
        if header.dtype.hasobject:
            raise ArchiveError("holds pickled Python objects")
        if self._arrays.header(name).is_fortran and len(header.shape) > 1:
            rest = self._whole[name] if name in self._whole else self._arrays.read(name)
            self._whole[name] = rest[header.shape[0] :]
            return rest[: header.shape[0]]
        if name not in self._streams:
            self._streams[name] = self._arrays.stream(name)
        return _array_of(self._streams[name].read(header.num_bytes), header)

    def check_bytes(self, name: str) -> None:
        """Read them and drop them."""
        self.read(name)


def _array_of(content: bytes, header: ArrayHeader) -> np.ndarray:
    """The array that bytes hold at their end."""
    try:
        values = np.frombuffer(content, header.dtype, math.prod(header.shape), len(content) - header.num_bytes)
        return values.reshape(header.shape, order="F" if header.is_fortran else "C")
    except ValueError as error:  # values of no size, or an axis of astronomical length beside one of length 0
        raise ArchiveError(one_line(error)) from error


def _read_header(head: bytes) -> ArrayHeader:
    stream = io.BytesIO(head)
    try:
        read = _HEADER_READERS[np.lib.format.read_magic(stream)]
        shape, is_fortran, dtype = read(stream)
    except Exception as error:  # NumPy evaluates a Python literal there, which fails in many ways
        raise ArchiveError(f"not an array ({one_line(error)})") from error
    if any(type(length) is not int or length < 0 for length in shape):
        raise ArchiveError(f"expected lengths from 0 on, got the shape {list(shape)}")
    return ArrayHeader(shape, dtype, is_fortran, stream.tell())
