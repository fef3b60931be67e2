"""Molecules with one number each, ready for training, wherever they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from se3_fast.data.data_module import DataModule
from se3_fast.data.domain import Domain
from se3_fast.data.featuriser import FEATURISERS, Featuriser
from se3_fast.data.molecules import DataError, MoleculeDataset, Molecules
from se3_fast.data.resident import AssembledMolecules, ResidentLoader, ResidentMolecules, device_with_room
from se3_fast.geometry import EdgeGeometry

SPLITS = ("random", "scaffold")
"""How molecules of one's own are divided."""


class MoleculeDataModule(DataModule):
    """Molecules as bond graphs, for one property.

    A batch is ``(graph, node_feats, edge_feats, target)``: a ``Graph`` with ``ndata['pos']`` [N, 3] and
    ``edata['rel_pos']`` [E, 3] (Angstrom), ``{'0': [N, 6, 1]}``, ``{'0': [E, 4, 1]}`` and standardised targets [B], all
    float32. With ``precompute_bases`` an ``EdgeGeometry`` stands before the target.

    The whole data set lies on the device, and batches are put together there: see :mod:`se3_fast.data.resident`.

    A subclass sets all attributes but the last two, and the three sets, then calls :meth:`_serve`.

    Attributes:
        path: Where the molecules were read, for messages.
        task: The property.
        unit: Its unit.
        featuriser: What made the features.
        targets_mean: Mean of the training targets, in ``unit``.
        targets_std: Standard deviation of the training targets (divided by n - 1), in ``unit``.
    """

    path: Path
    task: str
    unit: str
    featuriser: Featuriser
    targets_mean: float
    targets_std: float
    _molecules: MoleculeDataset

    def _serve(self, num_degrees: int, precompute_bases: bool, device: torch.device | str) -> None:
        """Standardise the targets, and put the molecules where batches are made.

        Raises:
            DataError: There are no two different known targets to train on.
        """
        molecules = self._molecules.molecules
        targets = molecules.targets[cast(Subset[Molecules], self.ds_train).indices].double()
        if len(targets) < 2 or not targets.std() > 0:
            raise DataError(
                f"{self.path}: task {self.task} needs training molecules with different known targets, "
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

    def description(self) -> dict[str, Any]:
        """Plain values that checkpoints carry: `featuriser`, and for its features `domain`, what the training set spans."""
        described = {"featuriser": self.featuriser.description()}
        if self.featuriser in FEATURISERS:
            numbers = np.array(cast(Subset[Molecules], self.ds_train).indices)
            described["domain"] = Domain.of(self._molecules.molecules, numbers).description()
        return described

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


def _edge_geometry(rel_pos: Tensor, max_degree: int, zero_length_edges: Tensor | None = None) -> Any:
    return EdgeGeometry(rel_pos, max_degree, zero_length_edges=zero_length_edges)  # positions were checked when they were read
