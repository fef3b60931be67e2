"""``python -m bench.reproduce``: what is planned, what is trained, what the file says."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import reproduce
from bench.reproduce import Cost, compare, parse, plan_epochs, replaced_options
from bench.run_log import read_log
from se3_fast import train
from se3_fast.training import Trainer

TINY = ["--num_layers", "1", "--num_degrees", "2", "--num_channels", "4", "--num_heads", "2"]
TINY += ["--batch_size", "8", "--silent", "--num_workers", "0"]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a `qm9_edge.npz` of the first 64 molecules of the sample."""
    folder = tmp_path_factory.mktemp("molecules")
    with resources.as_file(resources.files("se3_fast.data") / "sample.npz") as path, np.load(path) as archive:
        arrays = dict(archive)
    counts = {name: int(arrays[name][:64].sum()) for name in ("n_node", "n_edge")}
    of_rows = {"node_attr": "n_node", "node_pos": "n_node", "edge_attr": "n_edge", "src": "n_edge", "dst": "n_edge"}
    cut = {name: values[: counts[of_rows[name]] if name in of_rows else 64] for name, values in arrays.items()}
    np.savez(folder / "qm9_edge.npz", **cut)
    return folder


def run(molecules: Path, folder: Path, *words: str) -> dict[str, Any]:
    options = [*TINY, "--data_dir", str(molecules), "--log_dir", str(folder / "log"), *words]
    assert reproduce.main(options) == 0
    return json.loads((reproduce.RESULTS / "reproduce_cpu.json").read_text())


def test_as_many_epochs_as_end_in_time() -> None:
    cost = Cost(start=10.0, epoch=2.0, evaluation=1.0)
    # 21 epochs: 10 + 42 + 5 evaluations on the validation set, one on the test set.
    assert cost.of_run(21, eval_interval=5) == 58.0
    assert plan_epochs([cost], 58.0, 5, 100) == 21
    assert plan_epochs([cost], 57.9, 5, 100) == 20
    assert plan_epochs([cost], 1e6, 5, 100) == 100
    assert plan_epochs([cost], 3.0, 5, 100) == 1
    assert plan_epochs([cost, Cost(10.0, 4.0, 1.0)], 58.0 + 100.0, 5, 100) == 21


def test_the_configuration_is_the_published_one() -> None:
    _, arguments = parse([])
    assert replaced_options(arguments) == {}
    assert arguments.amp and arguments.norm and arguments.use_layer_norm and arguments.precompute_bases
    sizes = (arguments.num_layers, arguments.num_degrees, arguments.num_channels, arguments.num_heads, arguments.channels_div)
    assert sizes == (7, 4, 32, 8, 2)
    assert (arguments.batch_size, arguments.epochs, arguments.learning_rate, arguments.weight_decay) == (240, 100, 0.002, 0.1)
    assert (arguments.dataset, arguments.task, arguments.pooling, arguments.seed) == ("qm9", "homo", "max", 42)


