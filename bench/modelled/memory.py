"""Global memory as a program sees it: made-up addresses, with the numbers that integer tensors hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.modelled.values import Known

_FIRST_ADDRESS = 0x7F00_0000_0000
_APART = 1 << 36


@dataclass(frozen=True, eq=False)
class Storage:
    """Memory that tensors are views of.

    Attributes:
        key: what tells it from the others of a step.
        num_bytes: its size.
        content: the bytes [num_bytes] of one that holds integers; None where they are not known.
    """

    key: int
    num_bytes: int
    content: np.ndarray | None = None


class Memory:
    """Storages side by side."""

    def __init__(self, storages: Sequence[Storage]) -> None:
        self._place = {storage.key: place for place, storage in enumerate(storages)}
        self._storages = list(storages)

    def address(self, storage: Storage, offset: int) -> int:
        """Of a byte of a storage."""
        return _FIRST_ADDRESS + self._place[storage.key] * _APART + offset

    def load(self, address: Known, active: np.ndarray, num_bytes: int) -> list[Known] | None:
        """What a load of 1 to 16 bytes a lane brings, in words of 32 bits; None where it is not known."""
        first = address if isinstance(address, int) else int(address[active][0])
        place = (first - _FIRST_ADDRESS) // _APART
        if not 0 <= place < len(self._storages):
            return None
        content = self._storages[place].content
        if content is None:
            return None
        start = _FIRST_ADDRESS + place * _APART
        word = np.dtype(f"u{min(num_bytes, 4)}")
        whole = content[: len(content) // word.itemsize * word.itemsize].view(word)
        if isinstance(address, int):
            index = (address - start) // word.itemsize
            last = index
        else:
            index = np.where(active, (address - np.uint64(start)) // np.uint64(word.itemsize), np.uint64(0)).astype(np.int64)
            last = int(index.max())
        count = max(1, num_bytes // 4)
        if last + count > len(whole) or np.min(index) < 0:
            return None
        words = [whole[index + number] for number in range(count)]
        return [word.astype(np.uint64) if isinstance(word, np.ndarray) else int(word) for word in words]
