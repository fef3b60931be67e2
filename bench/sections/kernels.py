"""The kernels of the workloads, compiled before anything is measured: in many processes, into Triton's cache on disk."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from itertools import product
from typing import Any, NamedTuple

import torch

import se3_fast
from bench.launches import inference_step, training_step
from bench.recorded_launches import Launch, as_compiled, compile_launch, recorded
from bench.sections import Files, Row
from bench.workloads import SIZES, build

MOST_PROCESSES = 16
PUBLISHED = "qm9"
"""What the throughput is measured of, where TF32 is allowed."""


class Recording(NamedTuple):
    """A step of a workload of a size: under autocast or not, its other products in TF32 or not."""

    workload: str
    size: int
    is_amp: bool
    is_tf32: bool


def rows() -> Iterator[Row]:
    """All in one."""
    yield {"workloads": dict(SIZES)}


def measure(files: Files, workloads: dict[str, int]) -> Row:
    """Record the launches of a training step and of inference of each workload, then compile what they run."""
    start = time.perf_counter()
    recordings = [
        Recording(name, size, is_amp, is_tf32)
        for (name, size), is_amp, is_tf32 in product(workloads.items(), (True, False), (False, True))
        if name == PUBLISHED or not is_tf32
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(MOST_PROCESSES, os.cpu_count() or 1), context) as pool:
        launches, failures = _all(pool, launches_of, recordings)
        distinct = list({repr(launch): launch for part in launches for launch in part}.values())
        recording = time.perf_counter() - start
        compiled, more = _all(pool, compile_launch, distinct)
    figures = {"launches": len(distinct), "compiled": len(compiled), "recording_s": recording}
    return figures | {"seconds": time.perf_counter() - start, "failures": failures + more}


def summarise(files: Files, results: Sequence[Row]) -> Row:
    """How many, and how long it took."""
    return {"text": "\n".join(f"{row['compiled']} of {row['launches']} compiled in {row['seconds']:.0f} s" for row in results)}


def launches_of(recording: Recording) -> list[Launch]:
    """Those of a training step and of inference, which are not carried out; one for each compilation."""
    torch.backends.cuda.matmul.allow_tf32 = recording.is_tf32
    workload = build(recording.workload, recording.size)
    optimizer = torch.optim.SGD(workload.model.parameters(), lr=0.0)
    with se3_fast.backend("triton"), recorded() as launches:
        training_step(workload, optimizer, recording.is_amp)
        inference_step(workload, recording.is_amp)
    return list({repr(launch): launch for launch in map(as_compiled, launches)}.values())


def _all(pool: Executor, function: Callable[[Any], Any], arguments: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """What a function returns for each of the arguments, and the errors of those for which it raised one."""
    values, failures = [], []
    for future in as_completed([pool.submit(function, each) for each in arguments]):
        error = future.exception()
        if error is None:
            values.append(future.result())
        else:
            failures.append(f"{type(error).__name__}: {error}")
    return values, failures
