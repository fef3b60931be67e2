"""Training commands that are killed, stopped by signals, and that write the same checkpoint at the same time."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from se3_fast.training import CheckpointError, read_checkpoint
from tests.fuzz.budget import begin, deadline, is_long, seed
from tests.training.conftest import TINY_MODEL, write_few_molecules
from tests.training.forked import Commands

CALLS = {"step": 18, "save": 3, "fsync": 6, "replace": 3}
"""What a run calls and how often; a checkpoint is written after each of its three epochs."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("molecules")
    write_few_molecules(folder)
    return folder


def words(molecules: Path, path: Path, number: int = 5) -> list[object]:
    given = {"data_dir": molecules, "batch_size": 8, "num_workers": 0, "epochs": 3, "seed": number, "ckpt_interval": 1}
    given |= {"eval_interval": 1, "device": "cpu", "silent": "true", "save_ckpt_path": path, "log_dir": path.parent / "log"}
    return TINY_MODEL + [word for name, value in given.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, molecules: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """Its last checkpoint, and the seconds that it took when everything was imported."""
    found = []
    for name in ("first", "second"):
        path = tmp_path_factory.mktemp(name) / "model.pth"
        start = time.monotonic()
        ended = commands.run(words(molecules, path))
        assert ended.returncode == 0, ended.stderr
        found.append(read_checkpoint(path))
    assert is_same_run(*found)
    return found[0], time.monotonic() - start


def cases(part: float, in_short_run: int) -> Iterator[random.Random]:
    """The random numbers of each case."""
    end = deadline("runs", part)
    number = 0
    while time.monotonic() < end if is_long() else number < in_short_run:
        begin("runs", f"{seed()}-{number}")
        yield random.Random(f"{seed()}-{number}")
        number += 1


def is_same_run(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    weights, others = expected["state_dict"], found["state_dict"]
    return all(torch.equal(value, others[name]) for name, value in weights.items()) and found["history"] == expected["history"]


def interrupt(
    commands: Commands, choice: random.Random, given: list[object], numbers: list[int], seconds: float
) -> tuple[int, str]:
    """Run a command that a signal of ``numbers`` reaches at a chosen call or moment; its status, and what was chosen."""
    number = choice.choice(numbers)
    if choice.random() < 0.5:
        name = choice.choice(list(CALLS))
        call = (name, choice.randint(1, CALLS[name]))
        return commands.run(given, call=call, signals=[number]).returncode, f"{number} at {call}"
    moment = choice.uniform(0.0, 1.2 * seconds)
    process = commands.start(given)
    time.sleep(moment)
    os.kill(process, number)  # a process that has ended is there until it is waited for
    return commands.wait(process).returncode, f"{number} after {moment:.3f} s"


def resumed_until_done(
    commands: Commands, choice: random.Random, given: list[object], path: Path, numbers: list[int], seconds: float
) -> tuple[list[str], list[int]]:
    """Interrupt a run up to three times, going on from its checkpoint, then let it end; what was done, and each exit status."""
    done, statuses = [], []
    for _ in range(choice.randint(1, 3) if is_long() else 1):
        resume = ["--load_ckpt_path", path] if path.exists() else []
        status, chosen = interrupt(commands, choice, [*given, *resume], numbers, seconds)
        done.append(chosen)
        statuses.append(status)
    resume = ["--load_ckpt_path", path] if path.exists() else []
    ended = commands.run([*given, *resume])
    assert ended.returncode == 0, (done, ended.stderr)
    return done, statuses


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([signal.SIGKILL], {-signal.SIGKILL, 0}), ([signal.SIGINT, signal.SIGTERM], {130, 143, 0})],
    ids=["killed", "stopped"],
)
def test_interrupted_runs_end_as_if_nothing_had_been(
    commands: Commands,
    molecules: Path,
    undisturbed: tuple[dict[str, Any], float],
    tmp_path: Path,
    numbers: list[int],
    expected: set[int],
) -> None:
    """To the last bit, up to three times in one run, and no file is left behind."""
    checkpoint, seconds = undisturbed
    for case, choice in enumerate(cases(0.35, 3)):
        path = tmp_path / str(case) / "model.pth"
        path.parent.mkdir()
        done, statuses = resumed_until_done(commands, choice, words(molecules, path), path, numbers, seconds)
        # At a moment before the command has begun, or after it has ended, a signal is not the command's.
        outside = {-number for number in numbers} if any("after" in each for each in done) else set()
        assert set(statuses) <= expected | outside, (done, statuses)
        assert is_same_run(read_checkpoint(path), checkpoint), done
        assert {entry.name for entry in path.parent.iterdir()} == {"model.pth", "log"}, done


