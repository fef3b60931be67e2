"""QM9 and the sample data set, ready for training."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from se3_fast.data.arguments import DATASETS, add_qm9_arguments
from se3_fast.data.download import QM9_EDGE_URL, download_file
from se3_fast.data.featuriser import featuriser_of
from se3_fast.data.molecule_data import MoleculeDataModule
from se3_fast.data.molecules import (
    NUM_EDGE_FEATURES,
    NUM_NODE_FEATURES,
    MoleculeDataset,
    Molecules,
    check_archive,
    read_molecules,
)
from se3_fast.data.tasks import TASK_UNITS, TASKS

SAMPLE_PATH = Path(__file__).with_name("sample.npz")
"""The data set that is shipped with the package (made by ``se3_fast.data.make_sample``)."""

PUBLISHED_TRAINING_MOLECULES = 100_000
PUBLISHED_MOLECULES = 130_831
SMALLEST_FULL_FILE = 125_000
"""In files of this many molecules or more 100,000 train; in smaller ones the same share as in the published file."""

_log = logging.getLogger(__name__)


def split_sizes(num_molecules: int) -> tuple[int, int, int]:
    """Return the sizes of the training, validation and test set.

    100,000 molecules train, a tenth (rounded down) tests, the rest validates. In files of fewer than 125,000 molecules
    100,000/130,831 (rounded down) train.
    """
    train = PUBLISHED_TRAINING_MOLECULES
    if num_molecules < SMALLEST_FULL_FILE:
        train = num_molecules * PUBLISHED_TRAINING_MOLECULES // PUBLISHED_MOLECULES
    test = num_molecules // 10
    return train, num_molecules - train - test, test


def split_indices(num_molecules: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the molecule numbers (int64) of the training, validation and test set.

    They follow one another, in this order, in the permutation that PyTorch draws with seed 0; for the published file
    that is the published split, molecule by molecule.
    """
    order = torch.randperm(num_molecules, generator=torch.Generator().manual_seed(0))
    train, validation, test = order.split(split_sizes(num_molecules))
    return train, validation, test


class QM9DataModule(MoleculeDataModule):
    """QM9 as bond graphs, for one of 19 regression tasks.

    Batches are those of :class:`MoleculeDataModule`.

    The split is the same for every task. Molecules whose target is unknown (NaN) are then left out.

    Attributes: those of :class:`MoleculeDataModule`.
    """

    split = "the published one"

    NODE_FEATURE_DIM = NUM_NODE_FEATURES
    EDGE_FEATURE_DIM = NUM_EDGE_FEATURES

    def __init__(
        self,
        data_dir: str | os.PathLike[str],
        task: str = "homo",
        batch_size: int = 240,
        num_workers: int = 8,
        num_degrees: int = 4,
        precompute_bases: bool = False,
        seed: int | None = None,
        dataset: str = "qm9",
        device: torch.device | str = "cpu",
        **_other_options: Any,
    ) -> None:
        """Read the data; ``qm9_edge.npz`` is downloaded if it is not in ``data_dir``.

        Args:
            data_dir: Folder of ``qm9_edge.npz``; not used by the sample data set.
            task: One of ``TASKS``. The sample data set has mu, homo, lumo, gap and U0.
            batch_size: Molecules in a batch, on every process.
            num_workers: For data sets of your own; these need no processes that assemble batches.
            num_degrees: Degrees of the model's features, for ``precompute_bases``.
            precompute_bases: Compute the geometry of all edges once, and keep it in memory.
            seed: Seed of the training order; None means 0.
            dataset: 'qm9' or 'sample'.
            device: Where the data lie and batches are made; the host, if the device has no room for them.
            _other_options: Not used; so that all options of a command line can be given.

        Raises:
            DataError: The file cannot be used, or knows the task of too few molecules.
            DownloadError: The file is missing and cannot be downloaded.
            ValueError: No such task or data set.
        """
        if dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}; got {dataset!r}")
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
        self.dataset = dataset
        self._named_units = [(task, TASK_UNITS[task])]
        self.path = SAMPLE_PATH if dataset == "sample" else Path(data_dir) / "qm9_edge.npz"
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)

        molecules = read_molecules(self.path, task)
        self._molecules = MoleculeDataset(molecules)
        self.featuriser = featuriser_of(dataset, molecules)
        self.ds_train, self.ds_val, self.ds_test = self._known_subsets()
        self._serve(num_degrees, precompute_bases, device)

    def prepare_data(self) -> None:
        """Download ``qm9_edge.npz`` if it is missing."""
        if self.dataset == "qm9" and not self.path.exists():
            download_file(QM9_EDGE_URL, self.path, check_archive)

    def _known_subsets(self) -> list[Subset[Molecules]]:
        known = ~self._molecules.molecules.targets.isnan()  # [M]
        parts = split_indices(len(self._molecules))
        if not known.all() and int(os.environ.get("RANK", "0")) == 0:
            counts = [f"{int(known[part].sum()):,} of {len(part):,}" for part in parts]
            _log.info(
                "task %s: the target is known for %s training, %s validation, %s test molecules; only these are used",
                self.task,
                *counts,
            )
        return [Subset(self._molecules, part[known[part]].tolist()) for part in parts]

    @staticmethod
    def add_argparse_args(parent_parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add the options of the data set to a parser, and return it."""
        return add_qm9_arguments(parent_parser)

    def __repr__(self) -> str:
        """Return data set and task."""
        return f"{'QM9' if self.dataset == 'qm9' else 'Sample'}({self.task})"
