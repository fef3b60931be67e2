"""Which samples a process sees, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler

_NUMBERS_TOGETHER = 4096


class EpochShuffleSampler(Sampler[int]):
    """Training order: a new permutation in every epoch, fixed by ``(seed, epoch)`` alone.

    Of P processes, process r takes every P-th number of the permutation from the r-th on. So P processes with batches
    of n see, step by step, the same samples as one process with batches of P n. As in the published distributed
    sampling, the permutation is continued from its start where its length is no multiple of P, because every process
    must take the same number of steps.
    """

    def __init__(self, num_samples: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        """Start at epoch 0.

        Args:
            num_samples: Size of the training set.
            seed: Any number from 0 on; the same on all processes.
            rank: Number of this process.
            world_size: Number of processes P.

        Raises:
            ValueError: ``seed`` is negative, or ``rank`` is not below ``world_size``.
        """
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        _check_rank(rank, world_size)
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._left_out = 0

    def leave_out(self, count: int) -> None:
        """The next iteration, and no other, begins after so many samples."""
        self._left_out = count

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0 on) whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of samples of this process."""
        return math.ceil(self.num_samples / self.world_size)

    def order(self) -> np.ndarray:
        """The sample numbers of this process for the current epoch, [n] int64."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples)
        return np.resize(order, len(self) * self.world_size)[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        """Yield the sample numbers of this process for the current epoch."""
        order = self.order()
        first, self._left_out = self._left_out, 0
        for start in range(first, len(order), _NUMBERS_TOGETHER):  # as Python's numbers they take five times the memory
            yield from order[start : start + _NUMBERS_TOGETHER].tolist()


class RankSubsetSampler(Sampler[int]):
    """Evaluation order: process r of P takes samples r, r + P, r + 2P, ...; none is counted twice.

    The processes may differ by one sample, so an evaluation must not synchronise them batch by batch.
    """

    def __init__(self, num_samples: int, rank: int = 0, world_size: int = 1) -> None:
        """Take a share of ``num_samples`` samples.

        Raises:
            ValueError: ``rank`` is not below ``world_size``.
        """
        _check_rank(rank, world_size)
        self._numbers = range(rank, num_samples, world_size)

    def __len__(self) -> int:
        """Return the number of samples of this process."""
        return len(self._numbers)

    def order(self) -> np.ndarray:
        """The sample numbers of this process in ascending order, [n] int64."""
        return np.asarray(self._numbers, dtype=np.int64)

    def __iter__(self) -> Iterator[int]:
        """Yield the sample numbers of this process in ascending order."""
        return iter(self._numbers)


class EdgeBatchSampler(Sampler[list[int]]):
    """Training batches of as many samples as have a given number of edges together, fixed by ``(seed, epoch)`` alone.

    The permutation of :class:`EpochShuffleSampler` is cut into batches: each holds samples as long as their edges are not more than
    ``batch_edges``, and one at least. A sample without edges counts as one edge. Of P processes, process r takes every P-th batch
    from the r-th on, so that a step of P processes sees the batches that one process sees in P steps. The batches are continued
    from the first where their number is no multiple of P, because every process must take the same number of steps. How many there
    are depends on the epoch.
    """

    def __init__(self, edges: np.ndarray, batch_edges: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        """Start at epoch 0.

        Args:
            edges: [M] integers, the edges of each sample.
            batch_edges: Most edges of a batch of several samples.
            seed: As for :class:`EpochShuffleSampler`.
            rank: As for :class:`EpochShuffleSampler`.
            world_size: As for :class:`EpochShuffleSampler`.

        Raises:
            ValueError: ``batch_edges`` is less than 1, or as for :class:`EpochShuffleSampler`.
        """
        _check_batch_edges(batch_edges)
        self._whole = EpochShuffleSampler(len(edges), seed)
        _check_rank(rank, world_size)
        self._edges, self._batch_edges = edges, batch_edges
        self._rank, self._world_size = rank, world_size
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None
        self._left_out = 0

    def leave_out(self, count: int) -> None:
        """The next iteration, and no other, begins after so many batches."""
        self._left_out = count

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0 on) whose batches ``len`` counts and the next iteration yields."""
        self._whole.set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of batches of this process in the current epoch."""
        _, starts = self._planned()
        return math.ceil((len(starts) - 1) / self._world_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the sample numbers of each batch of this process for the current epoch."""
        order, starts = self._planned()
        count = len(starts) - 1
        first, self._left_out = self._left_out, 0
        for step in range(first, len(self)):
            batch = (step * self._world_size + self._rank) % count
            yield order[starts[batch] : starts[batch + 1]].tolist()

    def _planned(self) -> tuple[np.ndarray, np.ndarray]:
        """All samples in the order of the epoch, and where batches start among them, with their number at the end."""
        epoch = self._whole.epoch
        if self._plan is None or self._plan[0] != epoch:
            order = self._whole.order()
            self._plan = epoch, order, _batch_starts(self._edges[order], self._batch_edges)
        return self._plan[1:]


class RankEdgeBatchSampler(Sampler[list[int]]):
    """Evaluation batches by edges: process r of P takes samples r, r + P, r + 2P, ...; none is counted twice."""

    def __init__(self, edges: np.ndarray, batch_edges: int, rank: int = 0, world_size: int = 1) -> None:
        """Cut the share of a process into batches; arguments are those of :class:`EdgeBatchSampler`.

        Raises:
            ValueError: ``batch_edges`` is less than 1, or ``rank`` is not below ``world_size``.
        """
        _check_batch_edges(batch_edges)
        self._numbers = RankSubsetSampler(len(edges), rank, world_size).order()
        self._starts = _batch_starts(edges[self._numbers], batch_edges)

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the sample numbers of each batch of this process."""
        for start, end in pairwise(self._starts.tolist()):
            yield self._numbers[start:end].tolist()


def _batch_starts(edges: np.ndarray, batch_edges: int) -> np.ndarray:
    """Where batches of at most so many edges, or of one sample, start among samples [M]; M at the end."""
    ends = np.maximum(edges, 1).cumsum()
    starts, taken = [0], 0
    while starts[-1] < len(edges):
        start = starts[-1]
        end = max(int(np.searchsorted(ends, taken + batch_edges, side="right")), start + 1)
        starts.append(end)
        taken = int(ends[end - 1])
    return np.array(starts)


def _check_batch_edges(batch_edges: int) -> None:
    if batch_edges < 1:
        raise ValueError(f"batch_edges must be 1 or more, got {batch_edges}")


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
