"""Checkpoints: what is refused, and in which words."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from se3_fast.training import CheckpointError, read_checkpoint, write_checkpoint
from se3_fast.training.checkpoint import check_same, load_weights
from se3_fast.training.random_state import capture_random_state, restore_random_state

PUBLISHED = {"state_dict": {"weight": torch.ones(2)}, "optimizer_state_dict": {}, "epoch": 4}


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return os.getcwd, ()


def test_published_format_is_read(tmp_path: Path) -> None:
    torch.save(PUBLISHED, tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth")["epoch"] == 4


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with pytest.raises(CheckpointError, match=r"model\.pth: no such"):
        read_checkpoint(path)
    write_checkpoint(path, PUBLISHED)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.pth: [^\n]*$"):
            read_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({**PUBLISHED, "extra": RunsCode()}, path)
    with pytest.raises(CheckpointError, match="other objects"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


def test_missing_keys_and_newer_formats_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="missing: optimizer_state_dict, epoch"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="missing: state_dict"):
        read_checkpoint(path)
    torch.save({**PUBLISHED, "version": 99}, path)
    with pytest.raises(CheckpointError, match="got 99"):
        read_checkpoint(path)


def test_weights_of_another_shape_are_named() -> None:
    path, model = Path("model.pth"), nn.Linear(3, 2)
    with pytest.raises(CheckpointError, match=r"model\.pth: .*'weight' of shape \[2, 3\], got \[2, 4\]"):
        load_weights(model, nn.Linear(4, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"'bias' of shape .* missing"):
        load_weights(model, nn.Linear(3, 2, bias=False).state_dict(), path)
    with pytest.raises(CheckpointError, match="no parameter 'surplus'"):
        load_weights(model, {**model.state_dict(), "surplus": torch.ones(1)}, path)


def test_every_difference_is_named_and_rounding_is_none() -> None:
    path = Path("model.pth")
    check_same(path, "model", None, {"layers": 7})
    check_same(path, "data set", {"mean": 1.0, "task": "mu"}, {"mean": 1.0 + 1e-9, "task": "mu"})
    with pytest.raises(CheckpointError, match="layers is 3 in the checkpoint, 7 in this run; heads is None"):
        check_same(path, "model", {"layers": 3}, {"layers": 7, "heads": 8})


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    write_checkpoint(path, {**PUBLISHED, "rng": [capture_random_state()]})
    drawn = [(random.random(), np.random.rand(), torch.rand(1).item())]
    restore_random_state(read_checkpoint(path)["rng"][0])
    drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
