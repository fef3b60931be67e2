"""Split, standardisation, batches and options of the QM9 data module."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset, random_split

from se3_fast.data import TASK_UNITS, TASKS, DataError, DownloadError, QM9DataModule
from se3_fast.data import qm9 as qm9_module
from se3_fast.data.npz_file import write_npz
from se3_fast.data.qm9 import split_indices, split_sizes

Arrays = dict[str, np.ndarray]


def module(data_dir: Path, **options: Any) -> QM9DataModule:
    return QM9DataModule(data_dir, **({"num_workers": 0, "batch_size": 16} | options))


@pytest.mark.parametrize(
    ("num_molecules", "sizes"),
    [
        (130_831, (100_000, 17_748, 13_083)),
        (125_000, (100_000, 12_500, 12_500)),
        (6_000, (4_586, 814, 600)),
        (3, (2, 1, 0)),
    ],
)
def test_split_sizes(num_molecules: int, sizes: tuple[int, int, int]) -> None:
    assert split_sizes(num_molecules) == sizes


def test_split_is_that_of_random_split_with_seed_0() -> None:
    parts = random_split(TensorDataset(torch.arange(500)), split_sizes(500), torch.Generator().manual_seed(0))
    for ours, published in zip(split_indices(500), parts, strict=True):
        assert ours.tolist() == list(published.indices)


def test_tasks_in_published_order() -> None:
    assert " ".join(TASKS) == "mu alpha homo lumo gap r2 zpve U0 U H G Cv U0_atom U_atom H_atom G_atom A B C"
    assert [task for task in TASKS if TASK_UNITS[task] != "eV"] == ["mu", "alpha", "r2", "Cv", "A", "B", "C"]


def test_targets_are_standardised_by_the_training_set(data_dir: Path, arrays: Arrays) -> None:
    data = module(data_dir, task="homo")
    train = arrays["targets"][split_indices(200)[0].numpy(), 2].astype(np.float64)
    assert data.targets_mean == pytest.approx(train.mean(), abs=1e-12)
    assert data.targets_std == pytest.approx(train.std(ddof=1), abs=1e-12)
    standardised = torch.cat([target for *_, target in data.train_dataloader()])
    assert standardised.dtype == torch.float32
    assert standardised.mean().abs() < 1e-6
    assert (standardised.std() - 1).abs() < 1e-6
    first_test = next(iter(data.test_dataloader()))[-1]
    expected = (arrays["targets"][split_indices(200)[2][:16].numpy(), 2] - data.targets_mean) / data.targets_std
    np.testing.assert_allclose(first_test, expected, rtol=1e-6)


def test_unknown_targets_are_left_out_of_the_same_split(data_dir: Path, arrays: Arrays, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="se3_fast"):
        data = module(data_dir, task="alpha")
    known = ~np.isnan(arrays["targets"][:, 1])
    for subset, part in zip((data.ds_train, data.ds_val, data.ds_test), split_indices(200), strict=True):
        assert subset.indices == [number for number in part.tolist() if known[number]]
    assert f"{len(data.ds_train)} of 152 training" in caplog.text
    assert all(target.isfinite().all() for *_, target in data.train_dataloader())
    caplog.clear()
    module(data_dir, task="homo")
    assert caplog.text == ""


def test_task_without_targets(data_dir: Path) -> None:
    with pytest.raises(DataError, match="task A needs training molecules with different known targets, got 0"):
        module(data_dir, task="A")


def test_batch_shapes_and_values(data_dir: Path, arrays: Arrays) -> None:
    data = module(data_dir)
    graph, node_feats, edge_feats, target = next(iter(data.val_dataloader()))
    numbers = split_indices(200)[1][:16].numpy()
    assert graph.batch_num_nodes().tolist() == arrays["n_node"][numbers].tolist()
    assert graph.batch_num_edges().tolist() == arrays["n_edge"][numbers].tolist()
    num_nodes, num_edges = graph.num_nodes(), graph.num_edges()
    assert node_feats["0"].shape == (num_nodes, QM9DataModule.NODE_FEATURE_DIM, 1)
    assert edge_feats["0"].shape == (num_edges, QM9DataModule.EDGE_FEATURE_DIM, 1)
    assert node_feats["0"].dtype == edge_feats["0"].dtype == graph.edata["rel_pos"].dtype == torch.float32
    assert target.shape == (16,)
    first_node, first_edge = np.cumsum(arrays["n_node"]), np.cumsum(arrays["n_edge"])
    node, edge = 0, 0
    for number in numbers:
        n, e = arrays["n_node"][number], arrays["n_edge"][number]
        pos = arrays["node_pos"][first_node[number] - n : first_node[number]]
        edges = slice(first_edge[number] - e, first_edge[number])
        src, dst = arrays["src"][edges], arrays["dst"][edges]
        np.testing.assert_array_equal(graph.ndata["pos"][node : node + n], pos)
        np.testing.assert_array_equal(graph.src[edge : edge + e] - node, src)
        np.testing.assert_array_equal(graph.dst[edge : edge + e] - node, dst)
        np.testing.assert_array_equal(graph.edata["rel_pos"][edge : edge + e], pos[dst] - pos[src])
        np.testing.assert_array_equal(edge_feats["0"][edge : edge + e, :, 0], arrays["edge_attr"][edges])
        node, edge = node + n, edge + e


def test_precomputed_geometry_is_that_of_the_batch(data_dir: Path) -> None:
    from se3_fast import EdgeGeometry

    data = module(data_dir, precompute_bases=True, num_degrees=3)
    for graph, _, _, geometry, target in data.train_dataloader():
        expected = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 2)
        assert geometry.max_degree == 2
        assert torch.equal(geometry.rel_pos, expected.rel_pos)
        assert torch.allclose(geometry.wigner, expected.wigner, atol=1e-6)
        assert target.ndim == 1


def test_sample_data_set_needs_no_folder() -> None:
    data = QM9DataModule("no/such/folder", dataset="sample", batch_size=64, num_workers=0)
    assert (len(data.ds_train), len(data.ds_val), len(data.ds_test)) == split_sizes(6_000)
    assert repr(data) == "Sample(homo)"
    assert data.unit == "eV"


def test_missing_file_is_downloaded(tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, path: Path, check: Any) -> None:
        write_npz(path, arrays)
        check(path)

    monkeypatch.setattr(qm9_module, "download_file", download)
    assert len(module(tmp_path).ds_train) == 152


def test_offline_tells_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qm9_module, "QM9_EDGE_URL", "http://127.0.0.1:9/qm9_edge.npz")
    monkeypatch.setattr("se3_fast.data.download.time.sleep", lambda _: None)
    with pytest.raises(DownloadError, match=r"put it at .*qm9_edge\.npz$"):
        module(tmp_path)


@pytest.mark.parametrize(("option", "value"), [("task", "Homo"), ("dataset", "QM9")])
def test_unknown_names_are_refused_before_anything_is_read(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be one of .*; got '{value}'"):
        module(tmp_path, **{option: value})


def test_options() -> None:
    parser = QM9DataModule.add_argparse_args(argparse.ArgumentParser())
    assert vars(parser.parse_args([])) == {"dataset": "qm9", "task": "homo", "precompute_bases": False}
    assert parser.parse_args(["--task"]).task == "homo"
    assert parser.parse_args(["--precompute_bases"]).precompute_bases is True
    assert parser.parse_args(["--precompute_bases", "false"]).precompute_bases is False
    for wrong in (["--task", "energy"], ["--precompute_bases", "maybe"], ["--dataset", "md17"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)


@pytest.mark.parametrize(("task", "known"), [("homo", 100_000), ("gap", 57_300)])
def test_real_qm9(real_data_dir: Path, task: str, known: int) -> None:
    data = module(real_data_dir, task=task, batch_size=240)
    assert len(data.ds_train) == known
    if task == "homo":
        assert (len(data.ds_val), len(data.ds_test)) == (12_500, 12_500)
        assert data.targets_mean == pytest.approx(-6.53, abs=0.01)
        assert data.targets_std == pytest.approx(0.59, abs=0.01)
    graph, node_feats, edge_feats, target = next(iter(data.train_dataloader()))
    assert graph.batch_size == len(target) == 240
    assert torch.equal(node_feats["0"][:, :5].sum((1, 2)), torch.ones(graph.num_nodes()))
    assert torch.equal(edge_feats["0"].sum((1, 2)), torch.ones(graph.num_edges()))
    assert graph.edata["rel_pos"].norm(dim=1).max() < 2.5
