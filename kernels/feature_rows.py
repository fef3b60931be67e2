"""Feature-major tensors, [rows, E], whose rows begin on multiples of 16 values.

So every launch reads them alike, however many edges a batch has: in the widest loads, and compiled once. Past the last edge rows
hold zeros, which whoever writes them writes, too: sums over edges need not look where the edges end.
"""

from __future__ import annotations

import torch
from torch import Tensor

PITCH = 16
"""Values from one row to the next are a multiple of this."""


def empty_rows(num_rows: int, num_edges: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for [rows, E]; whoever writes it writes zeros up to the next row, too."""
    return torch.empty(num_rows, _pitch(num_edges), dtype=dtype, device=device)[:, :num_edges]


def in_rows(values: Tensor) -> Tensor:
    """[rows, E] as :func:`empty_rows` has it: copied where it is not so already."""
    if values.stride(1) == 1 and values.stride(0) % PITCH == 0 and values.storage_offset() % PITCH == 0:
        return values
    num_rows, num_edges = values.shape
    return values.new_zeros(num_rows, _pitch(num_edges))[:, :num_edges].copy_(values)


def _pitch(num_edges: int) -> int:
    return -(-num_edges // PITCH) * PITCH
