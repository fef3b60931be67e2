"""The training command under signals, with closed and full outputs, and where it must say which command is meant."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from se3_fast import checkpoints, inference, train, train_forces
from se3_fast.data import build_qm9, make_force_sample, make_sample
from se3_fast.training import read_checkpoint, write_checkpoint
from se3_fast.training.errors import CommandError, run_command
from se3_fast.training.streams import LastingStream

from .conftest import REPOSITORY
from .forked import Commands
from .test_distributed import RANKS
from .test_train_command import one_line_error, options

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def uninterrupted(few_molecules: Path, commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = commands.run(options(few_molecules, save_ckpt_path=folder / "model.pth", log_dir=folder))
    assert ended.returncode == 0
    assert [line for line in ended.stderr.splitlines() if "have no uncertainty" not in line] == []  # of so few molecules
    return read_checkpoint(folder / "model.pth")


def assert_same_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert all(torch.equal(value, found["state_dict"][name]) for name, value in expected["state_dict"].items())
    assert found["history"] == expected["history"]


@pytest.mark.parametrize(("number", "name", "status"), [(signal.SIGINT, "SIGINT", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_ends_the_run_in_order(
    commands: Commands, few_molecules: Path, tmp_path: Path, uninterrupted: dict[str, Any], number: int, name: str, status: int
) -> None:
    path = tmp_path / "model.pth"
    words = options(few_molecules, save_ckpt_path=path, log_dir=tmp_path / "log")
    ended = commands.run(words, call=("step", 9), signals=[number])
    assert ended.returncode == status
    assert ended.stderr == f"stopped by {name}; 9 optimizer steps are done; --load_ckpt_path {path} goes on from there\n"
    assert (read_checkpoint(path)["epoch"], read_checkpoint(path)["step"]) == (1, 9)
    assert commands.run([*words, "--load_ckpt_path", path]).returncode == 0
    assert_same_weights(read_checkpoint(path), uninterrupted)


def test_a_second_signal_ends_it_at_once(commands: Commands, few_molecules: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    words = options(few_molecules, save_ckpt_path=path, log_dir=tmp_path / "log")
    ended = commands.run(words, call=("step", 9), signals=[signal.SIGINT, signal.SIGTERM])
    assert ended.returncode in (-signal.SIGTERM, 143)  # the second may come when the first has ended the run
    assert read_checkpoint(path)["step"] == 6


def test_all_processes_stop_after_the_same_step(
    run_python: Run, few_molecules: Path, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    """Only the second one gets the signal."""
    path = tmp_path / "model.pth"
    settings = json.dumps({"processes": 2, "stopped": [1, signal.SIGTERM, 8]})
    words = options(few_molecules, save_ckpt_path=path, batch_size=4)
    ended = run_python(RANKS, settings, *words)
    assert [each["code"] for each in json.loads(ended.stdout.splitlines()[-1])] == [143, 143], ended.stderr
    assert [line for line in ended.stderr.splitlines() if "stopped by" in line] == [
        f"stopped by SIGTERM; {read_checkpoint(path)['step']} optimizer steps are done; --load_ckpt_path {path} goes on from there"
    ]
    assert read_checkpoint(path)["epoch"] == 1 and read_checkpoint(path)["step"] in (8, 9)
    resumed = run_python(RANKS, json.dumps({"processes": 2}), *words, "--load_ckpt_path", path)
    assert [each["code"] for each in json.loads(resumed.stdout.splitlines()[-1])] == [0, 0], resumed.stderr
    for one, other in zip(uninterrupted["history"], read_checkpoint(path)["history"], strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_reader_that_goes_away(few_molecules: Path, tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """As with `| head -1`: training goes on to its end, without a word but one on the other stream."""
    path = tmp_path / "model.pth"
    words = options(few_molecules, save_ckpt_path=path, log_dir=tmp_path / "log", silent="false")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "se3_fast.train", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    assert any(line.startswith("epoch 1/3") for line in iter(process.stdout.readline, ""))
    process.stdout.close()
    lines = [line for line in process.stderr.read().splitlines() if "epoch" not in line.split("\r")[-1]]
    assert process.wait() == 0
    assert any(line.endswith("standard output cannot be written (Broken pipe); the run goes on without it") for line in lines)
    assert "Traceback" not in "".join(lines) and "Exception" not in "".join(lines)
    assert_same_weights(read_checkpoint(path), uninterrupted)


@pytest.mark.parametrize("limit", [20_000, 100])
def test_a_full_disk(commands: Commands, few_molecules: Path, tmp_path: Path, limit: int) -> None:
    """Under the checkpoint, and under the logs too. Trained to the end, it is said to be lost."""
    path = tmp_path / "model.pth"
    words = options(few_molecules, save_ckpt_path=path, log_dir=tmp_path / "log", epochs=2)
    ended = commands.run(words, limit=limit)
    assert ended.returncode == 1
    lines = [
        line for line in ended.stderr.splitlines() if not line.startswith(("Traceback", " ", "Exception in thread", "OSError"))
    ]
    assert lines[-1] == f"error: the last checkpoint could not be written ({path}: File too large)"
    assert [line.split(" (")[0] for line in lines[:-1] if "checkpoint" in line] == [
        f"warning: the checkpoint after optimizer step {step} could not be written"
        for step in (6, 12, 12, 12)  # the last time with the uncertainty
    ]
    assert ("JsonLinesLogger cannot record" in ended.stderr) == (limit == 100)
    assert "validation MAE of homo" in ended.stdout
    assert not list(tmp_path.glob("*model.pth*"))
    log = (tmp_path / "log" / "dllogger_results.json").read_text()
    assert all(json.loads(line.removeprefix("DLLL ")) for line in log.splitlines())


def test_terminals_without_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONIOENCODING=ascii, LC_ALL=C: letters lose their accents."""
    out, error = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)

    def action() -> None:
        print("0.1 eV/\u00c5 of \u6f22")
        raise CommandError("\u00e9t\u00e9.npz\udcff: no such file")

    assert run_command(action) == 2
    written = [stream.buffer.getvalue() for stream in (out, error)]
    assert written == [b"0.1 eV/A of ?\n", b"error: ete.npz?: no such file\n"]


