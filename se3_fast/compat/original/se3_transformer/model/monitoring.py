"""Ranges for NVIDIA's profilers, which variants of the published package mark their layers with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["nvtx_range"]


@contextmanager
def nvtx_range(msg: str) -> Iterator[None]:
    """A range of this name in a profile of the GPU; nothing where there is none."""
    if not torch.cuda.is_available():
        yield
        return
    with torch.cuda.nvtx.range(msg):
        yield
