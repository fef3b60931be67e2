"""Throughput through the commands' code, and the tables in the published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import throughput
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.data.tasks import TASKS

SMALL_MODEL = ["--norm", "--use_layer_norm", "--num_layers", "1", "--num_degrees", "2", "--num_channels", "8", "--num_heads", "2"]


@pytest.mark.parametrize(("backend", "precision"), [(throughput.COMPARED[0], "float32"), (throughput.COMPARED[1], "amp")])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_measured_through_the_commands(mode: str, backend: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "MODEL", SMALL_MODEL)
    monkeypatch.setattr(throughput, "STEPS", dict.fromkeys(throughput.COMPARED, 2))
    with throughput.data_set(None) as data:
        row = throughput.measure(data, mode, 200, precision, backend)
    assert row["molecules_per_ms"] > 0 and row["published"] is None
    if mode == "inference":
        assert row["latency_mean"] <= row["latency_p99"] and row["latency_p90"] <= row["latency_p95"] <= row["latency_p99"]


def test_file_of_the_user_is_taken(tmp_path: Path) -> None:
    (tmp_path / "qm9_edge.npz").touch()
    with throughput.data_set(tmp_path) as data:
        assert data == throughput.Data("QM9", ["--dataset", "qm9", "--data_dir", str(tmp_path)])
    with throughput.data_set(tmp_path / "nothing") as data:
        assert data.name.startswith("sample")


def test_repeated_sample_is_read_as_qm9(tmp_path: Path) -> None:
    from se3_fast.data import QM9DataModule

    assert throughput.write_repeated_sample(tmp_path / "qm9_edge.npz", 6001) == 12000
    with np.load(SAMPLE_PATH, allow_pickle=False) as sample:
        num_edges = len(sample["src"])
    with np.load(tmp_path / "qm9_edge.npz", allow_pickle=False) as repeated:
        assert len(repeated["src"]) == 2 * num_edges
        assert np.array_equal(repeated["n_node"][:6000], repeated["n_node"][6000:])
    data = QM9DataModule(tmp_path, num_workers=0, dataset="qm9")
    assert data.task in TASKS and len(data.ds_test) == 1200


def test_cases_have_ours_first_and_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = {"training": (240, 120), "inference": (1600, 800, 400)}
    monkeypatch.setattr(throughput, "BATCHES", batches)
    monkeypatch.setattr(throughput, "PRECISIONS", ("amp", "float32"))
    cases = list(throughput.cases())
    assert len(cases) == 2 * 2 * 5
    assert {case["backend"] for case in cases[:10]} == {throughput.COMPARED[1]}
    assert {(case["mode"], case["batch"], case["precision"]) for case in cases} == set(throughput.PUBLISHED)


def test_tables_in_the_published_layout() -> None:
    ours = throughput.COMPARED[1]
    row = {"mode": "training", "backend": ours, "batch": 240}
    rows = [row | {"precision": "float32", "molecules_per_ms": 10.0}, row | {"precision": "amp", "molecules_per_ms": 20.0}]
    rows += [row | {"batch": 120, "precision": "amp", "molecules_per_ms": 15.0}]
    latencies = {"latency_mean": 1.0, "latency_p90": 2.0, "latency_p95": 3.0, "latency_p99": 4.0}
    rows += [{"mode": "inference", "backend": ours, "batch": 1600, "precision": "amp", "molecules_per_ms": 200.0, **latencies}]
    text = throughput.tables(rows)
    assert f"| {ours} | 240 | 10 | 20 | 2.00x | 2.21 | 2.92 |" in text
    assert f"| {ours} | 120 | not measured | 15 |  | 1.81 | 2.04 |" in text
    assert f"| {ours} | 1600 | 200 | 1 | 2 | 3 | 4 | 11.6 | 140.94 | 138.29 | 140.12 | 386.4 |" in text
    assert text.index("| 240 |") < text.index("| 120 |")
