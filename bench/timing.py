"""Times: of GPU work by a captured graph replayed with cold caches, of steps in turns; and the rates that the device reaches."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.workloads import DEVICE
from se3_fast.kernels.cost import Cost

FLUSHED_BYTES = 512 << 20
"""Written before every replay: several times the second-level cache of any GPU."""

MATRIX_SIZE, COPIED_BYTES = 8192, 1 << 30
"""What the rates of a device are measured with."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of parameters in glibc's mallopt."""


def keep_freed_memory() -> None:
    """From now on the C library keeps what is freed for what is allocated next (glibc; elsewhere nothing is done).

    By default large arrays go back to the system and are mapped and cleared anew, which costs those most that write most: the
    materialised algorithm and the libraries that read weights per edge from memory. Comparisons on the CPU spare them that.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


@dataclass
class Timing:
    """Median time of a call, in milliseconds, and whether it was replayed from a CUDA graph."""

    milliseconds: float
    is_captured: bool


class CaptureFailed(RuntimeError):
    """Work could not be captured in a CUDA graph. The process is to end: its allocator may be capturing still."""


def cold_time(function: Callable[[], None], rounds: int = 15, with_launches: bool = False) -> Timing:
    """Median time on the GPU of ``function`` with cold caches.

    Unless ``with_launches``, the function is captured in a CUDA graph, so that launches cost nothing.

    Raises:
        CaptureFailed: it cannot be captured, because it waits for the host, say.
    """
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    graph = None if with_launches else _captured(function)
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=DEVICE)
    times = []
    for _ in range(rounds):
        flushed.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        if graph is None:
            function()
        else:
            graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return Timing(statistics.median(times), graph is not None)


def change_slightly(parameters: Iterable[Tensor]) -> None:
    """Multiply parameters by 1 + 2^-22, as an optimizer might after a training step.

    A benchmark that repeats a training step does it in between: what a backend keeps of parameters that stay the same is of no use
    to training.
    """
    with torch.no_grad():
        for parameter in parameters:
            parameter *= 1 + 2.0**-22


def times_in_turns(
    steps: Mapping[str, Callable[[], None]], rounds: int, between: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median time of every step in milliseconds, launches included.

    On the CPU the steps take turns, so that what else the machine does falls on all of them; with one thread their time is that of
    the processor, which other processes change little.

    Args:
        steps: by name.
        rounds: in which each has its turn.
        between: what is done before every turn on the CPU, not timed.
    """
    if torch.cuda.is_available():
        return {name: cold_time(step, rounds, with_launches=True).milliseconds for name, step in steps.items()}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            between()
            start = clock()
            step()
            if number > 0:  # the first round warms up
                times[name].append(clock() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def _captured(function: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError as error:
        raise CaptureFailed(str(error)) from error
    return graph


@dataclass
class Rates:
    """What the device reaches in this run.

    Attributes:
        flop_per_second: large matrix products, by name of the operands' type.
        bytes_per_second: reads and writes of a large copy.
    """

    flop_per_second: dict[str, float]
    bytes_per_second: float

    def roofline_milliseconds(self, kind: str, cost: Cost) -> float:
        """The least time for a cost, its matrix products with operands of a kind; other arithmetic is float32."""
        matrix, vector = cost.matrix_flop / self.flop_per_second[kind], cost.vector_flop / self.flop_per_second["float32"]
        return 1e3 * max(matrix, vector, cost.bytes / self.bytes_per_second)


def measured_rates() -> Rates:
    """Measure :class:`Rates`."""
    size = MATRIX_SIZE
    rates = {}
    for kind, dtype, is_tf32 in (
        ("float16", torch.float16, False),
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
    ):
        torch.backends.cuda.matmul.allow_tf32 = is_tf32
        left, right = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        rates[kind] = 2e3 * size**3 / cold_time(lambda left=left, right=right: torch.mm(left, right), 7).milliseconds
    torch.backends.cuda.matmul.allow_tf32 = False
    source, target = (torch.empty(COPIED_BYTES, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    return Rates(rates, 2e3 * COPIED_BYTES / cold_time(lambda: target.copy_(source), 7).milliseconds)