def test_options_of_both_commands() -> None:
    own, arguments = parse(["--minutes", "9", "--lr", "0.1", "--seeds", "3", "4", "--amp", "false", "--data_dir", "there"])
    assert (own.minutes, own.seeds, own.compare_precision) == (9.0, [3, 4], False)
    assert replaced_options(arguments) == {"learning_rate": {"published": 0.002, "here": 0.1}}
    assert not arguments.amp and arguments.data_dir == Path("there")
    assert parse(["--seed", "8"])[0].seeds == [8]


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--seeds"], ["--no_such"], ["--device", "cuda:1"]])
def test_options_that_do_not_exist(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(words)


def test_a_run_and_its_file(results: Path, molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # the second appends to the log of the first
        written = run(molecules, tmp_path, "--epochs", "3", "--eval_interval", "2", "--seed", "5", "--amp", "false")
    only = written["runs"][0]
    assert len(written["runs"]) == 1 and written["comparison"] is None and written["plan"] is None
    assert (only["precision"], only["seed"], only["epochs"]) == ("float32", 5, 3)
    assert [entry["epoch"] for entry in only["curve"]] == [1, 2, 3]
    assert ["validation_mae" in entry for entry in only["curve"]] == [False, True, True]
    assert only["validation_mae"] == only["curve"][-1]["validation_mae"]
    assert 0 < only["seconds_to_train"] < only["seconds_in_all"] < 60 * written["minutes_in_all"]
    assert written["published"]["test_mae"] == {"amp": 0.0346, "TF32": 0.03456, "later revision": 0.0299}
    assert written["replaced"]["epochs"] == {"published": 100, "here": 3} and "seed" not in written["replaced"]
    assert {"date", "commit", "device", "torch"} <= written["environment"].keys()
    assert str(molecules) not in json.dumps(written) and str(tmp_path) not in json.dumps(written)
    assert (results / "reproduce_cpu.png").exists()
    assert (tmp_path / "log" / "float32_seed_5" / "model.pth").exists()
    assert f"test MAE {only['test_mae']:.4g} eV after 3 epochs" in capsys.readouterr().out
    words = [*TINY, "--data_dir", str(molecules), "--log_dir", str(tmp_path / "by_hand"), "--norm", "--use_layer_norm"]
    words += ["--weight_decay", "0.1", "--epochs", "3", "--eval_interval", "2", "--seed", "5"]
    assert train.main(words) == 0
    by_hand = read_log(tmp_path / "by_hand" / "dllogger_results.json")
    assert only["test_mae"] == pytest.approx(by_hand.figures["test_mae"], rel=1e-6)


@pytest.mark.usefixtures("results")
def test_both_precisions_in_a_given_time(molecules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[bool] = []

    def measure(arguments: Any, seconds: float) -> Cost:
        trials.append(arguments.amp)
        assert seconds == pytest.approx(3.0)
        return Cost(start=2.0, epoch=3.0, evaluation=0.5)

    monkeypatch.setattr(reproduce, "measure_cost", measure)
    # Four runs in 57 s: with 3 epochs they take 12 s each, with 4 and one evaluation more they would take 15.5 s.
    written = run(molecules, tmp_path, "--minutes", "1", "--compare_precision", "--seeds", "1", "2", "--eval_interval", "3")
    assert trials == [True, False]
    assert written["plan"]["epochs"] == 3 and written["plan"]["minutes"] == 1.0
    assert written["plan"]["measured_seconds"]["amp"] == {"start": 2.0, "epoch": 3.0, "evaluation": 0.5}
    assert written["replaced"]["epochs"] == {"published": 100, "here": 3}
    found = [(each["seed"], each["precision"], each["epochs"]) for each in written["runs"]]
    assert found == [(1, "amp", 3), (1, "float32", 3), (2, "amp", 3), (2, "float32", 3)]
    assert written["comparison"] == compare(written["runs"])
    last = written["runs"][0]["curve"][-1]["learning_rate"]
    assert last == pytest.approx(0.0002 + 0.0009 * (1 + np.cos(np.pi * 2 / 3)))  # of a cosine over 3 epochs


def test_difference_of_the_precisions() -> None:
    runs = [
        {"precision": precision, "test_mae": test, "validation_mae": 1.0}
        for precision, test in (("amp", 1.0), ("float32", 2.0), ("amp", 3.0), ("float32", 3.0))
    ]
    assert compare(runs[:2])["test_mae"] == {"amp": 1.0, "float32": 2.0, "relative_difference": -0.5}
    both = compare(runs)["test_mae"]
    assert both == pytest.approx({"amp": 2.0, "float32": 2.5, "relative_difference": -0.2, "standard_error": 1.25**0.5 / 2.5})


def test_a_trial_is_as_long_as_it_may_be(molecules: Path, tmp_path: Path) -> None:
    _, arguments = parse([*TINY, "--data_dir", str(molecules), "--log_dir", str(tmp_path / "log"), "--save_ckpt_path", "no.pth"])
    lengths: list[int] = []
    for seconds in (0.0, 60.0):
        cost = reproduce.measure_cost(arguments, seconds)
        assert min(cost.start, cost.epoch, cost.evaluation) > 0
        lengths.append(_epochs_of_trial(arguments, seconds))
    assert lengths == [1, reproduce.TRIAL_EPOCHS]
    assert not (tmp_path / "log").exists()


def _epochs_of_trial(arguments: Any, seconds: float) -> int:
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        original = Trainer.train_epoch
        patch.setattr(Trainer, "train_epoch", lambda *given: counted.append(1) or original(*given))
        reproduce.measure_cost(arguments, seconds)
    return len(counted)


def test_mistakes_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "qm9_edge.npz").write_bytes(b"not an archive")
    assert reproduce.main([*TINY, "--data_dir", str(tmp_path), "--log_dir", str(tmp_path / "log")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
