"""Training and inference of the published model through the commands' code, and batches without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench import data_assembly, throughput
from bench.sections import Files, Row


def rows() -> Iterator[Row]:
    """The cases of :mod:`bench.throughput`, then an epoch of batches alone."""
    yield from throughput.cases()
    yield {"mode": "batch assembly"}


def measure(files: Files, mode: str, **case: str | int) -> Row:
    """Molecules per millisecond and latencies; of the batches alone those of :mod:`bench.data_assembly`."""
    folder = files.data_dir if files.data_dir is not None and (files.data_dir / "qm9_edge.npz").exists() else None
    if mode == "batch assembly":
        return data_assembly.measure(folder)
    if folder is None:
        return throughput.measure(throughput.repeated_sample(files.scratch), mode, **case)
    with throughput.data_set(folder) as data:
        return throughput.measure(data, mode, **case)


def summarise(files: Files, results: Sequence[Row]) -> Row:
    """The published tables."""
    return {"text": throughput.tables([row for row in results if "molecules_per_ms" in row])}
