"""The command lines as a user runs them: killed and resumed, in two processes, with bad input; and inference."""

from __future__ import annotations

import csv
import json
import re
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch

from se3_fast import SE3TransformerPooled, inference, train
from se3_fast.training import read_checkpoint
from se3_fast.training.model_config import build_model

from .conftest import TINY_MODEL

Run = Callable[..., CompletedProcess[str]]

# Runs the training command and kills the process, as kill -9 would, when a function is called for the n-th time.
KILLED_RUN = """
import os, signal, sys
import torch
from se3_fast import train

def kill_at_call(owner, name, number):
    original, calls = getattr(owner, name), []
    def counting(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(owner, name, counting)

owners = {"step": torch.optim.AdamW, "save": torch, "fsync": os, "replace": os}
kill_at_call(owners[sys.argv[1]], sys.argv[1], int(sys.argv[2]))
sys.exit(train.main(sys.argv[3:]))
"""


def options(few_molecules: Path, **changes: object) -> list[str]:
    given = {
        "data_dir": few_molecules,
        "batch_size": 8,
        "num_workers": 0,
        "epochs": 3,
        "seed": 5,
        "ckpt_interval": 1,
        "eval_interval": 1,
        "device": "cpu",
        "silent": "true",
        **changes,
    }
    return TINY_MODEL + [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def trained(few_molecules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole run: `model.pth` and `log/`."""
    folder = tmp_path_factory.mktemp("trained")
    words = options(few_molecules, save_ckpt_path=folder / "model.pth", log_dir=folder / "log")
    assert train.main(words) == 0
    return folder


@pytest.fixture(scope="module")
def uninterrupted(run_python: Run, few_molecules: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Last checkpoint of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("uninterrupted") / "model.pth"
    finished = run_python("-m", "se3_fast.train", *options(few_molecules, save_ckpt_path=path))
    assert finished.returncode == 0, finished.stderr
    return read_checkpoint(path)


# 48 training molecules make 6 steps an epoch, so step 9 is in the middle of the second. The second checkpoint is
# written by the second save; a file is flushed, renamed, and its folder flushed, first that of the run's options, so the
# second checkpoint is flushed by the fifth fsync and renamed by the third replace.
@pytest.mark.parametrize(("call", "number"), [("step", 9), ("save", 2), ("fsync", 5), ("replace", 3)])
def test_killed_and_resumed_equals_uninterrupted(
    run_python: Run, few_molecules: Path, tmp_path: Path, uninterrupted: dict[str, Any], call: str, number: int
) -> None:
    path = tmp_path / "model.pth"
    words = options(few_molecules, save_ckpt_path=path)
    assert run_python("-c", KILLED_RUN, call, number, *words).returncode == -signal.SIGKILL
    assert read_checkpoint(path)["epoch"] == 1
    assert (call == "step") != bool(list(tmp_path.glob(".model.pth.*.tmp")))
    resumed = run_python("-m", "se3_fast.train", *words, "--load_ckpt_path", path)
    assert resumed.returncode == 0, resumed.stderr
    found = read_checkpoint(path)
    weights = uninterrupted["state_dict"]
    assert all(torch.equal(value, found["state_dict"][name]) for name, value in weights.items())
    assert found["history"] == uninterrupted["history"]
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_equal_one_with_the_doubled_batch(run_python: Run, few_molecules: Path, tmp_path: Path) -> None:
    histories = []
    for name, launcher, batch_size in (
        ("one", [], 12),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], 6),
    ):
        path = tmp_path / f"{name}.pth"
        words = options(few_molecules, save_ckpt_path=path, batch_size=batch_size, accumulate_grad_batches=2)
        finished = run_python(*launcher, "-m", "se3_fast.train", *words)
        assert finished.returncode == 0, finished.stderr
        histories.append(read_checkpoint(path)["history"])
    for one, two in zip(*histories, strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert two["validation_mae"] == pytest.approx(one["validation_mae"], rel=1e-5)


def test_a_process_that_fails_ends_the_run(run_python: Run, few_molecules: Path) -> None:
    program = "import os, sys\nfrom se3_fast import train\n"
    program += "if os.environ['RANK'] == '1':\n    import torch\n"
    program += "    def fail(*arguments, **options):\n        raise RuntimeError('this rank fails')\n"
    program += "    torch.optim.AdamW.step = fail\n"
    program += "sys.exit(train.main(sys.argv[1:]))\n"
    script = few_molecules / "failing_rank.py"
    script.write_text(program)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = run_python(*launcher, script, *options(few_molecules))
    assert finished.returncode != 0
    assert "this rank fails" in finished.stderr


def test_a_run_leaves_its_log_plots_and_checkpoint(trained: Path) -> None:
    lines = (trained / "log" / "dllogger_results.json").read_text().splitlines()
    records = [json.loads(line.removeprefix("DLLL ")) for line in lines]
    assert [record["step"] for record in records] == ["PARAMETER", [1], [2], [3], []]
    assert {"test_mae", "validation_mae", "validation_ratio"} <= set(records[-1]["data"])
    assert (trained / "log" / "learning_curve.png").exists() and (trained / "log" / "parity.png").exists()
    checkpoint = read_checkpoint(trained / "model.pth")
    assert checkpoint["data"]["task"] == "homo" and checkpoint["seed"] == 5


@pytest.mark.parametrize("amp", [["--amp", "false"], ["--amp", "--amp_dtype", "bf16"]])
@pytest.mark.parametrize("extra", [["--precompute_bases"], ["--low_memory"], ["--num_workers", "1"]])
def test_options_that_change_how_it_computes(few_molecules: Path, tmp_path: Path, amp: list[str], extra: list[str]) -> None:
    assert train.main([*options(few_molecules, epochs=1, log_dir=tmp_path / "log"), *amp, *extra]) == 0


def test_benchmark_prints_the_throughput(few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pth"
    words = options(few_molecules, log_dir=tmp_path / "log", save_ckpt_path=path)
    assert train.main([*words, "--benchmark"]) == 0
    assert "molecules/ms" in capsys.readouterr().out
    assert not path.exists()


def test_inference_repeats_the_test_error(
    trained: Path, few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table_path, log_dir = tmp_path / "new" / "table.csv", tmp_path / "log"
    words = f"--data_dir {few_molecules} --num_workers 0 --batch_size 3 --output {table_path} --log_dir {log_dir}"
    assert inference.main(["--load_ckpt_path", str(trained / "model.pth"), "--device", "cpu", *words.split()]) == 0
    out = capsys.readouterr().out
    assert "molecules/ms" in out and "99 %" in out
    last = (trained / "log" / "dllogger_results.json").read_text().splitlines()[-1]
    expected = json.loads(last.removeprefix("DLLL "))["data"]["test_mae"]
    figures = json.loads((log_dir / "dllogger_results.json").read_text().removeprefix("DLLL "))["data"]
    assert figures["test_mae"] == pytest.approx(expected, rel=1e-5)
    assert figures["latency_p50"] <= figures["latency_p99"]
    assert (log_dir / "parity_inference.png").exists()
    with open(table_path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    errors = [abs(float(row["prediction homo (eV)"]) - float(row["target homo (eV)"])) for row in rows]
    assert sum(errors) / len(errors) == pytest.approx(expected, rel=1e-4)
    with np.load(few_molecules / "qm9_edge.npz") as archive:
        homo = archive["targets"][[int(row["molecule"]) for row in rows], 2]
    assert [float(row["target homo (eV)"]) for row in rows] == pytest.approx(homo.tolist(), rel=1e-5)


@pytest.mark.parametrize("fusing", [{}, {"tensor_cores": False}, {"tensor_cores": False, "low_memory": True}])
def test_inference_with_a_published_checkpoint(few_molecules: Path, tmp_path: Path, trained: Path, fusing: dict) -> None:
    torch.manual_seed(0)
    model: SE3TransformerPooled = build_model({**read_checkpoint(trained / "model.pth")["model_config"], **fusing})
    path = tmp_path / "published.pth"
    torch.save({"state_dict": model.state_dict(), "optimizer_state_dict": {}, "epoch": 100}, path)
    words = ["--data_dir", few_molecules, "--num_workers", 0, "--output", tmp_path / "table.csv", "--log_dir", tmp_path]
    command = ["--load_ckpt_path", str(path), *map(str, words)]
    assert inference.main([*command, *TINY_MODEL]) == 0
    assert inference.main(command) == 2


def one_line_error(capsys: pytest.CaptureFixture[str], status: int) -> str:
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_layers": 2}, "num_layers is 1 in the checkpoint, 2 in this run"),
        ({"task": "mu"}, "task is 'homo' in the checkpoint, 'mu' in this run"),
        ({"optimizer": "sgd"}, "optimizer is 'adam' in the checkpoint"),
        ({"load_ckpt_path": "nowhere.pth"}, "nowhere.pth: no such checkpoint"),
        ({"data_dir": "{tmp}"}, "qm9_edge.npz"),
        ({"device": "gpu"}, "--device: expected"),
        ({"device": "cuda:99"}, "GPU 99"),
        ({"log_dir": "{tmp}/qm9_edge.npz"}, "qm9_edge.npz"),
    ],
)
def test_mistakes_get_one_line(
    trained: Path,
    few_molecules: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    named: str,
) -> None:
    (tmp_path / "qm9_edge.npz").write_bytes(b"not an archive")
    changes = {name: str(value).replace("{tmp}", str(tmp_path)) for name, value in changes.items()}
    given = {"load_ckpt_path": trained / "model.pth", "log_dir": tmp_path / "log", **changes}
    assert named in one_line_error(capsys, train.main(options(few_molecules, **given)))


def test_heads_that_do_not_divide_the_channels(few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = options(few_molecules, log_dir=tmp_path, num_heads=3)
    error = one_line_error(capsys, train.main(words))
    assert re.search(r"--num_heads 3: expected a divisor of \d+, which is --num_channels \d+ by --channels_div 2", error)


def test_inference_refuses_another_task(trained: Path, few_molecules: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--load_ckpt_path", str(trained / "model.pth"), "--data_dir", str(few_molecules), "--task", "mu"]
    assert "task is 'homo' in the checkpoint" in one_line_error(capsys, inference.main(words))


def test_a_run_that_fails_midway_gets_one_line_and_status_1(
    few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = options(few_molecules, log_dir=tmp_path, learning_rate=1e30, weight_decay=0)
    assert train.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: the loss became") and "at optimizer step" in error and error.count("\n") == 1
