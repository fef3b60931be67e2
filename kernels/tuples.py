"""Tuples of tensors as arguments of kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def one_of(tensors, number):
    """The tensor of a tuple whose number is known on the device only."""
    chosen = tensors[0]
    for n in tl.static_range(1, len(tensors)):
        if number == n:
            chosen = tensors[n]
    return chosen
