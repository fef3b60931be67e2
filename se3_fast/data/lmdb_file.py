"""The values of an LMDB file, looked up page by page.

The library maps a file into memory and follows what stands in it: one damaged number ends the process. Here every page, place and
length is checked against the file before it is used.
"""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_HEAD = 16
"""Bytes of a page before its nodes: its number, 2 bytes unused, flags, and where the places of the nodes and the nodes end."""

_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG, _SPECIAL = 1, 6
"""Flags of a node: its value fills pages of its own; it is a data base of its own, or has several values."""

_NONE = (1 << 64) - 1
_SMALLEST_NODE = 11
"""Bytes that an entry takes at least: its place, its head and a key."""


class LmdbError(Exception):
    """The file is no LMDB file, or is damaged; the message says where."""


class _Meta(NamedTuple):
    """A state of the data base; there are two, of which the later one counts."""

    transaction: int
    page_size: int
    depth: int
    entries: int
    root: int
    last_page: int


class _Page(NamedTuple):
    number: int
    content: bytes
    flags: int
    nodes: tuple[int, ...]


class LmdbFile:
    """A file, open for reading; used in a ``with`` block. Reads what 64-bit processors of little-endian order write, as most do.

    Args:
        path: The file.

    Attributes:
        entries: Number of its keys, as it says; never more than it has room for.

    Raises:
        LmdbError: It is no LMDB file, damaged, or cut short.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            self._size = self._file.seek(0, 2)
            self._meta = self._latest()
        except BaseException:
            self._file.close()
            raise
        self.entries = self._meta.entries

    def __enter__(self) -> LmdbFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key; None: there is none.

        Raises:
            LmdbError: A page on the way to it is damaged.
        """
        node = self._first_from(key)
        return None if node is None or self._key(*node) != key else self._value(*node)

    def first(self) -> bytes | None:
        """Return the value of the first key; None: there are none.

        Raises:
            LmdbError: A page on the way to it is damaged.
        """
        node = self._first_from(b"")
        return None if node is None else self._value(*node)

    def _first_from(self, key: bytes) -> tuple[_Page, int] | None:
        """The page and the place of the first entry that is not before a key, on the leaf where that key would be."""
        if self._meta.depth == 0:
            return None
        number = self._meta.root
        for _ in range(self._meta.depth - 1):
            page = self._page(number, _BRANCH)
            number = self._child(page, page.nodes[self._find(page, key)])
        page = self._page(number, _LEAF)
        place = self._find(page, key)
        return (page, page.nodes[place]) if place < len(page.nodes) else None

    def _latest(self) -> _Meta:
        """The later one of the two states.

        Raises:
            LmdbError: One of them cannot be.
        """
        first = self._meta_at(0)
        second = self._meta_at(first.page_size)
        meta = second if second.transaction > first.transaction else first
        stated = (meta.last_page + 1) * first.page_size
        _check(stated <= self._size, f"expected {stated} bytes, got {self._size}: the file is cut short")
        is_possible = meta.depth <= 64 and meta.entries * _SMALLEST_NODE <= self._size and (meta.depth == 0) == (meta.root == _NONE)
        _check(is_possible, f"page {int(meta is second)}: {meta.entries} entries at depth {meta.depth} cannot be")
        return meta._replace(page_size=first.page_size)

    def _meta_at(self, place: int) -> _Meta:
        content = self._bytes(place, 152)
        flags, magic, version, page_size = struct.unpack_from("<10xH4xII16xI", content)
        _check(flags & _META and magic == _MAGIC and version == _VERSION, "no head of LMDB in the version that is known")
        is_size = 512 <= page_size <= 1 << 16 and page_size & (page_size - 1) == 0
        _check(is_size or place > 0, f"pages of {page_size} bytes cannot be")
        order, depth, entries, root, last_page, transaction = struct.unpack_from("<HH24xQQQQ", content, 92)
        _check(order == 0, "keys in an order of their own")
        return _Meta(transaction, page_size, depth, entries, root, last_page)

    def _bytes(self, place: int, count: int) -> bytes:
        _check(place + count <= self._size, f"expected {count} bytes at {place}, got {max(0, self._size - place)}")
        self._file.seek(place)
        return self._file.read(count)

    def _page(self, number: int, kind: int) -> _Page:
        size = self._meta.page_size
        content = self._bytes(number * size, size)
        own, flags, lower, upper = struct.unpack_from("<Q2xHHH", content)
        is_whole = own == number and flags == kind and _HEAD <= lower <= upper <= size and lower % 2 == 0
        is_whole = is_whole and lower >= _HEAD + (2 if kind == _LEAF else 4)
        _check(is_whole, f"page {number}: its head is damaged")
        return _Page(number, content, flags, struct.unpack_from(f"<{(lower - _HEAD) // 2}H", content, _HEAD))

    def _key(self, page: _Page, node: int) -> bytes:
        stop = node + 8
        if stop <= len(page.content):
            stop += int.from_bytes(page.content[node + 6 : stop], "little")
        _check(node >= _HEAD and stop <= len(page.content), f"page {page.number}: a node is damaged")
        return page.content[node + 8 : stop]

    def _find(self, page: _Page, key: bytes) -> int:
        """Of a leaf the first node with this key or a later one; of a branch the last one with this key or an earlier one."""
        low, high = int(page.flags == _BRANCH), len(page.nodes)  # the first node of a branch has no key
        while low < high:
            middle = (low + high) // 2
            found = self._key(page, page.nodes[middle])
            if found < key or (found == key and page.flags == _BRANCH):
                low = middle + 1
            else:
                high = middle
        return low - int(page.flags == _BRANCH)

    def _child(self, page: _Page, node: int) -> int:
        self._key(page, node)
        return int.from_bytes(page.content[node : node + 6], "little")

    def _value(self, page: _Page, node: int) -> bytes:
        size, flags = struct.unpack_from("<IH", page.content, node)
        start = node + 8 + len(self._key(page, node))
        _check(flags & _SPECIAL == 0, f"page {page.number}: expected a value, got several or a data base")
        if flags & _BIG:
            number = int.from_bytes(page.content[start : start + 8], "little")
            return self._big_value(number, size)
        _check(start + size <= len(page.content), f"page {page.number}: a value is damaged")
        return page.content[start : start + size]

    def _big_value(self, number: int, size: int) -> bytes:
        place = number * self._meta.page_size
        own, flags, pages = struct.unpack("<Q2xHI", self._bytes(place, _HEAD))
        is_whole = own == number and flags == _OVERFLOW and _HEAD + size <= pages * self._meta.page_size
        _check(is_whole, f"page {number}: its head is damaged")
        return self._bytes(place + _HEAD, size)


def _check(condition: bool, fault: str) -> None:
    if not condition:
        raise LmdbError(fault)
