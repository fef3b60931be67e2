"""Base class of data modules."""

from __future__ import annotations

from typing import Any

from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from se3_fast.data import DataModule

__all__ = ["DataModule"]


def _get_dataloader(dataset: Dataset[Any], shuffle: bool, **kwargs: Any) -> DataLoader[Any]:
    """Batches of a data set; in a distributed run the share of this process."""
    if dist.is_initialized():
        return DataLoader(dataset, sampler=DistributedSampler(dataset, shuffle=shuffle), **kwargs)
    return DataLoader(dataset, shuffle=shuffle, **kwargs)
