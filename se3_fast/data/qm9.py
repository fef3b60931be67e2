"""QM9 and the sample data set, ready for training."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from se3_fast.command_line import boolean
from se3_fast.data.data_module import DataModule
from se3_fast.data.domain import Domain
from se3_fast.data.download import QM9_EDGE_URL, download_file
from se3_fast.data.featuriser import FEATURISERS, featuriser_of
from se3_fast.data.molecules import (
    NUM_EDGE_FEATURES,
    NUM_NODE_FEATURES,
    DataError,
    MoleculeDataset,
    Molecules,
    check_archive,
    read_molecules,
)
from se3_fast.data.resident import AssembledMolecules, ResidentLoader, ResidentMolecules, device_with_room
from se3_fast.data.tasks import TASK_UNITS, TASKS
from se3_fast.geometry import EdgeGeometry

SAMPLE_PATH = Path(__file__).with_name("sample.npz")
"""The data set that is shipped with the package (made by ``se3_fast.data.make_sample``)."""

DATASETS = ("qm9", "sample")

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


class QM9DataModule(DataModule):
    """QM9 as bond graphs, for one of 19 regression tasks.

    A batch is ``(graph, node_feats, edge_feats, target)``: a ``Graph`` with ``ndata['pos']`` [N, 3] and
    ``edata['rel_pos']`` [E, 3] (Angstrom), ``{'0': [N, 6, 1]}``, ``{'0': [E, 4, 1]}`` and standardised targets [B], all
    float32. With ``precompute_bases`` an ``EdgeGeometry`` stands before the target.

    The whole data set lies on the device, and batches are put together there: see :mod:`se3_fast.data.resident`.

    The split is the same for every task. Molecules whose target is unknown (NaN) are then left out.

    Attributes:
        targets_mean: Mean of the training targets, in ``unit``.
        targets_std: Standard deviation of the training targets (divided by n - 1), in ``unit``.
        unit: Unit of the task.
    """

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
        self.task = task
        self.unit = TASK_UNITS[task]
        self.path = SAMPLE_PATH if dataset == "sample" else Path(data_dir) / "qm9_edge.npz"
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)

        molecules = read_molecules(self.path, task)
        self._molecules = MoleculeDataset(molecules)
        self.ds_train, self.ds_val, self.ds_test = self._known_subsets()
        targets = self._molecules.molecules.targets[self.ds_train.indices].double()
        if len(targets) < 2 or not targets.std() > 0:
            raise DataError(
                f"{self.path}: task {task} needs training molecules with different known targets, "
                f"got {len(targets)} with a known one"
            )
        self.targets_mean = targets.mean().item()
        self.targets_std = targets.std().item()
        self._max_degree = num_degrees - 1
        frame_values = sum((2 * degree + 1) ** 2 for degree in range(num_degrees)) if precompute_bases else 0
        self._resident = ResidentMolecules(molecules, device_with_room(molecules, device, frame_values))
        self._geometry = None
        if precompute_bases:
            self._geometry = _edge_geometry(self._resident.relative_positions(), self._max_degree).with_frames()

    def prepare_data(self) -> None:
        """Download ``qm9_edge.npz`` if it is missing."""
        if self.dataset == "qm9" and not self.path.exists():
            download_file(QM9_EDGE_URL, self.path, check_archive)

    def description(self) -> dict[str, Any]:
        """Plain values that checkpoints carry: `featuriser`, and for its features `domain`, what the training set spans."""
        molecules = self._molecules.molecules
        featuriser = featuriser_of(self.dataset, molecules)
        described = {"featuriser": featuriser.description()}
        if featuriser in FEATURISERS:
            described["domain"] = Domain.of(molecules, np.array(cast(Subset[Molecules], self.ds_train).indices)).description()
        return described

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

    def _dataloader(self, dataset: Dataset[Any], sampler: Any) -> Any:
        numbers = torch.tensor(cast(Subset[Molecules], dataset).indices, dtype=torch.int64)
        return ResidentLoader(self._resident, numbers, sampler, self._dataloader_options["batch_size"], self._finish)

    def _finish(self, molecules: AssembledMolecules, is_padded: bool) -> tuple[Any, ...]:
        """The batch; a padded one always with the geometry, which knows that no edge has length zero, if so."""
        graph, node_attr, edge_attr, edges, targets = molecules
        node_feats = {"0": node_attr.float().unsqueeze(-1)}  # [N, 6, 1]
        edge_feats = {"0": edge_attr.float().unsqueeze(-1)}  # [E, 4, 1]
        target = (targets - self.targets_mean) / self.targets_std  # [B]
        if self._geometry is None and not is_padded:
            return graph, node_feats, edge_feats, target
        zero_length_edges = None if self._resident.has_zero_length_edges else edges.new_empty(0)
        if self._geometry is None:
            geometry = _edge_geometry(graph.edata["rel_pos"], self._max_degree, zero_length_edges)
        else:
            geometry = self._geometry.index_select(edges, zero_length_edges)
        return graph, node_feats, edge_feats, geometry, target

    @staticmethod
    def add_argparse_args(parent_parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add the options of the data set to a parser, and return it."""
        group = parent_parser.add_argument_group("QM9 dataset")
        group.add_argument("--dataset", choices=DATASETS, default="qm9", help="QM9, or the shipped sample")
        group.add_argument("--task", choices=TASKS, default="homo", const="homo", nargs="?", help="Property to learn")
        group.add_argument(
            "--precompute_bases",
            type=boolean,
            nargs="?",
            const=True,
            default=False,
            help="Compute the geometry of all edges once at the start instead of in every forward pass",
        )
        return parent_parser

    def __repr__(self) -> str:
        """Return data set and task."""
        return f"{'QM9' if self.dataset == 'qm9' else 'Sample'}({self.task})"


def _edge_geometry(rel_pos: Tensor, max_degree: int, zero_length_edges: Tensor | None = None) -> Any:
    return EdgeGeometry(rel_pos, max_degree, zero_length_edges=zero_length_edges)  # positions were checked when they were read
