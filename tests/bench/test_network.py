"""``python -m bench.published.network``: both networks have the same parameters, are compared and timed.

RFdiffusion and its SE(3)-Transformer are stood in for by packages that are written here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.published import network, rfdiffusion

NETWORK = """
import torch
from dgl import graph
from se3_transformer.model import SE3Transformer
from se3_transformer.model.fiber import Fiber
from torch import nn


class RoseTTAFoldModule(nn.Module):
    def __init__(self, channels, d_t1d, d_t2d, T):
        super().__init__()
        self.embed = nn.Linear(48 + d_t1d, channels)
        fiber = Fiber({0: channels})
        hidden = Fiber.create(2, 4)
        self.se3 = SE3Transformer(
            num_layers=1, fiber_in=fiber, fiber_hidden=hidden, fiber_out=hidden, num_heads=2, channels_div=2
        )
        nn.init.zeros_(self.se3.graph_modules[-1].to_kernel_self["0"])

    def forward(self, msa_latent, xyz, t1d, idx, return_infer, **others):
        assert not torch.is_grad_enabled() and return_infer and not self.training
        assert (others["motif_mask"].shape, others["t2d"].shape[-1]) == (idx.shape[1:], 44)
        src, dst = torch.where(idx[0, :, None] != idx[0])
        edges = graph((src, dst), num_nodes=idx.shape[1])
        edges.edata["rel_pos"] = xyz[0, dst, 1] - xyz[0, src, 1]
        nodes = self.embed(torch.cat([msa_latent[0, 0], t1d[0, 0]], -1))
        outputs = self.se3(edges, {"0": nodes[..., None]})
        return outputs["0"], outputs["1"]
"""

TRANSFORMER = """
import se3_fast


class SE3Transformer(se3_fast.SE3Transformer):
    def forward(self, *arguments):
        with se3_fast.backend("dense"):
            return {degree: SCALE * values for degree, values in super().forward(*arguments).items()}
"""

SIZES = "{model: {channels: 8}, preprocess: {d_t1d: 22, d_t2d: 44}, diffuser: {T: 50}}"


def checkout(folder: Path, scale: float = 1.0) -> Path:
    """A folder with what is needed of RFdiffusion, whose SE(3)-Transformer returns the right values times a factor."""
    model = rfdiffusion.transformer_folder(folder) / "se3_transformer" / "model"
    for package in (model.parent, model, folder / "rfdiffusion"):
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    (model / "__init__.py").write_text(TRANSFORMER.replace("SCALE", str(scale)))
    (model / "fiber.py").write_text("from se3_fast import Fiber\n")
    (folder / "rfdiffusion" / "RoseTTAFoldModel.py").write_text(NETWORK)
    sizes = rfdiffusion.config_file(folder)
    sizes.parent.mkdir(parents=True)
    sizes.write_text(SIZES)
    return folder


def test_table_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "network.json"
    assert network.main([str(checkout(tmp_path / "right")), "--length", "6", "--rounds", "2", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    (row,) = result["rows"]
    assert (row["length"], row["allocator"], result["threads"], result["clock"]) == (6, "default", 1, "processor time")
    for name in ("ours", "published"):
        for part in network.PARTS:
            assert 0 < row[name][part]["least"] <= row[name][part]["median"] and len(row[name][part]["all"]) == 2
        assert row[name]["transformers_s"]["median"] < row[name]["whole_s"]["median"]
    assert 0 < row["differences"]["published"] < 1e-5 and 0 < row["differences"]["rounding"] < 1e-5
    assert set(result["contestants"]["published"]) == {"commit", "sha256_of_model", "dgl", "e3nn"}
    printed = capsys.readouterr().out
    assert network.table(result) in printed and printed.startswith("6 residues, default allocator: outputs differ by ")


def test_another_function_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("yaml")
    assert network.main([str(checkout(tmp_path / "wrong", 1.01)), "--length", "6", "--rounds", "1"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ours: ValueError: published: output 0: expected ours to 0.001, got a relative difference")
    assert printed.err.count("\n") == 1 and printed.out == ""


def test_folders_without_it_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkout(tmp_path / "cut")
    rfdiffusion.config_file(folder).unlink()
    for path, came in ((tmp_path / "absent", "none"), (folder, "one without config/inference/base.yaml")):
        with pytest.raises(SystemExit):
            network.main([str(path)])
        assert f"expected a checkout of RFdiffusion, got {came}: '{path}'" in capsys.readouterr().err.splitlines()[-1]


def test_a_network_without_se3_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("yaml")
    folder = checkout(tmp_path / "other")
    source = folder / "rfdiffusion" / "RoseTTAFoldModel.py"
    source.write_text(NETWORK.replace("self.se3(edges", "self.se3.forward(edges"))
    assert network.main([str(folder), "--length", "6", "--rounds", "1"]) == 1
    assert "expected a network that calls SE(3)-Transformers of se3_transformer, got one that calls none" in capsys.readouterr().err


def test_times_faster() -> None:
    medians = {"ours": (8.0, 2.0, 6.0), "published": (12.0, 6.0, 6.0)}
    row = {name: {part: {"median": of} for part, of in zip(network.PARTS, values, strict=True)} for name, values in medians.items()}
    lines = network.table({"rows": [{"length": 9, "allocator": "tuned"} | row]}).splitlines()
    assert lines[-1] == "| 9 | tuned | 12 s | 8 s (1.50 x) | 6 s | 2 s (3.00 x) | 6 s | 6 s (1.00 x) |"
