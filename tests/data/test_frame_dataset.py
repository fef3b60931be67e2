"""Edges found once or with every batch make the same batches; frames that cannot be used are named whenever they are met."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import pytest
import torch
from ase.build import bulk

from se3_fast import train_forces
from se3_fast.data import DataError, force_frames, frame_dataset, frames
from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, ForceDataModule, FrameFiles, read_frame_file
from se3_fast.data.frame_dataset import FrameDataset, edge_counts
from se3_fast.data.frame_folder import FrameFolderWriter
from se3_fast.data.frames import ForceFrames, FrameError
from se3_fast.data.pack_frames import pack_frames
from tests.data.labelled import labelled, mixed_frames


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A file of twenty mixed frames."""
    ase.io.write(tmp_path / "mixed.xyz", mixed_frames() * 2)
    return tmp_path / "mixed.xyz"


def batches_of(data: ForceDataModule) -> list[tuple[torch.Tensor, ...]]:
    """All tensors of all batches of the second training epoch, of validation and of test."""
    found = []
    training = data.train_dataloader()
    for holder in (training.sampler, training.batch_sampler):
        if hasattr(holder, "set_epoch"):
            holder.set_epoch(1)
    for loader in (training, data.val_dataloader(), data.test_dataloader()):
        for graph, *labels in loader:
            edges = [*graph.edges(), graph.batch_num_nodes(), graph.batch_num_edges()]
            found.append((*edges, *graph.ndata.values(), *graph.edata.values(), *labels))
    return found


def assert_same(found: list[tuple[torch.Tensor, ...]], expected: list[tuple[torch.Tensor, ...]]) -> None:
    """To the bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(one) == len(other)
        for values, wanted in zip(one, other, strict=True):
            assert values.dtype == wanted.dtype and values.numpy().tobytes() == wanted.numpy().tobytes()


@pytest.mark.parametrize("order", [{"batch_size": 3}, {"batch_edges": 700}])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_whenever_edges_are_found(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: dict[str, int], workers: int
) -> None:
    pack_frames([mixed], tmp_path / "packed")
    once = ForceDataModule(FrameFiles([mixed, FORCE_SAMPLE_PATH]), seed=4, **order)
    for module in (force_frames, frame_dataset, frames):
        monkeypatch.setattr(module, "CHUNK", 7)
    again = ForceDataModule(FrameFiles([mixed, FORCE_SAMPLE_PATH]), seed=4, **order)
    per_batch = ForceDataModule(FrameFiles([mixed, FORCE_SAMPLE_PATH]), seed=4, edge_budget=0, num_workers=workers, **order)
    packed = ForceDataModule(
        FrameFiles([tmp_path / "packed", FORCE_SAMPLE_PATH]), seed=4, edge_budget=0, num_workers=workers, **order
    )
    assert once._dataset.counts is not None and per_batch._dataset.counts is None
    expected = batches_of(once)
    for data in (again, per_batch, packed):
        assert_same(batches_of(data), expected)
        assert data.average_neighbours == once.average_neighbours and data.closest_pairs() == once.closest_pairs()
        assert data.statistics.mean_absolute_force == pytest.approx(once.statistics.mean_absolute_force, rel=1e-12)


def test_a_part_of_the_frames_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty of 480 training frames: less than 5 % off, as molecules of the sample are alike."""
    whole = ForceDataModule()
    monkeypatch.setattr(force_frames, "SAMPLE_FRAMES", 50)
    part = ForceDataModule(edge_budget=0)
    assert part.average_neighbours != whole.average_neighbours
    assert part.average_neighbours == pytest.approx(whole.average_neighbours, rel=0.05)
    pairs, expected = part.closest_pairs(), whole.closest_pairs()
    assert pairs.keys() <= expected.keys() and all(pairs[name] >= expected[name] for name in pairs)


