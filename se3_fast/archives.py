"""Reading zip archives that nobody vouches for, which `.npz` files and checkpoints are.

A directory may promise anything. Here nothing is unpacked before its promises fit each other and the size of the file, a member is
read in one go, and what is returned has the checksum that it was written with.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO

from se3_fast.error_text import one_line

LARGEST_EXPANSION = 100
"""Bytes that an archive may unpack to for each of its own; QM9 unpacks to 3."""

FREE_EXPANSION = 1 << 26
"""Bytes that any archive may unpack to, so that small ones may hold as many zeros as they like."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x41  # flag bits


class ArchiveError(ValueError):
    """An archive cannot be used; the message says why in one line, without the name of the file."""


class Archive:
    """The members of a zip archive, stored or deflated, each with a name of its own.

    Args:
        file: The archive; it must stay open as long as members are read.

    Attributes:
        sizes: Unpacked bytes of every member by name, in the order of the directory.

    Raises:
        ArchiveError: It is damaged, encrypted, packed in another way, or promises more than it can hold.
    """

    def __init__(self, file: BinaryIO) -> None:
        with _one_kind_of_error():
            self._zip = zipfile.ZipFile(file)
            members = self._zip.infolist()
            for member in members:
                _check_member(member)
            _check_sizes(members, file.seek(0, os.SEEK_END))
            for member in members:
                self._zip.open(member).close()  # compares its name with the one that stands before its bytes
        self._members = {member.filename: member for member in members}
        self.sizes = {name: member.file_size for name, member in self._members.items()}

    def head(self, name: str, size: int) -> bytes:
        """The first bytes of a member, at most `size`. Their checksum is known only when all are read.

        Raises:
            ArchiveError: They cannot be unpacked.
        """
        with _one_kind_of_error(), self._zip.open(self._members[name]) as stream:
            return stream.read(min(size, self.sizes[name]))

    def stream(self, name: str) -> MemberStream:
        """The bytes of a member, some at a time.

        Raises:
            ArchiveError: They cannot be unpacked.
        """
        with _one_kind_of_error():
            return MemberStream(self._zip.open(self._members[name]))

    def read(self, name: str) -> bytes:
        """All bytes of a member.

        Raises:
            ArchiveError: They are not those that were written.
        """
        size = self.sizes[name]
        with _one_kind_of_error(), self._zip.open(self._members[name]) as stream:
            content = stream.read(size)
            if len(content) != size or stream.read(1):
                raise ArchiveError(f"expected {size} bytes, got {len(content)}")
        return content


class MemberStream:
    """The bytes of a member of an archive, from the first on. The last of them come only if all are those that were written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            ArchiveError: There are fewer, or they are not those that were written.
        """
        with _one_kind_of_error():
            content = self._stream.read(size)
        if len(content) != size:
            raise ArchiveError(f"expected {size} bytes more, got {len(content)}")
        return content


def _check_member(member: zipfile.ZipInfo) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"{member.filename!r} is encrypted")
    if member.compress_type not in _METHODS:
        raise ArchiveError(f"expected {member.filename!r} stored or deflated, got compression method {member.compress_type}")
    if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        raise ArchiveError(f"expected {member.file_size} bytes of {member.filename!r}, got {member.compress_size}")


def _check_sizes(members: list[zipfile.ZipInfo], file_size: int) -> None:
    for name, times in Counter(member.filename for member in members).items():
        if times > 1:
            raise ArchiveError(f"expected {name!r} once, got it {times} times")
    packed, unpacked = (sum(getattr(member, size) for member in members) for size in ("compress_size", "file_size"))
    if packed > file_size:
        raise ArchiveError(f"expected members of {file_size} bytes or less, as the file has, got {packed}")
    if unpacked > max(FREE_EXPANSION, LARGEST_EXPANSION * file_size):
        raise ArchiveError(f"{file_size} bytes would unpack to {unpacked}")


@contextmanager
def _one_kind_of_error() -> Iterator[None]:
    """Turn whatever `zipfile` and `zlib` raise about bytes that they do not expect into an `ArchiveError`."""
    try:
        yield
    except ArchiveError:
        raise
    except Exception as error:  # BadZipFile, and a dozen kinds more, from struct.error to NotImplementedError
        raise ArchiveError(one_line(error)) from error
