"""Aligned messages: what a convolution hands to the attention without turning it out of the edges' frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant
from se3_fast.graph import Graph
from se3_fast.kernels.edge_frames import wigner_table
from se3_fast.so3 import axis_swap


@dataclass(frozen=True)
class AlignedMessages:
    """The messages y~ of a convolution in the frames of their edges; the messages themselves are D y~ (DESIGN 1.1).

    Attributes:
        values: [rows, E]; a row is a (degree, component, channel), degrees ascending. Any strides: the transpose of a contiguous
            [E, rows] is what the attention reads as it is.
        channels: (degree, channels), degrees ascending.
        angles: [4, E], see ``kernels/edge_frames.py``; none of an edge of length zero.
        graph: N nodes, and the E edges in the order that ``values`` and ``angles`` have them.
    """

    values: Tensor
    channels: tuple[tuple[int, int], ...]
    angles: Tensor
    graph: Graph


def wigner_tables(degrees: Sequence[int], like: Tensor) -> Tensor:
    """The Wigner tables of some degrees in a row, in the dtype and on the device of ``like``."""
    return _wigner_tables(tuple(degrees), like.dtype, like.device)


@constant
def _wigner_tables(degrees: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.cat([wigner_table(axis_swap(degree)).flatten() for degree in degrees]).to(device, dtype)