def test_what_the_budget_counts() -> None:
    """Edges of 16 bytes, in cells of 28; estimated within a few per cent."""
    sample = ForceDataModule()
    exact = 16 * int(sample._dataset.counts.sum())
    assert sample._dataset.bytes_of_edges() == pytest.approx(exact, rel=0.05)
    assert ForceDataModule(edge_budget=exact // 2)._dataset.counts is None
    cells = ForceFrames.joined([read_frame_file(FORCE_SAMPLE_PATH).frames.completed(True, False)])
    assert FrameDataset(cells, 5.0, str).bytes_of_edges() == sample._dataset.bytes_of_edges() * 28 // 16


@pytest.mark.parametrize("cutoff", [1.3, 5.0])
def test_counted_edges_are_those_of_the_batches(mixed: Path, cutoff: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_dataset, "CHUNK", 6)
    monkeypatch.setattr(frames, "CHUNK", 6)
    given = read_frame_file(mixed).frames
    counts = edge_counts(given, cutoff, str)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, FrameDataset(given, cutoff, str).__getitems__(range(20)).counts)


def _with_two_at_one_place(given: ForceFrames) -> None:
    given.pos[int(given.first_atom[3]) + 1] = given.pos[int(given.first_atom[3])]


def _with_a_flat_cell(given: ForceFrames) -> None:
    assert given.cells is not None
    given.cells[3] = torch.ones(3, 3)


def _with_a_position_that_is_none(given: ForceFrames) -> None:
    given.pos[int(given.first_atom[3])] = torch.nan


FAULTS = [
    (_with_two_at_one_place, "expected atoms at different places, got two at one"),
    (_with_a_flat_cell, "cell: expected lattice vectors that span a volume"),
    (_with_a_position_that_is_none, "expected finite positions of at most 1e"),
]


def _faulty_folder(folder: Path, change: Callable[[ForceFrames], None]) -> Path:
    """Ten crystals as another program may have written them; number 3 is at fault."""
    ase.io.write(folder / "sound.traj", [labelled(bulk("C"), seed) for seed in range(10)])
    given = read_frame_file(folder / "sound.traj").frames
    change(given)
    with FrameFolderWriter(folder / "faulty", 5.0) as writer:
        writer.add(given, torch.full((10,), 900), torch.zeros(10, dtype=torch.int64))
    return folder / "faulty"


@pytest.mark.parametrize(("change", "fault"), FAULTS)
@pytest.mark.parametrize("order", [[4, 3, 5], [3], [0, 1, 3]])
def test_a_faulty_frame_is_named_in_its_batch(
    tmp_path: Path, change: Callable[[ForceFrames], None], fault: str, order: list[int]
) -> None:
    folder = _faulty_folder(tmp_path, change)
    dataset = force_frames.FrameDataset(force_frames.FrameFolder(folder), 4.0, lambda number: f"{folder}: frame {number}")
    assert len(dataset.__getitems__([4, 5]).frames) == 2
    with pytest.raises(FrameError, match=rf"^{folder}: frame 3: {fault}[^\n]*$"):
        dataset.__getitems__(order)


@pytest.mark.parametrize(("workers", "change", "fault"), [(0, *FAULTS[0]), (1, *FAULTS[0]), (0, *FAULTS[2])])
def test_training_ends_with_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[ForceFrames], None],
    fault: str,
    workers: int,
) -> None:
    """No frame is looked at before its batch."""
    monkeypatch.setattr(force_frames, "EDGE_BUDGET", 0)
    monkeypatch.setattr(ForceDataModule, "_average_neighbours", lambda data: 10.0)
    monkeypatch.setattr(ForceDataModule, "closest_pairs", lambda data: {})
    monkeypatch.setattr(FrameDataset, "bytes_of_edges", lambda data: 2**60)
    monkeypatch.setattr(force_frames.FrameStatistics, "of", _statistics_of_sound_frames(tmp_path))
    folder = _faulty_folder(tmp_path, change)
    others = ["--validation_data", tmp_path / "sound.traj", "--test_data", tmp_path / "sound.traj", "--num_workers", workers]
    sizes = "--num_layers 1 --num_channels 4 --epochs 1 --batch_size 2 --device cpu --silent --seed 1"
    words = ["--data", folder, "--log_dir", tmp_path / "log", *others, *sizes.split()]
    assert train_forces.main(list(map(str, words))) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}: frame 3: {fault}") and error.count("\n") == 1


