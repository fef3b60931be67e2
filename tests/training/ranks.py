"""The training command in several processes of one machine, with what a test wants to happen to them.

``python ranks.py SETTINGS OPTIONS...``; the settings are a JSON object:

    processes   how many; they are forked, and what became of them is printed as JSON: exit code and seconds of each. Without it
                this process is one that torchrun started
    recorded    steps are recorded, by a recorder that runs them again
    unused      the model has a parameter that no output depends on
    weights     folder for the final weights of every process, ``<rank>.pth``
    timeout     seconds that a process waits for another
    stopped     [rank, signal, step]: the signal that a process sends to itself when it begins this optimizer step of its run
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from se3_fast import train
from se3_fast.training import distributed, property_command, trainer
from tests.training.run_again import RunAgain

PATIENCE = 40.0
"""Seconds after which a process that has not ended is killed."""


def run_rank(settings: dict[str, Any], options: list[str]) -> int:
    """Run the command in this process."""
    rank = os.environ["RANK"]
    if settings.get("recorded"):
        trainer.choose_recorder = lambda *_: RunAgain()
    if settings.get("unused"):
        property_command.build_model = with_unused_parameter(property_command.build_model)
    if "timeout" in settings:
        distributed.TIMEOUT = timedelta(seconds=settings["timeout"])
    if "weights" in settings:
        path = Path(settings["weights"]) / f"{rank}.pth"
        property_command.report_training = lambda trained, *_: torch.save(trained.model.state_dict(), path)
    if "stopped" in settings:
        stopped_rank, number, step = settings["stopped"]
        if int(rank) == stopped_rank:
            stop_at_step(number, step)
    return train.main(options)


def with_unused_parameter(build: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    """The model that is built, with one parameter more."""

    def built(config: Any) -> nn.Module:
        model = build(config)
        model.register_parameter("unused", nn.Parameter(torch.ones(3)))
        return model

    return built


def stop_at_step(number: int, step: int) -> None:
    """Send this process a signal when it begins an optimizer step."""
    original, calls = torch.optim.AdamW.step, []

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return original(*arguments, **options)

    torch.optim.AdamW.step = counting


def fork_ranks(settings: dict[str, Any], options: list[str]) -> list[dict[str, float]]:
    """Run the command in forked processes; what became of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = settings["processes"]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    children = []
    gc.freeze()  # what is imported is no garbage: looking for it would copy its memory in every process
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            sys.exit(run_rank(settings, options))
        children.append(child)
    return await_children(children)


def await_children(children: list[int]) -> list[dict[str, float]]:
    """Exit code (negative: the signal) and seconds of each; who is stopped when the others have ended, or too late, is killed."""
    start, stopped, ended = time.monotonic(), set(), {}
    while len(ended) < len(children):
        for child in children:
            number, status = (0, 0) if child in ended else os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if number and os.WIFSTOPPED(status):
                stopped.add(child)
            elif number:
                ended[child] = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start}
        only_stopped = stopped and len(stopped) + len(ended) == len(children)
        if only_stopped or time.monotonic() - start > PATIENCE:
            for child in set(children) - set(ended):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [ended[child] for child in children]


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    if "processes" in chosen:
        print(json.dumps(fork_ranks(chosen, sys.argv[2:])))
    else:
        sys.exit(run_rank(chosen, sys.argv[2:]))
