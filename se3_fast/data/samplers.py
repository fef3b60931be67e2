"""Which samples a process sees, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


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
        return iter(self.order().tolist())


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


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
