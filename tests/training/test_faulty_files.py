"""Faults of files that were found, one by one: each is refused in one line."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from se3_fast import Graph, inference
from se3_fast.archives import FREE_EXPANSION
from se3_fast.data import DataError
from se3_fast.data.force_frames import FORCE_SAMPLE_PATH, read_force_frames
from se3_fast.data.molecules import read_molecules
from se3_fast.data.npz_file import write_npz
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.data.tasks import TASKS
from se3_fast.training import CheckpointError, TrainingOptions, read_checkpoint
from se3_fast.training.checkpoint import write_safetensors
from se3_fast.training.model_config import model_of_checkpoint
from se3_fast.training.optimizers import build_optimizer, load_optimizer_state
from tests.fuzz.files.cases import trained_checkpoint
from tests.fuzz.files.mutations import archive_of, members

READERS = {"molecules": (SAMPLE_PATH, lambda path: read_molecules(path, "homo")), "frames": (FORCE_SAMPLE_PATH, read_force_frames)}


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


@pytest.mark.parametrize(("kind", "counts"), [("molecules", "n_node"), ("molecules", "n_edge"), ("frames", "n_atoms")])
def test_counts_whose_sum_wraps_around(kind: str, counts: str, tmp_path: Path) -> None:
    sound, read = READERS[kind]
    arrays = arrays_of(sound)
    arrays[counts] = arrays[counts].astype(np.int64)
    arrays[counts][:4] += 2**62  # four times 2^62 are 0 in 64 bits
    write_npz(tmp_path / "wrapped.npz", arrays)
    with pytest.raises(DataError, match=f"{counts} must add up to fewer"):
        read(tmp_path / "wrapped.npz")


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_packed_in_another_way(kind: str, method: int, tmp_path: Path) -> None:
    sound, read = READERS[kind]
    (tmp_path / "packed.npz").write_bytes(archive_of(list(members(sound.read_bytes()).items()), method))
    with pytest.raises(DataError, match="stored or deflated"):
        read(tmp_path / "packed.npz")


@pytest.mark.parametrize("kind", READERS)
def test_bombs_are_not_unpacked(kind: str, tmp_path: Path) -> None:
    sound, read = READERS[kind]
    entries = list(members(sound.read_bytes()).items())
    entries[0] = (entries[0][0], entries[0][1] + bytes(2 * FREE_EXPANSION))
    (tmp_path / "bomb.npz").write_bytes(archive_of(entries, zipfile.ZIP_DEFLATED))
    with pytest.raises(DataError, match="would unpack to"):
        read(tmp_path / "bomb.npz")


@pytest.mark.parametrize("member", [b"", b"no array", b"\x93NUMPY\x01\x00" + struct.pack("<H", 5000) + b"[" * 5000])
def test_members_that_are_no_arrays(member: bytes, tmp_path: Path) -> None:
    entries = members(SAMPLE_PATH.read_bytes()) | {"src.npy": member}
    (tmp_path / "odd.npz").write_bytes(archive_of(list(entries.items())))
    with pytest.raises(DataError, match=r"'src' is damaged[^\n]*$"):
        read_molecules(tmp_path / "odd.npz", "homo")


@pytest.mark.parametrize("name", ["node_pos", "targets"])
def test_numbers_that_single_precision_does_not_hold(name: str, tmp_path: Path) -> None:
    arrays = arrays_of(SAMPLE_PATH)
    arrays[name] = arrays[name].astype(np.float64)
    arrays[name][1, 2 if name == "node_pos" else TASKS.index("homo")] = 1e300
    write_npz(tmp_path / "large.npz", arrays)
    with pytest.raises(DataError, match="at most"):
        read_molecules(tmp_path / "large.npz", "homo")


@pytest.mark.parametrize("name", ["pos", "forces_eV_A", "energy_eV"])
def test_frames_that_single_precision_does_not_hold(name: str, tmp_path: Path) -> None:
    arrays = arrays_of(FORCE_SAMPLE_PATH)
    arrays[name] = arrays[name].astype(np.float64)
    arrays[name].flat[1] = 1e300
    write_npz(tmp_path / "large.npz", arrays)
    with pytest.raises(DataError, match="at most"):
        read_force_frames(tmp_path / "large.npz")


@pytest.mark.parametrize("name", ["node_attr", "edge_attr"])
def test_rows_that_are_not_one_hot(name: str, tmp_path: Path) -> None:
    arrays = arrays_of(SAMPLE_PATH)
    arrays[name] = arrays[name].copy()
    arrays[name][3, :4] = 1
    write_npz(tmp_path / "rows.npz", arrays)
    with pytest.raises(DataError, match="one-hot"):
        read_molecules(tmp_path / "rows.npz", "homo")


def saved(path: Path, checkpoint: Any) -> Path:
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"epoch": "3"}, {"epoch": -1}, {"epoch": True}, {"step": 1.5}, {"history": 3}, {"history": [{"epoch": 1}]}, {"seed": -1},
        {"rng": 3}, {"rng": [{}]}, {"model_config": 3}, {"data": {"std": 0.0}}, {"data": {"mean": float("nan")}}, {"state_dict": 3},
        {"scaler_state_dict": {"scale": 1.0}}, {"optimizer_state_dict": {"state": 3, "param_groups": []}}, {"version": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_entries_of_another_kind(entry: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pth", trained_checkpoint() | entry)
    with pytest.raises(CheckpointError, match=r"model\.pth: [^\n]*$"):
        read_checkpoint(path)
    assert inference.main(["--load_ckpt_path", str(path), "--device", "cpu"]) == 2


SIZES = [("num_layers", 10**5), ("num_degrees", 10**5), ("num_channels", 10**6), ("num_heads", 0)]


@pytest.mark.parametrize(("name", "value"), SIZES)
def test_sizes_of_a_model_that_the_file_does_not_hold(name: str, value: int) -> None:
    checkpoint = trained_checkpoint()
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        model_of_checkpoint(Path("model.pth"), checkpoint["model_config"] | {name: value}, checkpoint["state_dict"])


def test_every_bit_of_the_parameters_counts(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pth", trained_checkpoint())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
        stored = archive.read(member)
    content[content.index(stored, member.header_offset)] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)
    path = tmp_path / "model.safetensors"
    write_safetensors(path, trained_checkpoint())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not those that were written"):
        read_checkpoint(path)
    content[content.index(b"checkpoint_sha256")] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="its metadata has an entry that none of its writers knows"):
        read_checkpoint(path)


@pytest.mark.parametrize("change", ["shape", "missing", "infinite"])
def test_optimizer_states_that_do_not_fit(change: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([parameter], TrainingOptions())
    parameter.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state_dict()
    moments = state["state"][0]
    if change == "missing":
        del moments["exp_avg"]
    else:
        moments["exp_avg"] = torch.ones(1) if change == "shape" else torch.full((3,), float("inf"))
    with pytest.raises(CheckpointError, match="optimizer_state_dict: state of parameter 0"):
        load_optimizer_state(optimizer, state, Path("model.pth"))


def test_a_negative_number_of_nodes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="num_nodes: expected 0 or more, got -5"):
        Graph(none, none, -5)
