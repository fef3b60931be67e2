"""Folders of frames: written from any file in chunks, read as the files are, and refused where they are not whole."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io.bundletrajectory import BundleTrajectory

from se3_fast.__main__ import main
from se3_fast.data import DataError, force_frames, frame_dataset, frame_folder, frames, labelled_structures
from se3_fast.data.force_frames import (
    FORCE_SAMPLE_PATH,
    ForceDataModule,
    FrameFiles,
    frame_chunks,
    open_frame_file,
    read_force_frames,
    read_frame_file,
)
from se3_fast.data.frame_folder import FrameFolder, FrameFolderWriter
from se3_fast.data.frames import ForceFrames, FrameError, JoinedFrames, chosen_slice
from se3_fast.data.label_units import DEFAULT_NAMES
from se3_fast.data.npz_file import write_npz
from se3_fast.data.pack_frames import pack_frames
from se3_fast.neighbours import neighbours_of_batch
from tests.data.labelled import labelled, mixed_frames


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come three at a time."""
    for module in (force_frames, frame_dataset, frame_folder, frames, labelled_structures):
        monkeypatch.setattr(module, "CHUNK", 3)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder of mixed frames, one of them with a dipole."""
    frames = mixed_frames()
    frames[0].calc.results["dipole"] = np.array([0.1, -0.2, 0.3])
    ase.io.write(tmp_path / "mixed.xyz", frames)
    pack_frames([tmp_path / "mixed.xyz"], tmp_path / "packed")
    return tmp_path / "packed"


def assert_same(found: ForceFrames, expected: ForceFrames) -> None:
    """To the bit; also where numbers are none."""
    for name in ForceFrames.__dataclass_fields__:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes(), name


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", ["frames.xyz", "frames.traj", "frames.db", "frames.json"])
def test_every_format_is_written_as_it_is_read(tmp_path: Path, name: str) -> None:
    """Of ten frames in chunks of three the first has no cell, the second chunk brings one."""
    written = sorted(mixed_frames(), key=lambda atoms: bool(atoms.pbc.any()))
    ase.io.write(tmp_path / name, written)
    assert pack_frames([tmp_path / name], tmp_path / "packed") == (10, sum(map(len, written)))
    folder, expected = FrameFolder(tmp_path / "packed"), read_frame_file(tmp_path / name).frames
    assert len(folder) == 10 and folder.split is None and folder.elements == expected.elements == [1, 6]
    for numbers in (range(10), [7, 2, 2, 9], torch.tensor([3]), []):
        assert_same(folder.select(numbers), expected.select(numbers))
    assert_same(read_frame_file(tmp_path / "packed").frames, expected)
    found = neighbours_of_batch(expected.pos, expected.n_atoms, 5.0, expected.cells, expected.pbc)
    assert folder.edges_of_frames(5.0).tolist() == found.counts and folder.edges_of_frames(4.0) is None


def test_trajectories_of_ase_that_are_folders(tmp_path: Path) -> None:
    few = [labelled(molecule("CH4"), seed) for seed in range(4)]
    bundle = BundleTrajectory(str(tmp_path / "few.bundle"), "w")
    for atoms in few:
        bundle.write(atoms)
    bundle.close()
    found = read_frame_file(tmp_path / "few.bundle").frames
    assert found.energies.tolist() == [atoms.get_potential_energy() for atoms in few]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_files_come_in_chunks(tmp_path: Path, order: str) -> None:
    with np.load(FORCE_SAMPLE_PATH) as archive:
        arrays = {
            name: np.asarray(archive[name], order=order) for name in ("n_atoms", "z", "pos", "energy_eV", "forces_eV_A", "split")
        }
    write_npz(tmp_path / "frames.npz", arrays)
    expected, split = read_force_frames(FORCE_SAMPLE_PATH)
    parts = list(frame_chunks(tmp_path / "frames.npz", ":", DEFAULT_NAMES))
    assert len(parts) == 200 and list(parts[7].numbers) == [21, 22, 23]
    assert_same(ForceFrames.joined([part.frames for part in parts]), expected)
    pack_frames([tmp_path / "frames.npz", tmp_path / "frames.npz"], tmp_path / "packed")
    folder = FrameFolder(tmp_path / "packed")
    assert_same(folder.select(range(600, 1200)), expected)
    assert folder.split is not None and torch.equal(folder.split, torch.cat([split, split]))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("index", ["7", ":5", "-4:", "10:400:97"])
def test_an_index_chooses_of_every_file(tmp_path: Path, index: str) -> None:
    """Read at once, in chunks, packed, and of a folder that stays on disk."""
    pack_frames([FORCE_SAMPLE_PATH], tmp_path / "all")
    pack_frames([FORCE_SAMPLE_PATH], tmp_path / "some", index)
    frames, split = read_force_frames(FORCE_SAMPLE_PATH)
    numbers = list(range(600)[chosen_slice(index)])
    expected, expected_split = frames.select(numbers), split[numbers]
    assert len(numbers) > 0
    for path in (FORCE_SAMPLE_PATH, tmp_path / "all"):
        for file in (read_frame_file(path, index), open_frame_file(path, index)):
            assert_same(file.frames.select(range(len(numbers))), expected)
            assert torch.equal(file.split, expected_split) and list(file.numbers) == numbers
            assert file.frames.elements == expected.elements
    some = FrameFolder(tmp_path / "some")
    assert_same(some.select(range(len(numbers))), expected)
    edges = open_frame_file(tmp_path / "all", index).frames.edges_of_frames(5.0)
    assert torch.equal(edges, some.edges_of_frames(5.0)) and torch.equal(some.split, expected_split)
    for path in (FORCE_SAMPLE_PATH, tmp_path / "all"):
        for read in (read_frame_file, open_frame_file, lambda *given: list(frame_chunks(*given, DEFAULT_NAMES))):
            with pytest.raises(DataError, match=rf"{path.name}: expected frames at index 600:, got none of its 600"):
                read(path, "600:")


def test_a_chosen_part_of_a_folder_trains(tmp_path: Path) -> None:
    pack_frames([FORCE_SAMPLE_PATH], tmp_path / "all")
    data = ForceDataModule(FrameFiles([tmp_path / "all"], index="::3"), 10, edge_budget=0)
    expected = ForceDataModule(FrameFiles([FORCE_SAMPLE_PATH], index="::3"), 10)
    data.prepare_data()
    assert (data.num_train, data.average_neighbours) == (expected.num_train, expected.average_neighbours)
    assert_same(data.train_frames, expected.train_frames)
    content = bytearray((tmp_path / "all" / "pos.bin").read_bytes())
    content[5] ^= 1
    (tmp_path / "all" / "pos.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"pos\.bin: damaged"):
        ForceDataModule(FrameFiles([tmp_path / "all"], index="::3"), 10).prepare_data()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"z": (40, 0)}, r"z must hold atomic numbers from 1 to 118 \(molecule 13\)"),
        ({"pos": (61, np.nan)}, r"array 'pos' has values that are not finite \(molecule 20\)"),
        ({"energy_eV": (29, np.inf)}, r"array 'energy_eV' has values that are not finite \(molecule 29\)"),
    ],
)
def test_faults_of_later_chunks_name_the_molecule(tmp_path: Path, changes: dict[str, tuple[int, float]], fault: str) -> None:
    arrays = {
        "n_atoms": np.full(30, 3),
        "z": np.tile([8, 1, 1], 30),
        "pos": np.random.default_rng(0).normal(size=(90, 3)),
        "energy_eV": np.zeros(30),
        "forces_eV_A": np.zeros((90, 3)),
    }
    for name, (row, value) in changes.items():
        arrays[name][row] = value
    write_npz(tmp_path / "frames.npz", arrays)
    with pytest.raises(DataError, match=rf"frames\.npz: {fault}"):
        pack_frames([tmp_path / "frames.npz"], tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_damaged_archive_leaves_nothing(tmp_path: Path) -> None:
    content = bytearray(FORCE_SAMPLE_PATH.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "frames.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"frames\.npz: [^\n]*$"):
        pack_frames([tmp_path / "frames.npz"], tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    atoms = [molecule("CH4") for _ in range(5)]
    for number, each in enumerate(atoms):
        each.rattle(0.05, seed=number)
        each.info["dft_energy"], each.arrays["dft_forces"] = float(number), np.full((5, 3), 50.0 * number)
    ase.io.write(tmp_path / "frames.xyz", atoms)
    words = ["pack-frames", tmp_path / "frames.xyz", "--output", tmp_path / "new" / "packed", "--index", "1::2", "--cutoff", 1.2]
    labels = ["--energy_name", "dft_energy", "--forces_name", "dft_forces"]
    with caplog.at_level(logging.WARNING):
        assert main([str(word) for word in [*words, *labels]]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'packed'}: 2 frames, 10 atoms\n"
    assert "frames.xyz: frame 3: a force of 260, more than" in caplog.text
    folder = FrameFolder(tmp_path / "new" / "packed")
    assert folder.select([0, 1]).energies.tolist() == [1, 3] and folder.edges_of_frames(1.2).tolist() == [8, 8]
    index = json.loads((folder.path / "frames.json").read_text())
    assert index["sources"] == [{"file": "frames.xyz", "frames": 2}]
    assert main([str(word) for word in [*words, *labels]]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'new' / 'packed'}: expected a new folder, got one that holds frames\n"
    assert main([str(word) for word in [*words[:3], tmp_path / "other", *words[4:]]]) == 2
    assert "frames.xyz: expected 'energy' or 'forces' in some frame" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.xyz", "new"]


def test_faulty_frames_are_those_of_their_files(tmp_path: Path) -> None:
    few = [labelled(molecule("CH4"), seed) for seed in range(4)]
    few[2].positions[3] = few[2].positions[1]
    few[2].calc.atoms = few[2].copy()
    ase.io.write(tmp_path / "sound.traj", few[:2])
    ase.io.write(tmp_path / "faulty.traj", few)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"faulty\.traj: frame 2: expected atoms at different places"):
        pack_frames([tmp_path / "sound.traj", tmp_path / "faulty.traj"], tmp_path / "packed")
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match=r"sound\.traj: expected `split` in all files or in none"):
        pack_frames([FORCE_SAMPLE_PATH, tmp_path / "sound.traj"], tmp_path / "packed")


def test_a_killed_conversion_is_no_folder(tmp_path: Path) -> None:
    killed = (
        "import os; from pathlib import Path; from se3_fast.data import frame_folder, force_frames, pack_frames\n"
        "frame_folder.FrameFolderWriter._write_index = lambda writer: os._exit(9)\n"
        f"pack_frames.pack_frames([force_frames.FORCE_SAMPLE_PATH], Path({str(tmp_path / 'packed')!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", killed], env=environment, check=False).returncode == 9
    assert (tmp_path / "packed" / "forces.bin").stat().st_size > 0
    with pytest.raises(DataError, match=r"frames\.json: no such file: not a folder of frames, or its conversion has not ended"):
        FrameFolder(tmp_path / "packed")
    pack_frames([FORCE_SAMPLE_PATH], tmp_path / "packed")
    assert_same(read_frame_file(tmp_path / "packed").frames, read_force_frames(FORCE_SAMPLE_PATH)[0])


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*first_atom\.bin'"):
        pack_frames([FORCE_SAMPLE_PATH], tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_other_processes_map_the_files_themselves(packed: Path) -> None:
    content = pickle.dumps(FrameFolder(packed))
    assert len(content) < 1000
    assert_same(pickle.loads(content).select(range(10)), FrameFolder(packed).select(range(10)))


def test_sources_joined(packed: Path) -> None:
    """A folder with cells and dipoles between frames in memory without: as all of them in memory."""
    sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
    first, last = sample.select(range(5)), sample.select(range(5, 9))
    joined = JoinedFrames([first, FrameFolder(packed), last])
    expected = ForceFrames.joined([first, read_frame_file(packed).frames, last])
    assert joined.has_dipoles and int(expected.dipoles.isfinite().sum()) == 3
    assert len(joined) == 19 and joined.elements == expected.elements
    for numbers in (range(19), [18, 0, 7, 7, 3, 16], [1, 2], []):
        assert_same(joined.select(numbers), expected.select(numbers))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("name", [*frame_folder.COLUMNS])
@pytest.mark.parametrize(("damage", "fault"), [(_truncate, "expected"), (_lengthen, "expected"), (os.remove, "cannot be read")])
def test_files_of_another_size(packed: Path, name: str, damage: Callable[[Path], None], fault: str) -> None:
    if name == "split":
        pack_frames([FORCE_SAMPLE_PATH], packed := packed.parent / "with_split")
    damage(packed / f"{name}.bin")
    with pytest.raises(DataError, match=rf"{name}\.bin: {fault} [^\n]*$"):
        FrameFolder(packed)


@pytest.mark.parametrize("name", [name for name in frame_folder.COLUMNS if name != "split"])
def test_a_flipped_bit_is_noticed(packed: Path, name: str) -> None:
    FrameFolder(packed).check_bytes()
    path = packed / f"{name}.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}\.bin: (damaged, expected the checksum|expected numbers that rise)[^\n]*$"):
        FrameFolder(packed).check_bytes()
    with pytest.raises(DataError, match=rf"{name}\.bin: "):
        read_frame_file(packed)
    with pytest.raises(DataError, match=rf"{name}\.bin: "):
        pack_frames([packed], packed.parent / "again")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda index: index.update(format="others"), "expected the format 'se3_fast frames'"),
        (lambda index: index.update(version=1), "expected version 2 of the format, which se3-fast pack-frames writes, got 1"),
        (lambda index: index.update(frames=0), r"expected numbers of frames and atoms, got \[0, 50\]"),
        (lambda index: index.update(frames=True), "expected numbers of frames and atoms"),
        (lambda index: index.update(cutoff="5"), "expected a cutoff above 0, got '5'"),
        (lambda index: index["arrays"].pop("pos"), "expected the arrays first_atom"),
        (lambda index: index["arrays"].pop("pbc"), "expected the arrays first_atom"),
        (lambda index: index["arrays"].update(other={}), "expected the arrays first_atom"),
        (lambda index: index["arrays"]["pos"].update(dtype="<f8"), "and a checksum of 'pos', got"),
        (lambda index: index["arrays"]["pos"].update(shape=[10**9, 3]), "and a checksum of 'pos', got"),
        (lambda index: index["arrays"]["pos"].pop("crc32"), "and a checksum of 'pos', got"),
        (lambda index: index["arrays"].update(pos=3), "and a checksum of 'pos', got 3"),
        (lambda index: index.update(cutoff=4.9), "damaged, expected the checksum"),
        (lambda index: index["sources"][0].update(frames=9), "damaged, expected the checksum"),
        (lambda index: index.update(more=1), "damaged, expected the checksum"),
        (lambda index: index.pop("crc32"), "damaged, expected the checksum None, got"),
        (lambda index: index.update(crc32=[1]), r"damaged, expected the checksum \[1\], got"),
    ],
)
def test_an_index_that_cannot_be(packed: Path, change: Callable[[dict[str, Any]], None], fault: str) -> None:
    path = packed / "frames.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=rf"frames\.json: [^\n]*{fault}[^\n]*$"):
        FrameFolder(packed)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000, b"{" + b" " * (1 << 21)])
def test_an_index_that_is_none(packed: Path, content: bytes) -> None:
    (packed / "frames.json").write_bytes(content)
    with pytest.raises(DataError, match=r"frames\.json: (not JSON|expected the format)[^\n]*$"):
        FrameFolder(packed)


def test_an_index_with_any_byte_changed(packed: Path) -> None:
    """It is refused in one line, or the frames are those that were written."""
    expected = FrameFolder(packed).select(range(10))
    content, generator = (packed / "frames.json").read_bytes(), np.random.default_rng(0)
    for place in generator.choice(len(content), 200):
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        (packed / "frames.json").write_bytes(changed)
        try:
            folder = FrameFolder(packed)
            folder.check_bytes()
        except DataError as error:
            assert str(error).startswith(str(packed)) and "\n" not in str(error)
        else:
            assert_same(folder.select(range(10)), expected)


def test_values_that_cannot_be_are_named(tmp_path: Path) -> None:
    """A folder that another program has written, with right checksums."""
    sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
    sample.pos[int(sample.n_atoms[:4].sum()), 1] = torch.nan
    with FrameFolderWriter(tmp_path / "pos", 5.0) as writer:
        writer.add(sample, torch.zeros(600, dtype=torch.int64), None)
    folder = FrameFolder(tmp_path / "pos")
    folder.check_bytes()
    assert len(folder.select([3, 5])) == 2
    with pytest.raises(FrameError, match="pos: frame 4: expected finite positions of at most 1e"):
        folder.select([5, 4, 3])
    sample.atomic_numbers[7] = 0
    with FrameFolderWriter(tmp_path / "numbers", 5.0) as writer:
        writer.add(sample, torch.zeros(600, dtype=torch.int64), None)
    with pytest.raises(DataError, match=r"atomic_numbers\.bin: expected atomic numbers from 1 to 118, got 0 to 9"):
        _ = FrameFolder(tmp_path / "numbers").elements


@pytest.mark.parametrize("name", ["energies", "forces"])
def test_labels_that_are_infinite_are_named(tmp_path: Path, name: str) -> None:
    """Those that are not known are NaN."""
    sample, _ = read_force_frames(FORCE_SAMPLE_PATH)
    place = 4 if name == "energies" else int(sample.n_atoms[:4].sum())
    getattr(sample, name)[place] = -torch.inf
    with FrameFolderWriter(tmp_path / "frames", 5.0) as writer:
        writer.add(sample, torch.zeros(600, dtype=torch.int64), None)
    folder = FrameFolder(tmp_path / "frames")
    assert len(folder.select([3, 5])) == 2
    with pytest.raises(FrameError, match=f"frames: frame 4: expected finite {name}, or NaN for unknown ones, got infinite ones"):
        folder.select([5, 4, 3])
