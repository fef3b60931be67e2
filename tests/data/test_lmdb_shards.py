"""LMDB files of ASE's form: read as what ASE has written, several of them in a folder; pickled and damaged ones are refused."""

from __future__ import annotations

import pickle
import zlib
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.io.jsonio import encode

from se3_fast.__main__ import main
from se3_fast.data import DataError
from se3_fast.data.force_frames import ForceDataModule, FrameFiles, read_frame_file, shards_of
from se3_fast.data.frame_folder import FrameFolder
from se3_fast.data.label_units import LabelNames
from se3_fast.data.pack_frames import pack_frames
from tests.data.labelled import labelled, mixed_frames
from tests.data.test_frame_folder import assert_same

pytest.importorskip("ase_db_backends")
lmdb = pytest.importorskip("lmdb")


def write_shard(path: Path, frames: list[ase.Atoms]) -> None:
    with ase.db.connect(str(path), type="aselmdb") as database:
        for number, atoms in enumerate(frames):
            database.write(atoms, source=f"run {number}", data={"charge": 0, "dft_energy": float(number)})
    (path.parent / f"{path.name}-lock").unlink()


def write_raw(path: Path, values: dict[str, bytes]) -> None:
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key.encode(), value)


def test_frames_are_what_was_written(tmp_path: Path) -> None:
    written = mixed_frames()
    written[3].set_constraint(FixAtoms([0]))
    write_shard(tmp_path / "frames.aselmdb", written)
    ase.io.write(tmp_path / "frames.traj", written)
    for index in (":", "3", "1::2", "-4:", "-1"):
        found = read_frame_file(tmp_path / "frames.aselmdb", index)
        assert_same(found.frames, read_frame_file(tmp_path / "frames.traj", index).frames)
    assert list(found.numbers) == [9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.aselmdb", "frames.traj"]  # no lock stays
    named = read_frame_file(tmp_path / "frames.aselmdb", names=LabelNames("dft_energy")).frames
    assert named.energies.tolist() == [float(number) for number in range(10)]
    with pytest.raises(DataError, match=r"frames\.aselmdb: expected frames at index 10:, got none of its 10"):
        read_frame_file(tmp_path / "frames.aselmdb", "10:")


def test_rows_that_were_deleted(tmp_path: Path) -> None:
    write_shard(tmp_path / "frames.aselmdb", [labelled(molecule("CH4"), seed) for seed in range(5)])
    with ase.db.connect(str(tmp_path / "frames.aselmdb"), type="aselmdb") as database:
        database.delete([2, 5])
    found = read_frame_file(tmp_path / "frames.aselmdb", names=LabelNames("dft_energy")).frames
    assert found.energies.tolist() == [0, 2, 3]


def test_shards_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of shards is its shards, in the order of their names; one that is packed stays one."""
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "metadata.json").write_text("{}")
    for number in range(3):
        frames = [labelled(molecule("CH4"), 10 * number + seed) for seed in range(4)]
        write_shard(folder / f"data{number:04d}.aselmdb", frames)
    assert [path.name for path in shards_of([folder])] == [f"data{number:04d}.aselmdb" for number in range(3)]
    data = ForceDataModule(FrameFiles([folder], train_fraction=0.5), 2)
    assert (data.num_train, data.num_validation) == (6, 3)
    assert main(["pack-frames", str(folder), "--output", str(tmp_path / "packed"), "--index", ":3"]) == 0
    packed = FrameFolder(tmp_path / "packed")
    assert len(packed) == 9 and shards_of([packed.path]) == [packed.path]
    parts = [read_frame_file(path, ":3").frames for path in shards_of([folder])]
    assert packed.select([5]).energies == parts[1].energies[2]
    assert torch.equal(packed.select(range(9)).pos, torch.cat([part.pos for part in parts]))


@pytest.mark.parametrize("packs", [bytes, zlib.compress])
def test_pickled_values_are_refused(tmp_path: Path, packs: type[bytes]) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "exploded",)

    write_raw(tmp_path / "frames.lmdb", {str(number): packs(pickle.dumps(Bomb())) for number in range(3)})
    with pytest.raises(
        DataError, match=r"frames\.lmdb: expected the compressed JSON of ASE's .aselmdb files, got pickled objects, [^\n]*$"
    ):
        read_frame_file(tmp_path / "frames.lmdb")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(DataError, match=r"expected the compressed JSON"):
        pack_frames([tmp_path / "frames.lmdb"], tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    (tmp_path / "folder.lmdb").mkdir()
    with pytest.raises(DataError, match=r"folder\.lmdb: expected a file of LMDB, got a folder"):
        read_frame_file(tmp_path / "folder.lmdb")


def _json(value: object) -> bytes:
    return zlib.compress(encode(value).encode())


def _array(shape: list[int], values: list[float]) -> dict[str, object]:
    return {"__ndarray__": [shape, "float64", values]}


def _rows(nextid: bytes = _json(2), deleted_ids: bytes | None = None, **more: object) -> dict[str, bytes]:
    """One row of an atom."""
    row = _json({"numbers": [1], "positions": [[0, 0, 0]], "energy": 1.0} | more)
    return {"1": row, "nextid": nextid} | ({} if deleted_ids is None else {"deleted_ids": deleted_ids})


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({}, "expected rows of ASE's .aselmdb files, got 0 other entries"),
        ({"a": b"text"}, "expected rows of ASE's .aselmdb files, got 1 other entries"),
        ({"1": _json({}), "nextid": _json(10**12)}, "expected rows of ASE's .aselmdb files, got 2 other entries"),
        ({"1": _json({}), "nextid": _json("many")}, "expected rows of ASE's .aselmdb files, got 2 other entries"),
        ({"1": _json({}), "nextid": _json(2)}, "frame 0: ASE cannot read it"),
        ({"1": _json([1]), "nextid": _json(2)}, "frame 0: ASE cannot read it"),
        ({"1": b"text", "nextid": _json(2)}, "frame 0: ASE cannot read it"),
        ({"2": _json({}), "nextid": _json(2)}, "frame 0: ASE cannot read it"),
        ({"1": _json({"numbers": [1], "positions": [["a"] * 3]}), "nextid": _json(2)}, "frame 0: ASE cannot read it"),
        (_rows(deleted_ids=_json(3)), "expected rows of ASE's .aselmdb files, got 3 other entries"),
        (_rows(deleted_ids=_json([[1]])), "expected rows of ASE's .aselmdb files, got 3 other entries"),
        (_rows(deleted_ids=_json([1])[:-2]), "expected rows of ASE's .aselmdb files, got 3 other entries"),
        (_rows(deleted_ids=b"text"), "expected rows of ASE's .aselmdb files, got 3 other entries"),
        (_rows(nextid=zlib.compress(b"9" * 10**5)), "expected rows of ASE's .aselmdb files, got 2 other entries"),
        (_rows(nextid=zlib.compress(b"[" * 10**5)), "expected rows of ASE's .aselmdb files, got 2 other entries"),
        (
            _rows(cell=_array([10**9], [0.0])),
            r"frame 0: ASE cannot read it \(ValueError: expected an array of \[1000000000\], got 1",
        ),
        (
            _rows(cell=_array([10**12], [])),
            r"frame 0: ASE cannot read it \(ValueError: expected an array of \[1000000000000\], got 0",
        ),
        (
            {**_rows(), "1": zlib.compress(b"[" + b" " * (1 << 28))},
            r"frame 0: ASE cannot read it \(ValueError: expected at most \d+ bytes",
        ),
        (_rows(energy=10**400), "frame 0: expected numbers as 'energy', got 10000"),
        (_rows(key_value_pairs=3), "frame 0: ASE cannot read it"),
        (_rows(constraints=[{"name": "os.system", "kwargs": {}}]), "frame 0: ASE cannot read it"),
    ],
)
def test_files_that_cannot_be(tmp_path: Path, values: dict[str, bytes], fault: str) -> None:
    write_raw(tmp_path / "frames.aselmdb", values)
    with pytest.raises(DataError, match=rf"^{tmp_path}/frames\.aselmdb: {fault}[^\n]*$"):
        read_frame_file(tmp_path / "frames.aselmdb")


def test_files_that_are_cut_short_or_none(tmp_path: Path) -> None:
    write_shard(tmp_path / "frames.aselmdb", [labelled(molecule("CH4"), seed) for seed in range(50)])
    content = (tmp_path / "frames.aselmdb").read_bytes()
    for name, part in (("short", content[: len(content) // 2]), ("text", b"none " * 5000), ("empty", b"")):
        (tmp_path / f"{name}.aselmdb").write_bytes(part)
        with pytest.raises(DataError, match=rf"{name}\.aselmdb: [^\n]*$"):
            read_frame_file(tmp_path / f"{name}.aselmdb")
    with pytest.raises(DataError, match=r"missing\.aselmdb: no such file"):
        read_frame_file(tmp_path / "missing.aselmdb")


def test_faults_of_rows_name_the_frame(tmp_path: Path) -> None:
    frames = [labelled(molecule("CH4"), seed) for seed in range(4)]
    frames[2].positions[0, 0] = np.nan
    frames[2].calc.atoms = frames[2].copy()
    write_shard(tmp_path / "frames.aselmdb", frames)
    with pytest.raises(DataError, match=r"frames\.aselmdb: frame 2: expected finite positions"):
        read_frame_file(tmp_path / "frames.aselmdb")


def test_damaged_pages(tmp_path: Path) -> None:
    """Of the last level, which only the rows need; mapped into memory this file ends the process."""
    write_shard(tmp_path / "frames.aselmdb", [labelled(molecule("CH4"), seed) for seed in range(50)])
    content = bytearray((tmp_path / "frames.aselmdb").read_bytes())
    for page in range(2 * 4096, len(content), 4096):
        if content[page + 10] == 2:  # a leaf, whose nodes begin far behind its end
            content[page + 16 : page + 18] = b"\xf0\xff"
    (tmp_path / "frames.aselmdb").write_bytes(content)
    with pytest.raises(DataError, match=r"frames\.aselmdb: cannot be read as LMDB \(page \d+: a node is damaged\)$"):
        read_frame_file(tmp_path / "frames.aselmdb")
