"""Several processes on the CPU: they train as one does, agree to the last bit, and none outlives another that was lost."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import torch.distributed as dist

from se3_fast import train
from se3_fast.training import TrainingError, read_checkpoint
from se3_fast.training.distributed import TIMEOUT, open_world

from .conftest import TINY_MODEL, write_few_molecules

Run = Callable[..., CompletedProcess[str]]

RANKS = Path(__file__).with_name("ranks.py")
WHOLE_BATCH = 12
EPOCHS = 3


def options(few_molecules: Path, processes: int, **changes: object) -> list[str]:
    """Of a run whose processes have batches of 12 molecules together; 48 molecules make 4 steps an epoch."""
    given = {
        "data_dir": few_molecules,
        "batch_size": WHOLE_BATCH // processes,
        "num_workers": 0,
        "epochs": EPOCHS,
        "seed": 5,
        "eval_interval": 1,
        "ckpt_interval": 1,
        "device": "cpu",
        "silent": "true",
        **changes,
    }
    return TINY_MODEL + [word for name, value in given.items() for word in (f"--{name}", str(value))]


def of_one_process(few_molecules: Path, folder: Path, **changes: object) -> dict[str, Any]:
    path = folder / "one.pth"
    assert train.main(options(few_molecules, 1, save_ckpt_path=path, log_dir=folder / "log", **changes)) == 0
    return read_checkpoint(path)


def assert_same_curve(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("processes", "recorded", "changes"),
    [
        (2, True, {"optimizer": "sgd", "learning_rate": 0.05, "accumulate_grad_batches": 2}),
        (4, False, {"gradient_clip": 0.1}),
        (4, True, {"gradient_clip": 0.1}),
    ],
)
def test_several_processes_train_as_one(
    run_python: Run, few_molecules: Path, tmp_path: Path, processes: int, recorded: bool, changes: dict[str, Any]
) -> None:
    path = tmp_path / "model.pth"
    settings = {"processes": processes, "recorded": recorded, "weights": str(tmp_path)}
    words = options(few_molecules, processes, save_ckpt_path=path, **changes)
    finished = run_python(RANKS, json.dumps(settings), *words)
    assert finished.returncode == 0, finished.stderr
    found, expected = read_checkpoint(path), of_one_process(few_molecules, tmp_path, **changes)
    assert_same_curve(found["history"], expected["history"])
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-3, atol=1e-4)
    for rank in range(processes):
        weights = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert weights.keys() == found["state_dict"].keys()
        assert all(torch.equal(value, weights[name]) for name, value in found["state_dict"].items())


@pytest.mark.parametrize("recorded", [False, True])
def test_parameters_that_no_output_depends_on(run_python: Run, few_molecules: Path, tmp_path: Path, recorded: bool) -> None:
    """As a model has them that is asked for one of its degrees; several steps of two batches each."""
    path, changes = tmp_path / "model.pth", {"accumulate_grad_batches": 2}
    settings = {"processes": 2, "unused": True, "recorded": recorded}
    finished = run_python(RANKS, json.dumps(settings), *options(few_molecules, 2, save_ckpt_path=path, **changes))
    assert finished.returncode == 0, finished.stderr
    assert_same_curve(read_checkpoint(path)["history"], of_one_process(few_molecules, tmp_path, **changes)["history"])


def test_the_uncertainty_is_that_of_all_molecules(run_python: Run, tmp_path: Path) -> None:
    """Not of those of one process, of which there may be too few to fit it."""
    write_few_molecules(tmp_path, 240)
    path, changes = tmp_path / "model.pth", {"epochs": 1, "learning_rate": 1e-6}  # Adam steps by the signs of rounded gradients
    finished = run_python(RANKS, json.dumps({"processes": 2}), *options(tmp_path, 2, save_ckpt_path=path, batch_size=60, **changes))
    assert finished.returncode == 0, finished.stderr
    assert "no uncertainty" not in finished.stderr
    found = read_checkpoint(path)["uncertainty"]
    expected = of_one_process(tmp_path, tmp_path, batch_size=120, **changes)["uncertainty"]
    for name in ("mean", "scale", "farthest"):
        assert found[name] == pytest.approx(expected[name], rel=0.01, abs=1e-3)


@pytest.mark.parametrize(
    ("recorded", "rank", "number"),
    [(True, 0, signal.SIGKILL), (False, 1, signal.SIGSTOP)],
    ids=["killed", "stopped"],
)
def test_no_process_waits_for_ever(run_python: Run, few_molecules: Path, recorded: bool, rank: int, number: int) -> None:
    """Processes by themselves, as on several machines: nothing ends one of them but itself."""
    settings = {"processes": 2, "recorded": recorded, "stopped": [rank, number, 6], "timeout": 3}
    finished = run_python(RANKS, json.dumps(settings), *options(few_molecules, 2))
    ended = json.loads(finished.stdout.splitlines()[-1])
    assert [each["code"] for each in ended] == ([-signal.SIGKILL, 1] if rank == 0 else [1, -signal.SIGKILL])
    assert ended[1 - rank]["seconds"] < 30
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "another process of this run has ended or does not answer" in errors[0]
    assert ("Timed out" in errors[0]) == (number == signal.SIGSTOP)


def test_a_killed_process_ends_the_run_and_fewer_go_on(run_python: Run, few_molecules: Path, tmp_path: Path) -> None:
    """Four processes, of which one is killed in the second epoch; two, one killed in the third; one."""
    path = tmp_path / "model.pth"
    resume: list[object] = []
    for processes, step in ((4, 6), (2, 6)):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
        settings = json.dumps({"stopped": [processes - 1, signal.SIGKILL, step]})
        words = options(few_molecules, processes, save_ckpt_path=path)
        ended = run_python(*launcher, RANKS, settings, *words, *resume)
        assert ended.returncode != 0
        assert "SIGKILL" in ended.stderr
        resume = ["--load_ckpt_path", path]
        assert read_checkpoint(path)["epoch"] == (1 if processes == 4 else 2)
    words = options(few_molecules, 1, save_ckpt_path=path, log_dir=tmp_path / "log")
    assert train.main([*words, *map(str, resume)]) == 0
    found, expected = read_checkpoint(path), of_one_process(few_molecules, tmp_path)
    assert found["epoch"] == EPOCHS and found["step"] == expected["step"]
    assert_same_curve(found["history"], expected["history"])


@pytest.fixture
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, timedelta]]:
    """No process group is opened; returned is with which time those would have been that are, by backend."""
    opened: list[tuple[str, timedelta]] = []

    def note(backend: str, timeout: timedelta) -> None:
        opened.append((backend, timeout))

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "init_process_group", note)
    monkeypatch.setattr(dist, "new_group", note)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    return opened


@pytest.mark.parametrize(("given", "expected"), [(None, TIMEOUT), (timedelta(hours=2), timedelta(hours=2))])
def test_the_time_that_a_process_waits(
    first_of_two: list[tuple[str, timedelta]], given: timedelta | None, expected: timedelta
) -> None:
    with open_world("cpu", given) as world:
        assert (world.rank, world.size) == (0, 2)
    assert first_of_two == [("gloo", expected), ("gloo", expected)]


@pytest.mark.usefixtures("first_of_two")
def test_only_lost_processes_are_reported_as_such() -> None:
    with pytest.raises(TrainingError, match=r"has ended or does not answer \(NCCL error\); its own"), open_world("cpu"):
        raise dist.DistBackendError("NCCL error. Last error: connection closed")
    with pytest.raises(RuntimeError, match="out of memory"), open_world("cpu"):
        raise RuntimeError("out of memory")