def test_a_closed_stream_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as file:
        stream = LastingStream(file, "the stream")
        assert stream.write("kept\n") == 5 and stream.name == str(tmp_path / "out")
    for _ in range(2):
        assert stream.write("dropped") == 7
        stream.flush()
    assert (tmp_path / "out").read_text() == "kept\n"
    assert capsys.readouterr().err.count("warning: the stream cannot be written (I/O operation on closed file.)") == 1


@pytest.mark.parametrize("name", ["../log.json", "a/b", "/log.json", "..", "", "a\\b"])
def test_the_log_stays_in_its_folder(few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    words = options(few_molecules, log_dir=tmp_path / "log", dllogger_name=name)
    assert "--dllogger_name: expected the name of a file in the log folder, got" in one_line_error(capsys, train.main(words))
    assert not list(tmp_path.rglob("*"))


@pytest.fixture
def model_path(few_molecules: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    assert train.main(options(few_molecules, save_ckpt_path=path, log_dir=tmp_path / "log", epochs=1)) == 0
    return path


def test_checkpoints_of_another_command(
    model_path: Path, few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_checkpoint(model_path)
    forces, own = tmp_path / "forces.pth", tmp_path / "own.pth"
    write_checkpoint(forces, {**checkpoint, "model_config": {"elements": [1, 6], "num_layers": 2}})
    write_checkpoint(own, {**checkpoint, "model_config": {"width": 3}})
    capsys.readouterr()
    data = ["--data_dir", str(few_molecules)]
    for path, said in (
        (forces, f"a force field; python -m se3_fast.train_forces --load_ckpt_path {forces}"),
        (own, "one of another program"),
    ):
        for main in (inference.main, train.main):
            error = one_line_error(capsys, main(["--load_ckpt_path", str(path), *data]))
            assert f"{path}: expected a checkpoint of se3_fast.train, got {said}" in error
    error = one_line_error(capsys, train_forces.main(["--load_ckpt_path", str(model_path)]))
    assert "expected a checkpoint of se3_fast.train_forces, got one of se3_fast.train; python -m se3_fast.inference" in error


@pytest.mark.parametrize("content", [b"", b"molecule,energy\n1,2\n", b"PK\x05\x06" + bytes(18), bytes(range(256)), None])
def test_inference_with_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None) -> None:
    path = tmp_path / "model.pth"
    path.mkdir() if content is None else path.write_bytes(content)
    assert f"{path}: " in one_line_error(capsys, inference.main(["--load_ckpt_path", str(path)]))


def test_inference_where_there_is_nothing_to_test_or_to_write(
    model_path: Path, few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    words = ["--load_ckpt_path", str(model_path), "--data_dir", str(few_molecules), "--log_dir", str(tmp_path)]
    assert one_line_error(capsys, inference.main([*words, "--output", str(tmp_path)])) == f"error: {tmp_path}: Is a directory\n"
    output = ["--output", str(tmp_path / "table.csv")]
    assert "--dllogger_name" in one_line_error(capsys, inference.main([*words, *output, "--dllogger_name", "../log"]))
    monkeypatch.setattr("se3_fast.data.qm9.split_sizes", lambda count: (count - 5, 5, 0))
    error = one_line_error(capsys, inference.main([*words, *output]))
    assert "qm9_edge.npz: expected molecules to test on with a known target for homo, got none" in error


@pytest.mark.parametrize("attacked", ["mkdir", "open"])
def test_permission_errors_are_one_line(
    few_molecules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, attacked: str
) -> None:
    original = getattr(os, attacked)

    def refuse(path: Any, *arguments: Any, **given: Any) -> Any:
        if "refused" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return original(path, *arguments, **given)

    monkeypatch.setattr(os, attacked, refuse)
    words = options(few_molecules, log_dir=tmp_path / "log", save_ckpt_path=tmp_path / "refused" / "model.pth")
    assert f"{tmp_path / 'refused'}" in one_line_error(capsys, train.main(words))


@pytest.mark.parametrize("command", [make_sample.main, make_force_sample.main], ids=["sample", "force sample"])
def test_a_sample_that_cannot_be_written_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: Callable[[list[str]], int]
) -> None:
    monkeypatch.setattr(make_sample, "make_sample", lambda *_: pytest.fail("made"))
    monkeypatch.setattr(make_force_sample, "make_force_sample", lambda *_: pytest.fail("made"))
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    assert str(folder) in one_line_error(capsys, command(["--output", str(folder)]))


PARSERS = {
    "train": train.main,
    "train_forces": train_forces.main,
    "inference": inference.main,
    "checkpoints": checkpoints.main,
    "data.build_qm9": build_qm9.main,
    "data.make_sample": make_sample.main,
    "data.make_force_sample": make_force_sample.main,
}


@pytest.mark.parametrize("command", PARSERS)
def test_help_shows_no_paths_of_this_machine_and_no_none(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        PARSERS[command](["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "--help" in text
    assert "None" not in text
    assert str(REPOSITORY) not in text and sys.prefix not in text and " /" not in text
    assert text.isascii()
