"""The benchmarks of single operations: what is measured, in which dtypes and passes, and what is compared.

``python -m bench``, ``python -m bench.gpu``, the comparisons of pytest-benchmark and ``docs/benchmarks.md`` read it. What a
workload gives an operation to do stands in ``bench/ops/<operation>.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from bench.ops import (
    aligned_weights,
    basis,
    depthwise_conv,
    edge_attention,
    edge_frames,
    equivariant_norm,
    linear,
    parameter_rows,
    perceptron,
    pooling,
    radial,
    tfn_conv,
)
from bench.problem import Problem
from bench.workloads import BACKENDS, SIZES

DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Benchmark:
    """An operation on what the workloads give it to do.

    Attributes:
        problem: the operation's inputs from the name of a workload and a dtype, and ``order`` where there are orders.
        backends: what is compared; ratios are to the first.
        dtypes: names of the dtypes, of :data:`DTYPES`, in which backends differ.
        passes: what is timed, of :meth:`bench.problem.Problem.passes`.
        orders: the orders in which backend ``torch`` is compared; none where there is no choice.
    """

    problem: Callable[..., Problem]
    backends: tuple[str, ...] = BACKENDS
    dtypes: tuple[str, ...] = ("float32", "float16")
    passes: tuple[str, ...] = ("forward", "forward+backward")
    orders: tuple[str, ...] = ()

    def variants(self) -> Iterator[str]:
        """The backends, ``torch`` as ``torch by <order>`` for each of the orders."""
        for backend in self.backends:
            yield from [f"torch by {order}" for order in self.orders] if backend == "torch" and self.orders else [backend]

    def rows(self) -> Iterator[dict[str, str]]:
        """Every workload in every dtype, pass and backend."""
        for workload, precision, passes, backend in product(SIZES, self.dtypes, self.passes, self.backends):
            yield {"workload": workload, "precision": precision, "pass": passes, "backend": backend}


BENCHMARKS: dict[str, Benchmark] = {
    "tfn_conv": Benchmark(tfn_conv.problem, orders=("edge", "source")),
    "depthwise_conv": Benchmark(depthwise_conv.problem, dtypes=("float32",)),
    "edge_attention": Benchmark(edge_attention.problem),
    "radial": Benchmark(radial.problem),
    "equivariant_norm": Benchmark(equivariant_norm.problem),
    "aligned_weights": Benchmark(aligned_weights.problem, backends=("triton",)),
    "parameter_rows": Benchmark(parameter_rows.problem, backends=("triton",), dtypes=("float32",)),
    "linear": Benchmark(linear.problem),
    "pooling": Benchmark(pooling.problem),
    "perceptron": Benchmark(perceptron.problem),
    "edge_frames": Benchmark(edge_frames.problem, dtypes=("float32",), passes=("forward",)),
    "basis": Benchmark(basis.problem, dtypes=("float32",)),
}
"""By the operation's name. Positions and rows of parameters are float32."""


def table() -> str:
    """The registry as the Markdown table of ``docs/benchmarks.md``."""
    lines = ["| operation | problem | in | passes | compared |", "|---|---|---|---|---|"]
    for name, benchmark in BENCHMARKS.items():
        summary = (benchmark.problem.__doc__ or "").splitlines()[0].rstrip(".")
        compared = "`triton` alone" if benchmark.backends == ("triton",) else "all"
        orders = f", `torch` by {' and by '.join(benchmark.orders)}" if benchmark.orders else ""
        cells = [f"`{name}`", summary, ", ".join(benchmark.dtypes), ", ".join(benchmark.passes), compared + orders]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