def _statistics_of_sound_frames(folder: Path) -> Any:
    def of(_: object, numbers: torch.Tensor) -> force_frames.FrameStatistics:
        found = force_frames.FrameStatistics()
        found.add(read_frame_file(folder / "sound.traj").frames.select(numbers))
        return found

    return of


def test_a_faulty_frame_is_named_where_edges_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _faulty_folder(tmp_path, _with_two_at_one_place)
    monkeypatch.setattr(FrameDataset, "bytes_of_edges", lambda data: 2**60)
    for module in (frame_dataset, frames):
        monkeypatch.setattr(module, "CHUNK", 2)
    with pytest.raises(FrameError, match=rf"^{folder}: frame 3: expected atoms at different places"):
        ForceDataModule(FrameFiles([tmp_path / "sound.traj"], [folder]), batch_edges=100, edge_budget=0, cutoff=4.0)


def test_the_edges_of_folders_need_no_counting(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one, or of several; where a file is among them, or the cutoff is another, they are counted."""
    pack_frames([mixed], tmp_path / "packed")
    counted: list[float] = []

    def count(given: frames.FrameSource, cutoff: float, name_of: Callable[[int], str]) -> torch.Tensor:
        counted.append(cutoff)
        return edge_counts(given, cutoff, name_of)

    monkeypatch.setattr(force_frames, "edge_counts", count)
    for number, (files, cutoff) in enumerate(
        [
            (FrameFiles([tmp_path / "packed"]), 5.0),
            (FrameFiles([tmp_path / "packed"], [tmp_path / "packed"]), 5.0),
            (FrameFiles([tmp_path / "packed"], [mixed]), 5.0),
            (FrameFiles([tmp_path / "packed"]), 4.0),
        ]
    ):
        found = ForceDataModule(files, batch_edges=700, edge_budget=0, cutoff=cutoff)
        assert len(counted) == max(0, number - 1)
        expected = ForceDataModule(FrameFiles([mixed], [mixed] if files.validation else ()), batch_edges=700, cutoff=cutoff)
        assert found.average_neighbours == expected.average_neighbours
        assert_same(batches_of(found), batches_of(expected))


def test_damage_is_found_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack_frames([FORCE_SAMPLE_PATH], tmp_path / "packed")
    content = bytearray((tmp_path / "packed" / "forces.bin").read_bytes())
    content[10_000] ^= 1
    (tmp_path / "packed" / "forces.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"forces\.bin: damaged, expected the checksum"):
        ForceDataModule(tmp_path / "packed")
    assert train_forces.main(["--data", str(tmp_path / "packed"), "--device", "cpu", "--silent"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'packed' / 'forces.bin'}: damaged") and error.count("\n") == 1


LITTLE_MEMORY = """
import resource, sys
from se3_fast.data import force_frames
force_frames.SAMPLE_FRAMES = 500
force_frames.ForceDataModule()  # what is imported late, and allocated once
data = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (data + 60_000_000, resource.RLIM_INFINITY))
for order in ({}, {"batch_edges": 5000}):
    given = force_frames.ForceDataModule(sys.argv[1], edge_budget=10_000_000, **order)
    graph, *_ = next(iter(given.train_dataloader()))
    print(len(given.ds_train), graph.num_edges() > 3000 if order else graph.batch_size == 10, len(given.closest_pairs()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is limited as Linux does")
def test_memory_does_not_grow_with_the_frames(tmp_path: Path) -> None:
    """A folder of 110 MB, with 60 MB for all but its pages."""
    generator = torch.Generator().manual_seed(0)
    pos = 2.0 * torch.randn(1024 * 20, 3, generator=generator)
    numbers, forces = torch.randint(1, 4, (len(pos),), generator=generator), torch.randn(pos.shape, generator=generator)
    given = ForceFrames(torch.full((1024,), 20), numbers, pos, torch.randn(1024, generator=generator).double(), forces)
    counts = edge_counts(given, 5.0, str)
    with FrameFolderWriter(tmp_path / "packed", 5.0) as writer:
        for _ in range(210):
            writer.add(given, counts, None)
    assert sum(path.stat().st_size for path in (tmp_path / "packed").iterdir()) > 110e6
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LITTLE_MEMORY, str(tmp_path / "packed")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["172032 True 6", "172032 True 6"]
