"""Base class of data sets for training."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, Sampler

from se3_fast.data.samplers import EpochShuffleSampler, RankSubsetSampler


class RepeatableLoader(DataLoader[Any]):
    """A loader of batches in which nothing is drawn at random, so that they need not all be made where an epoch goes on.

    What orders its samples, or its batches, is one of :mod:`se3_fast.data.samplers` with ``leave_out``.
    """

    def after(self, batches: int) -> Iterator[Any]:
        """The batches of the epoch after so many."""
        order: Any = self.batch_sampler if self.batch_size is None else self.sampler
        order.leave_out(batches * (self.batch_size or 1))
        return iter(self)


class DataModule(ABC):
    """A training, a validation and a test set, and how their samples become batches.

    A subclass calls ``super().__init__`` first, then sets ``ds_train``, ``ds_val`` and ``ds_test`` (map-style data
    sets: ``__len__`` and ``__getitem__``), and defines ``_collate``. What has to be fetched or converted before goes
    into ``prepare_data``. A batch is a tuple ``(graph, node_feats, edge_feats, target)``, with a basis or an
    ``EdgeGeometry`` before the target if there is one; the model is called with all but the last.

    A data set with ``__getitems__(numbers)`` gives a whole batch at once; what it returns is handed to ``_collate``.

    Attributes:
        ds_train: Training set.
        ds_val: Validation set.
        ds_test: Test set.
        seed: Seed of the training order.
    """

    _loader_type: type[DataLoader[Any]] = DataLoader
    ds_train: Dataset[Any]
    ds_val: Dataset[Any]
    ds_test: Dataset[Any]

    def __init__(
        self,
        batch_size: int,
        num_workers: int = 0,
        seed: int | None = None,
        collate_fn: Callable[[Any], Any] | None = None,
        **dataloader_options: Any,
    ) -> None:
        """Prepare the data on one process of every machine; the others wait until it is done.

        Args:
            batch_size: Samples in a batch, on every process.
            num_workers: Processes that assemble batches; 0 assembles them in the training process.
            seed: Seed of the training order; None means 0, so that all processes agree.
            collate_fn: Makes a batch of samples; None means ``self._collate``.
            dataloader_options: Handed to ``torch.utils.data.DataLoader``.

        Raises:
            ValueError: ``batch_size`` is less than 1 or ``num_workers`` is negative.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.seed = 0 if seed is None else seed
        self._dataloader_options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "collate_fn": collate_fn or self._collate,
            **dataloader_options,
        }
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            self.prepare_data()
        if _is_distributed():
            dist.barrier()

    def prepare_data(self) -> None:  # noqa: B027 - not every data set needs it
        """Download or convert files. Runs on one process of every machine before the others go on."""

    def _collate(self, samples: Any) -> Any:
        """Make a batch of a list of samples (or of what ``__getitems__`` returned)."""
        raise NotImplementedError(f"{type(self).__name__} must define _collate(samples) or pass collate_fn")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of the training set, shuffled.

        The order of epoch n is that after ``loader.sampler.set_epoch(n)``, and depends on ``(seed, n)`` alone.
        """
        sampler = EpochShuffleSampler(_length(self.ds_train), self.seed, *rank_and_size())
        return self._dataloader(self.ds_train, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return batches of the validation set, in order; in a distributed run the share of this process."""
        return self._dataloader(self.ds_val, RankSubsetSampler(_length(self.ds_val), *rank_and_size()))

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test set, in order; in a distributed run the share of this process."""
        return self._dataloader(self.ds_test, RankSubsetSampler(_length(self.ds_test), *rank_and_size()))

    def _dataloader(self, dataset: Dataset[Any], sampler: Sampler[int]) -> DataLoader[Any]:
        return self._ordered(dataset, sampler=sampler)

    def _ordered(self, dataset: Dataset[Any], **order: Any) -> DataLoader[Any]:
        """Batches of a data set in the order that arguments of ``DataLoader`` give."""
        # With a generator of its own the loader leaves the global random state alone, so that evaluating or not,
        # and the number of workers, do not change what the training draws.
        generator = torch.Generator().manual_seed(self.seed)
        return self._loader_type(dataset, generator=generator, **{**self._dataloader_options, **order})


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank_and_size() -> tuple[int, int]:
    """Number of this process, and of all that train together."""
    return (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]  # Dataset declares no __len__; map-style data sets have one
