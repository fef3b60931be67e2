"""The processes of a run: one, or those that torchrun started."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import TrainingError, user_errors

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for another that does not answer: longer than one compiles kernels, or reads data, alone."""


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    Attributes:
        device: Device that this process computes on.
        rank: Number of this process.
        size: Number of processes.
        hosts: The group of all processes in which tensors of the host are exchanged, apart from gradients; None: one process.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    hosts: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """Mean of a number over all processes."""
        return sum(self.gather(value)) / self.size

    def average(self, tensor: Tensor) -> None:
        """Replace a tensor by its mean over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor.div_(self.size)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have in the main process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in the order of their ranks, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def begin_maximum(self, value: int) -> Callable[[], int]:
        """Begin to find the largest of the numbers of all processes; what is returned waits for it. No device takes part."""
        if self.size == 1:
            return lambda: value
        largest = torch.tensor(value)
        work = dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.hosts, async_op=True)

        def wait() -> int:
            work.wait()
            return int(largest)

        return wait


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Device of that name; 'auto' is CUDA where there is one and the CPU elsewhere.

    Args:
        name: 'auto', or what `torch.device` takes. A plain 'cuda' means the GPU numbered `local_rank`.
        local_rank: Number of this process on its machine.

    Raises:
        ValueError: No such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected 'auto', 'cpu', 'cuda' or 'cuda:<number>', got {name!r}") from None
    if device.type != "cuda":
        return device
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: GPU {index} is asked for, but torch sees {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)


@contextmanager
def open_world(device_name: str, timeout: timedelta | None = None) -> Iterator[World]:
    """Join the processes that torchrun started (NCCL on CUDA, gloo elsewhere), or stand alone.

    Args:
        device_name: As for `choose_device`.
        timeout: How long a process waits for another that does not answer; None: `TIMEOUT`.

    Raises:
        CommandError: The device does not exist.
        TrainingError: Another process has ended, or does not answer.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    with user_errors():
        device = choose_device(device_name, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device)
        return
    with _lost_processes():
        timeout = timeout or TIMEOUT
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        hosts = dist.new_group(backend="gloo", timeout=timeout)  # without its own timeout, gloo would wait for half an hour
        yield World(device, dist.get_rank(), size, hosts)
    # A DistributedDataParallel that outlives its process group hangs when it is freed (its threads wait for the
    # interpreter lock that the freeing one holds), so a closed trainer's is collected first. Not in a `finally`: a
    # process that fails must end at once, without waiting for the others.
    gc.collect()
    dist.destroy_process_group()


@contextmanager
def _lost_processes() -> Iterator[None]:
    """Turn the error of an exchange with a process that is not there any more into one that says so."""
    try:
        yield
    except RuntimeError as error:
        # gloo has no error type of its own; its messages begin with the file of its sources that they come from.
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        reason = re.sub(r"^\[.*?\] ", "", str(error)).splitlines()[0].split(". ")[0]
        raise TrainingError(
            f"another process of this run has ended or does not answer ({reason}); its own messages say why. "
            "--load_ckpt_path goes on from the last checkpoint, with any number of processes"
        ) from error
