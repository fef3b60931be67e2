"""One convolution over sizes: the largest graph that fits, then time and peak memory against edges and degrees."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from bench import scaling
from bench.sections import Files, Row
from bench.workloads import BACKENDS

SECONDS_OF_SEARCH = 45.0


def rows() -> Iterator[Row]:
    """Ours before the others, each from the smallest size to the largest."""
    for backend in reversed(BACKENDS):
        yield {"sweep": "largest graph", "backend": backend}
    for backend in reversed(BACKENDS):
        for edges in scaling.EDGES:
            yield {"sweep": "edges", "backend": backend, "edges": edges, "max_degree": scaling.MAX_DEGREE}
        for degree in scaling.DEGREES:
            yield {"sweep": "degrees", "backend": backend, "edges": scaling.EDGES_OF_DEGREES, "max_degree": degree}


def measure(files: Files, sweep: str, backend: str, edges: int = 0, max_degree: int = 0) -> Row:
    """``step_ms`` and ``peak_MiB``; of the largest graph its edges."""
    if sweep == "largest graph":
        return scaling.largest_graph(backend, time.monotonic() + SECONDS_OF_SEARCH)
    return scaling.measured(edges, max_degree, backend)


def summarise(files: Files, results: Sequence[Row]) -> Row:
    """A table, the exponents, and a plot for each sweep."""
    sweeps = [row for row in results if "step_ms" in row]
    fits = scaling.fits(sweeps)
    scaling.plot(sweeps, fits, files.out)
    return {"text": scaling.table(sweeps, fits), "fits": fits}
