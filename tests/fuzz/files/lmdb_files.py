"""What is attacked of LMDB files in ASE's form: damaged bytes, and files that somebody made up."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ase.db
import lmdb
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.jsonio import encode

from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, read_force_frames

from . import mutations
from .cases import change_entries
from .frame_reader import FRAMES, FrameReader


def _value(value: Any) -> bytes:
    return zlib.compress(encode(value).encode())


@cache
def _bomb(text: bytes, times: int) -> bytes:
    return zlib.compress(text * times)


class Shards(FrameReader):
    """LMDB files of ASE's form: a few rows, of which one is larger than a page, and one was deleted."""

    suffix = ".aselmdb"

    def __init__(self, folder: Path) -> None:
        sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
        path = folder / "sound.aselmdb"
        with ase.db.connect(str(path), type="aselmdb") as database:
            for number in range(12):
                frame = sample.select([FRAMES * number])
                atoms = Atoms(frame.atomic_numbers.numpy(), frame.pos.numpy())
                results = {"energy": float(frame.energies), "forces": frame.forces.numpy().astype(float)}
                atoms.calc = SinglePointCalculator(atoms, **results)
                more = {"charge": 0, "noise": np.random.default_rng(number).random(1000 if number == 4 else 2)}
                database.write(atoms, source=f"run {number}", data=more)
        with ase.db.connect(str(path), type="aselmdb") as database:
            database.delete([3])
        self.content = path.read_bytes()
        self.content = self.content[: self._used(path)]
        path.write_bytes(self.content)
        self.sound = self.read(path)
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment, environment.begin() as transaction:
            self.entries = {bytes(key): bytes(value) for key, value in transaction.cursor()}
        self.folder = folder

    @staticmethod
    def _used(path: Path) -> int:
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment:
            return int((environment.info()["last_pgno"] + 1) * environment.stat()["psize"])

    def change(self, numbers: random.Random) -> tuple[bytes, Callable[[Any], bool]]:
        kind = numbers.randrange(10)
        if kind <= 3:
            return mutations.change_bytes(numbers, self.content), lambda result: True  # no checksums but those of the rows
        if kind <= 5:
            return self._change_fields(numbers), lambda result: True
        return self._written(self._change_entries(numbers)), lambda result: True

    def _change_fields(self, numbers: random.Random) -> bytes:
        """Sizes, places and flags in the first bytes of pages, and the places of their nodes."""
        changed = bytearray(self.content)
        for _ in range(numbers.randint(1, 3)):
            page = 4096 * numbers.randrange(len(changed) // 4096)
            place = page + 2 * numbers.choice((*range(8), *range(8, 40), *range(60, 80)))
            value = numbers.choice((0, 1, 2, 3, 4, 8, 15, 16, 17, 18, 0x40, 0x7FFF, 0xFFFF, 4095, 4096, numbers.randrange(65536)))
            changed[place : place + 2] = value.to_bytes(2, "little")
        return bytes(changed)

    def _written(self, entries: dict[bytes, bytes]) -> bytes:
        path = self.folder / "written.aselmdb"
        path.unlink(missing_ok=True)
        with (
            lmdb.open(str(path), subdir=False, map_size=1 << 28, lock=False) as environment,
            environment.begin(write=True) as transaction,
        ):
            for key, value in entries.items():
                transaction.put(key, value)
        return path.read_bytes()[: self._used(path)]

    def _change_entries(self, numbers: random.Random) -> dict[bytes, bytes]:
        changed = dict(self.entries)
        key, kind = numbers.choice(list(changed)), numbers.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[key] = numbers.choice((mutations.change_bytes(numbers, changed[key]), changed[numbers.choice(list(changed))]))
        elif kind == 2:
            name = numbers.choice((b"nextid", b"deleted_ids"))
            changed[name] = _value(
                numbers.choice((0, -1, 2, 5, 13, 14, 25, 10**9, 2**63, "3", [], [1], [10**9], [[1]], {"a": 1}, None, 1.5))
            )
        elif kind == 3:
            changed[key] = _bomb(numbers.choice((b"[", b" ", b"9", b"\xff")), numbers.choice((10**5, 1 << 28)))
        else:
            row = numbers.choice([name for name in changed if name.isdigit()])
            changed[row] = zlib.compress(_changed_row(numbers, zlib.decompress(changed[row]).decode()).encode())
        return changed


_LIES: tuple[Any, ...] = (
    *({"__ndarray__": [[10**9], "float64", [0]]}, {"__ndarray__": [[10**12], "float64", []]}, {"__ndarray__": 3}),
    *({"__ndarray__": [[3], "object", [1, "a", None]]}, {"__ndarray__": [[1], "nope", [0]]}, {"__complex__": ["a", 1]}),
    *({"__ndarray__": [[2, 3], "complex128", [0] * 12]}, {"__ndarray__": [[0, 3], "float64", []]}),
    *({"__ndarray__": [[-1], "float64", [1]]}, {"__ndarray__": [[2], "<U1000000000", ["a", "b"]]}),
    *({"__datetime__": "yesterday"}, {"__ase_objtype__": "atoms", "numbers": [1]}, {"__ase_objtype__": "nope"}),
    *({"__ase_objtype__": "bandpath", "labelseq": "G", "cell": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "npoints": 10**9},),
    *([{"name": "FixAtoms", "kwargs": {"indices": [10**9]}}], [{"name": "os.system", "kwargs": {}}], [{"name": 3}]),
    *([[0, 0, 0]] * 3, [True, False, True], "TTT", [1e400, 0, 0], [10**400], [[float("nan")] * 3] * 3, [[[]]]),
)  # fmt: skip


def _changed_row(numbers: random.Random, text: str) -> str:
    """A row in which an entry, at any depth, is another one."""
    row = json.loads(text)
    if numbers.random() < 0.5:
        row = change_entries(numbers, row)
    else:
        names = (*row, "cell", "pbc", "stress", "constraints", "masses", "tags", "momenta", "dipole", "_data", "_keys", "__class__")
        place = numbers.choice((row, row, row["data"], row["key_value_pairs"]))
        place[numbers.choice(names)] = numbers.choice(_LIES)
    try:
        return json.dumps(row, default=repr, skipkeys=True)
    except ValueError:  # of what holds itself
        return "{}"