class Looking(threading.Thread):
    """Reads a checkpoint again and again."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self.looks = 0
        self.faults: list[str] = []
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.is_set():
            try:
                if self._path.exists():
                    read_checkpoint(self._path)
                    self.looks += 1
            except CheckpointError as error:
                self.faults.append(str(error))
            time.sleep(0.005)


def test_runs_that_write_the_same_checkpoint(commands: Commands, molecules: Path, tmp_path: Path) -> None:
    """Three at a time, of which one may be killed: none is disturbed, and what lies there is whole at every look."""
    for case, choice in enumerate(cases(0.15, 1)):
        path = tmp_path / str(case) / "model.pth"
        path.parent.mkdir()
        looking = Looking(path)
        looking.start()
        processes = [commands.start(words(molecules, path, number)) for number in range(3)]
        is_killed = choice.random() < 0.5
        if is_killed:
            time.sleep(choice.uniform(0.1, 1.5))
            os.kill(processes[0], signal.SIGKILL)
        ended = [commands.wait(process) for process in processes]
        looking.is_over.set()
        looking.join()
        assert all(each.returncode == 0 for each in ended[1 if is_killed else 0 :]), [each.stderr for each in ended]
        assert looking.looks > 0 and not looking.faults
        found = read_checkpoint(path)
        assert (found["epoch"], found["seed"] in range(3)) == (3, True)
        if not is_killed:
            assert {entry.name for entry in path.parent.iterdir()} == {"model.pth", "log"}


def test_threads_of_one_process(tmp_path: Path) -> None:
    """Eight at once compute what one does; numbers of threads that change between forward and backward; memory that stays."""
    for choice in cases(0.15, 1):
        for attack in ATTACKS:
            attack(choice)


def _model_and_inputs(choice: random.Random) -> tuple[Any, tuple[Any, ...]]:
    from se3_fast import Fiber, SE3Transformer, radius_graph

    torch.manual_seed(choice.randrange(2**31))
    nodes = choice.randint(2, 12)
    graph = radius_graph(torch.randn(nodes, 3), 2.0)
    hidden = Fiber.create(choice.randint(1, 3), 4)
    model = SE3Transformer(1, Fiber({0: 3}), hidden, Fiber({0: 2, 1: 1}), 2, 2, Fiber({0: 1}))
    return model, (graph, {"0": torch.randn(nodes, 3, 1)}, {"0": torch.randn(graph.num_edges(), 1, 1)})


def _gradients(model: Any, inputs: tuple[Any, ...], threads_of_backward: int | None = None) -> list[torch.Tensor]:
    output = model(*inputs)
    if threads_of_backward is not None:
        torch.set_num_threads(threads_of_backward)
    loss = output["0"].square().sum() + output["1"].square().sum()
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True))


def eight_threads(choice: random.Random) -> None:
    model, inputs = _model_and_inputs(choice)
    expected = _gradients(model, inputs)
    found: list[list[torch.Tensor]] = []
    threads = [threading.Thread(target=lambda: found.append(_gradients(model, inputs))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for each in found:
        assert all(torch.equal(*pair) for pair in zip(each, expected, strict=True))


def changed_thread_counts(choice: random.Random) -> None:
    model, inputs = _model_and_inputs(choice)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = _gradients(model, inputs)
        torch.set_num_threads(choice.randint(1, 4))
        for each, one in zip(_gradients(model, inputs, choice.randint(1, 4)), expected, strict=True):
            torch.testing.assert_close(each, one, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def memory_stays(choice: random.Random) -> None:
    model, inputs = _model_and_inputs(choice)
    sizes = []
    for _ in range(4):
        for _ in range(40 if is_long() else 10):
            _gradients(model, inputs)
        sizes.append(_resident_megabytes())
    assert sizes[-1] - sizes[0] < 8.0, sizes


def _resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


ATTACKS: list[Callable[[random.Random], None]] = [eight_threads, changed_thread_counts, memory_stays]
