"""Checkpoints in the published format and as safetensors."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from se3_fast import ConvSE3FuseLevel, Fiber, SE3TransformerPooled, build_for_state_dict, complete_graph
from se3_fast.checkpoints import convert_file, main, read_state_dict
from se3_fast.training import CheckpointError
from se3_fast.training.checkpoint import read_checkpoint, write_safetensors

ARGUMENTS: dict[str, Any] = {
    "fiber_in": Fiber({0: 3}),
    "fiber_out": Fiber({0: 6}),
    "fiber_edge": Fiber({}),
    "num_degrees": 2,
    "num_channels": 4,
    "output_dim": 1,
    "num_layers": 2,
    "num_heads": 2,
    "channels_div": 2,
}
CONFIG = {"fiber_in": {0: 3}, "fiber_edge": {0: 4}, "num_degrees": 2, "low_memory": False}


class RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("was run",)


def published_file(path: Path, model: nn.Module) -> Path:
    """A checkpoint as the published training writes it, after a step of its optimizer."""
    optimizer = torch.optim.Adam(model.parameters())
    energy(model).sum().backward()
    optimizer.step()
    torch.save({"state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "epoch": 7}, path)
    return path


def energy(model: nn.Module) -> Tensor:
    graph = complete_graph(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    return model(graph, {"0": torch.ones(5, 3, 1)})


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("level", ConvSE3FuseLevel)
def test_published_checkpoints_of_every_fuse_level(level: ConvSE3FuseLevel, ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SE3TransformerPooled(**ARGUMENTS, fuse_level=level)
    path = published_file(tmp_path / "model.pth", model)
    if ending == ".safetensors":
        convert_file(path, tmp_path / "model.safetensors")
    loaded = build_for_state_dict(SE3TransformerPooled, read_state_dict(tmp_path / f"model{ending}"), **ARGUMENTS)
    assert loaded.transformer.fuse_level is level
    with torch.no_grad():
        assert torch.equal(energy(loaded), energy(model))


def test_to_safetensors_and_back(tmp_path: Path) -> None:
    transposed = torch.randn(4, 3).T
    state = {"half": torch.randn(3, 2).half(), "transposed": transposed, "shared": transposed, "number": torch.tensor(5)}
    state["none"] = torch.zeros(0, 2)
    path = tmp_path / "model.safetensors"
    data = {"task": "homo", "mean": -6.5}
    write_safetensors(path, {"state_dict": state, "epoch": 3, "model_config": CONFIG, "data": data, "rng": [torch.zeros(2)]})
    assert main([str(path), str(tmp_path / "model.pth")]) == 0
    for name in ("model.safetensors", "model.pth"):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint["epoch"] == 3 and checkpoint["optimizer_state_dict"] == {} and "rng" not in checkpoint
        assert checkpoint["model_config"] == CONFIG and checkpoint["data"] == data
        assert set(checkpoint["state_dict"]) == set(state)
        for key, tensor in checkpoint["state_dict"].items():
            assert tensor.dtype == state[key].dtype and torch.equal(tensor, state[key]), key


def test_other_programs_read_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, {"state_dict": {"weight": torch.ones(2)}})
    with safe_open(path, framework="numpy") as file:
        assert file.get_tensor("weight").tolist() == [1, 1] and file.metadata()["format"] == "pt"


def test_safetensors_of_other_programs_are_read(tmp_path: Path) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    checkpoint = read_checkpoint(path)
    assert checkpoint == {"epoch": 0, "state_dict": {"weight": torch.zeros(1)}, "optimizer_state_dict": {}}


def test_damaged_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such"):
        read_state_dict(path)
    write_safetensors(path, {"state_dict": {"weight": torch.ones(50)}})
    whole = path.read_bytes()
    for content in (whole[:60], whole[:-30], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged[^\n]*$"):
            read_state_dict(path)
    assert main([str(path), str(tmp_path / "model.pth")]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "model.pth").exists()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_nothing_in_a_file_is_run(ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model{ending}"
    state = {"state_dict": {"weight": RunsCode()}, "optimizer_state_dict": {}, "epoch": 1}
    for write in (lambda: torch.save(state, path), lambda: path.write_bytes(pickle.dumps(state))):
        write()
        with pytest.raises(CheckpointError):
            read_state_dict(path)
        with pytest.raises(CheckpointError):
            convert_file(path, tmp_path / "copy.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
