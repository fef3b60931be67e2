"""The heaps in which HDF5 files keep text of any length, looked at before the library reads from one.

A damaged heap, in which what is left over has the size 0, keeps the library busy for ever.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_ATTRIBUTE, _CONTINUATION = 0x0C, 0x10
_SHARED = 2
_HEAD = 16
"""Bytes before the objects of a heap, and before each of them."""

_MOST_OBJECTS = 1 << 16
"""Their numbers have 16 bits."""

_MOST_BLOCKS = 1000
"""Parts of the header of an object that are looked at."""


class HeapError(ValueError):
    """A heap is damaged."""


class Heaps:
    """The heaps of a file whose addresses have 8 bytes, as all but the oldest have.

    Args:
        path: The file.
        base: Where its addresses begin.
    """

    def __init__(self, path: Path, base: int) -> None:
        self._path, self._base, self._size = path, base, path.stat().st_size
        self._sound: set[int] = set()

    def check(self, header: int, name: str) -> None:
        """Look at the heap that has the text of an attribute; not where it is kept apart, as of more than eight on an object.

        Args:
            header: Address of the object's header.
            name: Of the attribute.

        Raises:
            HeapError: It is damaged.
            OSError: The file cannot be read.
        """
        with self._path.open("rb") as file:
            try:
                address = next((found for found in self._texts(file, header, name)), None)
            except struct.error:  # the header ends too soon
                address = None
            if address is not None and address not in self._sound:
                self._check_heap(file, address)
                self._sound.add(address)

    def _texts(self, file: BinaryIO, header: int, name: str) -> Iterator[int]:
        """Addresses of the heaps of attributes with a name."""
        for body in self._attributes(file, header):
            version, *sizes = struct.unpack_from("<BxHHH", body)
            parts = [size + -size % 8 for size in sizes] if version == 1 else sizes
            start = 8 if version < 3 else 9
            if body[start : start + sizes[0]].rstrip(b"\0") == name.encode():
                yield struct.unpack_from("<4xQ", body, start + sum(parts))[0]

    def _attributes(self, file: BinaryIO, header: int) -> Iterator[bytes]:
        """Bodies of the messages of an object's header that are attributes."""
        head = self._bytes(file, header, 36)
        is_new = head[:4] == b"OHDR"
        if is_new:
            (flags,) = struct.unpack_from("<B", head, 5)
            at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            length = 1 << (flags & 3)
            blocks = [(header + at + length, int.from_bytes(head[at : at + length], "little"))]
            form = "<BHB2x" if flags & 4 else "<BHB"
        else:
            blocks, form = [(header + _HEAD, struct.unpack_from("<I", head, 8)[0])], "<HHB3x"
        for place, size in blocks:  # which grow
            block, at = self._bytes(file, place, size), 0
            while at + struct.calcsize(form) <= len(block):
                kind, length, flags = struct.unpack_from(form, block, at)
                at += struct.calcsize(form) + length
                body = block[at - length : at]
                if kind == _ATTRIBUTE and not flags & _SHARED:
                    yield body
                elif kind == _CONTINUATION:
                    place, size = struct.unpack_from("<QQ", body)
                    more = (place + 4, size - 8) if is_new else (place, size)  # without signature and checksum
                    blocks += [more] if more not in blocks and len(blocks) < _MOST_BLOCKS else []

    def _check_heap(self, file: BinaryIO, address: int) -> None:
        """Follow the objects of a heap.

        Raises:
            HeapError: They do not come to an end.
        """
        head = self._bytes(file, address, _HEAD)
        if len(head) < _HEAD or head[:4] != b"GCOL":
            return  # the library says so
        place, end = address + _HEAD, address + int.from_bytes(head[8:], "little")
        for _ in range(_MOST_OBJECTS):
            head = self._bytes(file, place, _HEAD)
            if place + _HEAD > end or len(head) < _HEAD:
                return
            number, size = struct.unpack("<H6xQ", head)
            step = _HEAD + size + -size % 8 if number else size
            if step < _HEAD:
                break
            place += step
        raise HeapError(f"the heap at {address} is damaged")

    def _bytes(self, file: BinaryIO, address: int, size: int) -> bytes:
        """What stands there; less where the file ends."""
        file.seek(min(self._base + address, self._size))
        return file.read(max(0, min(size, self._size)))
