"""Cost: what a kernel does for given sizes, as its header counts it; the benchmarks divide it by the time to place a kernel."""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """What one pass of an operation does.

    Attributes:
        matrix_flop: operations of matrix products, which run on the matrix unit where there is one for the dtype.
        vector_flop: all other additions and multiplications.
        bytes: read from and written to memory, if what a launch reads more than once comes from a cache after the first time.
    """

    matrix_flop: int
    vector_flop: int
    bytes: int

    @property
    def flop(self) -> int:
        """All operations."""
        return self.matrix_flop + self.vector_flop
