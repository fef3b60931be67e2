"""Work that is recorded as it runs on the GPU, and replayed: one launch of a CUDA graph instead of hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from se3_fast.data.resident import NumberedBatch, ResidentLoader

from .errors import TrainingError

CANNOT_BE_RECORDED = "this model cannot be recorded for --cuda_graphs"
"""How the error begins, before the reason."""


class Recorder(Protocol):
    """Records what a function does to the device."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run nothing; return what does to the device, with the same tensors, what ``function`` would."""

    def stream(self) -> AbstractContextManager[None]:
        """Where work must run that is recorded, or shares tensors with what is."""


class CudaRecorder:
    """Records CUDA graphs, on a stream of their own and with one pool of memory, as no two of them run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record a function, which must have run before: kernels are compiled and tables made then.

        Raises:
            TrainingError: something in it waits for the device, or cannot be recorded for another reason.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # Only calls of this thread are judged: those that exchange gradients ask the device now and then.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise TrainingError(f"{CANNOT_BE_RECORDED} ({reason}); run with --cuda_graphs false") from error
        return graph.replay

    @contextmanager
    def stream(self) -> Iterator[None]:
        """The stream of the recordings; what came before it is done before, what comes after it afterwards."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)


def choose_recorder(
    cuda_graphs: bool | None, is_benchmark: bool, device: torch.device, loader: Any, optimizer: str = ""
) -> Recorder | None:
    """How work on the batches of a loader is recorded; None: it is not.

    Args:
        cuda_graphs: Whether it is to be; None means: where the throughput is measured, if nothing speaks against it.
        is_benchmark: Whether the throughput is measured.
        device: What computes.
        loader: The batches.
        optimizer: The name of the optimizer whose steps are recorded too.

    Raises:
        ValueError: It is to be recorded, and cannot be.
    """
    wanted = is_benchmark if cuda_graphs is None else cuda_graphs
    obstacle = recording_obstacle(device, loader)
    if optimizer in ("lamb", "soap"):
        obstacle = obstacle or f"--optimizer adam or sgd, got {optimizer}"
    if wanted and obstacle is None:
        return CudaRecorder(device)
    if cuda_graphs:
        raise ValueError(f"--cuda_graphs: expected {obstacle}")
    return None


def recording_obstacle(device: torch.device, loader: Any) -> str | None:
    """What is needed to record work on batches of a loader, and what there is instead; None: nothing is missing."""
    if device.type != "cuda":
        return f"a CUDA device, got {device.type}"
    if not isinstance(loader, ResidentLoader):
        return f"batches that are made on the device, got those of a {type(loader).__name__}"
    if loader.molecules.device.type != "cuda":
        return "a data set that fits into the free memory of the device, got a larger one"
    return None


@dataclass
class _Shape:
    """What is kept for batches of one shape: the tensors that the recording reads and writes, and the recording."""

    numbers: Tensor
    output: Tensor | None = None
    replay: Callable[[], None] | None = None


class RecordedByShape:
    """A function of batches, which are padded to few shapes: run as it is for the first of a shape, then recorded and replayed.

    Args:
        function: of a padded batch and of the further arguments of the call; returns one tensor.
        loader: says what batches are padded to.
        recorder: records it.
    """

    def __init__(self, function: Callable[..., Tensor], loader: ResidentLoader, recorder: Recorder) -> None:
        self._function = function
        self._loader = loader
        self._recorder = recorder
        self._shapes: dict[tuple[int, ...], _Shape] = {}

    def __call__(self, batch: NumberedBatch, *arguments: int) -> Tensor:
        """What the function returns for this batch, padded: a tensor that the next call with the same shape overwrites."""
        size = self._loader.padded_size(batch)
        key = (batch.numbers.shape[0], *size, *arguments)
        if key not in self._shapes:
            self._shapes[key] = _Shape(batch.numbers.clone())
            shape = self._shapes[key]
            shape.output = self._evaluate(shape, size, arguments)
            return shape.output
        shape = self._shapes[key]
        shape.numbers.copy_(batch.numbers)
        if shape.replay is None:
            shape.replay = self._recorder(partial(self._overwrite, shape, size, arguments))
        shape.replay()
        assert shape.output is not None
        return shape.output

    def _evaluate(self, shape: _Shape, size: tuple[int, int], arguments: tuple[int, ...]) -> Tensor:
        return self._function(NumberedBatch(shape.numbers, *size), *arguments).detach()

    def _overwrite(self, shape: _Shape, size: tuple[int, int], arguments: tuple[int, ...]) -> None:
        assert shape.output is not None
        shape.output.copy_(self._evaluate(shape, size, arguments))


class RecordedOnce:
    """A function without arguments: run as it is the first time, then recorded and replayed."""

    def __init__(self, function: Callable[[], None], recorder: Recorder) -> None:
        self._function = function
        self._recorder = recorder
        self._has_run = False
        self._replay: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Run or replay it."""
        if not self._has_run:
            self._has_run = True
            self._function()
            return
        if self._replay is None:
            self._replay = self._recorder(self._function)
        self._replay()
