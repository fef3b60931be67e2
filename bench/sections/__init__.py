"""What :mod:`bench.gpu` measures: a file for each section, run in the processes that it starts.

A section has ``rows()``, what there is to measure, the most valuable first, and ``measure(files, **row)``, the figures of one row.
What a section needs it imports itself, so that a package that is missing ends no other section.
"""

from __future__ import annotations

import gc
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.environment import device_name, environment
from bench.workloads import DEVICE

Row = dict[str, Any]


@dataclass(frozen=True)
class Files:
    """Where things lie.

    Attributes:
        data_dir: folder of ``qm9_edge.npz``; None: the sample is repeated to its size.
        scratch: a folder for what is made on the way.
        out: the folder of the results.
    """

    data_dir: Path | None
    scratch: Path
    out: Path


def start() -> Row:
    """Open the device; its name and what runs on it."""
    torch.zeros(1, device=DEVICE)
    return {"name": device_name(), "environment": environment()}


def rows(section: str) -> list[Row]:
    """What there is to measure in a section."""
    return list(_module(section).rows())


def measure(section: str, row: Row, files: dict[str, Path | None]) -> Row:
    """The figures of one row of a section."""
    try:
        return _module(section).measure(Files(**files), **row)
    finally:
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()


def summarise(section: str, results: list[Row], files: dict[str, Path | None]) -> Row:
    """A section's ``text`` for whoever reads along, and what else its rows say together; its plots are written."""
    return _module(section).summarise(Files(**files), results)


def _module(section: str) -> Any:
    return importlib.import_module(f"{__name__}.{section}")
