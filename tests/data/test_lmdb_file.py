"""LMDB files, read page by page: what the library has written, and one line for what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from se3_fast.data.lmdb_file import LmdbError, LmdbFile

lmdb = pytest.importorskip("lmdb")

PAGE = 4096


def write(path: Path, values: dict[bytes, bytes], deleted: tuple[bytes, ...] = ()) -> None:
    with lmdb.open(str(path), subdir=False, map_size=1 << 26, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key, value)
        with environment.begin(write=True) as transaction:
            for key in deleted:
                transaction.delete(key)
        used = (environment.info()["last_pgno"] + 1) * PAGE
    path.write_bytes(path.read_bytes()[:used])


def many(count: int, longest: int) -> dict[bytes, bytes]:
    generator = np.random.default_rng(0)
    keys = [b"%d" % number + generator.bytes(generator.integers(400)) * (number % 3 == 0) for number in range(count)]
    return {key: generator.bytes(generator.integers(longest)) for key in keys}


@pytest.mark.parametrize(("count", "longest"), [(1, 10), (30, 200), (3000, 1500), (200, 20_000)])
def test_values_are_what_was_written(tmp_path: Path, count: int, longest: int) -> None:
    """Of one page, of several levels of them, and of values that fill pages of their own."""
    values = many(count, longest)
    gone = tuple(list(values)[1::7])
    write(tmp_path / "a.lmdb", values, gone)
    with LmdbFile(tmp_path / "a.lmdb") as file:
        assert file.entries == len(values) - len(gone)
        assert file.first() == min((key, value) for key, value in values.items() if key not in gone)[1]
        for key, value in values.items():
            assert file.get(key) == (None if key in gone else value)
        assert all(file.get(key) is None for key in (b"", b"\xff", b"0a", b"5" * 500))


def test_files_without_entries(tmp_path: Path) -> None:
    write(tmp_path / "a.lmdb", {})
    write(tmp_path / "b.lmdb", {b"a": b"b"}, (b"a",))
    for name in ("a", "b"):
        with LmdbFile(tmp_path / f"{name}.lmdb") as file:
            assert (file.entries, file.first(), file.get(b"a")) == (0, None, None)


def test_what_is_no_value(tmp_path: Path) -> None:
    """Data bases within the file, and several values of a key."""
    with lmdb.open(str(tmp_path / "a.lmdb"), subdir=False, map_size=1 << 20, max_dbs=2, lock=False) as environment:
        inner = environment.open_db(b"inner", dupsort=True)
        with environment.begin(write=True) as transaction:
            transaction.put(b"a", b"b", db=inner)
    with (
        LmdbFile(tmp_path / "a.lmdb") as file,
        pytest.raises(LmdbError, match="page 4: expected a value, got several or a data base"),
    ):
        file.get(b"inner")


def test_keys_in_another_order(tmp_path: Path) -> None:
    write(tmp_path / "a.lmdb", {b"a": b"b"})
    content = bytearray((tmp_path / "a.lmdb").read_bytes())
    content[92] = content[PAGE + 92] = 2  # from their ends
    (tmp_path / "a.lmdb").write_bytes(content)
    with pytest.raises(LmdbError, match="keys in an order of their own"):
        LmdbFile(tmp_path / "a.lmdb")


def test_values_that_end_beyond_their_page(tmp_path: Path) -> None:
    write(tmp_path / "a.lmdb", {b"a": b"value"})
    content = bytearray((tmp_path / "a.lmdb").read_bytes())
    node = content.rindex(b"avalue") - 8
    content[node : node + 2] = (200).to_bytes(2, "little")
    (tmp_path / "a.lmdb").write_bytes(content)
    with LmdbFile(tmp_path / "a.lmdb") as file, pytest.raises(LmdbError, match="page 2: a value is damaged"):
        file.get(b"a")


def changed_fields(content: bytes) -> Iterator[bytes]:
    """Every 16 bits of the first bytes of a page, and of those of its first nodes, as something else."""
    for page in range(0, len(content), PAGE):
        nodes = [int.from_bytes(content[page + 16 + 2 * number :][:2], "little") for number in range(2)]
        starts = [*range(0, 24, 2), *(node + field for node in nodes if 16 <= node < PAGE - 16 for field in range(0, 16, 2))]
        if page < 2 * PAGE:
            starts = list(range(0, 160, 2))
        for start in starts:
            for value in (0, 1, 2, 17, 0x7FFF, 0xFFFF):
                yield content[: page + start] + value.to_bytes(2, "little") + content[page + start + 2 :]


def test_damaged_files(tmp_path: Path) -> None:
    """A value, or one line; mapped into memory such files end the process."""
    values = many(40, 500) | {b"long": bytes(9000)}
    write(tmp_path / "a.lmdb", values)
    content, refused, path = (tmp_path / "a.lmdb").read_bytes(), 0, tmp_path / "b.lmdb"
    for changed in changed_fields(content):
        path.write_bytes(changed)
        try:
            with LmdbFile(path) as file:
                assert file.entries < len(content)
                for key in (b"long", *list(values)[::8]):
                    found = file.get(key)
                    assert found is None or len(found) < len(content)
        except LmdbError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


@pytest.mark.parametrize("part", [0, 10, 3000, PAGE, 2 * PAGE, 2 * PAGE + 100, -PAGE, -1])
def test_files_that_are_cut_short(tmp_path: Path, part: int) -> None:
    write(tmp_path / "a.lmdb", many(150, 600))
    (tmp_path / "b.lmdb").write_bytes((tmp_path / "a.lmdb").read_bytes()[:part])
    with pytest.raises(LmdbError, match=r"expected \d+ bytes"):
        LmdbFile(tmp_path / "b.lmdb")
