"""Molecules with one number each, or several, ready for training, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence
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
from se3_fast.data.objective import CLASSIFICATION, REGRESSION, Objective, Property
from se3_fast.data.resident import AssembledMolecules, ResidentLoader, ResidentMolecules, device_with_room
from se3_fast.geometry import EdgeGeometry


class MoleculeDataModule(DataModule):
    """Molecules as bond graphs, for one property or several.

    A batch is ``(graph, node_feats, edge_feats, target)``: a ``Graph`` with ``ndata['pos']`` [N, 3] and
    ``edata['rel_pos']`` [E, 3] (Angstrom), ``{'0': [N, 6, 1]}``, ``{'0': [E, 4, 1]}`` and standardised targets [B], all
    float32. Of several properties targets are [B, P], NaN where unknown; those of a classification are 0 and 1. With
    ``precompute_bases`` an ``EdgeGeometry`` stands before the target.

    The whole data set lies on the device, and batches are put together there: see :mod:`se3_fast.data.resident`.

    A subclass sets ``path``, ``featuriser``, kind, names and units of what is learned, and the three sets, then calls
    :meth:`_serve`.

    Attributes:
        path: Where the molecules were read, for messages.
        featuriser: What made the features.
        objective: The properties, with mean and standard deviation (divided by n - 1) of their training targets.
        task: The name of the property, or of several with commas between them.
        unit: Of the one property; of several, or of a classification, empty.
        targets_mean: Mean of the training targets of one property, in ``unit``; of several, or of a classification, 0.
        targets_std: Standard deviation of the training targets of one property, in ``unit``; of several, or of a classification, 1.
    """

    path: Path
    featuriser: Featuriser
    objective: Objective
    _kind: str = REGRESSION
    _named_units: Sequence[tuple[str, str]]
    _molecules: MoleculeDataset

    @property
    def task(self) -> str:
        """See above."""
        return ", ".join(name for name, _ in self._named_units)

    @property
    def unit(self) -> str:
        """See above."""
        return self.objective.properties[0].unit if self.objective.is_one_number else ""

    @property
    def targets_mean(self) -> float:
        """See above."""
        return self.objective.properties[0].mean if self.objective.is_one_number else 0.0

    @property
    def targets_std(self) -> float:
        """See above."""
        return self.objective.properties[0].std if self.objective.is_one_number else 1.0

    def _serve(self, num_degrees: int, precompute_bases: bool, device: torch.device | str) -> None:
        """Standardise the targets, and put the molecules where batches are made.

        Raises:
            DataError: There are no two different known targets to train on, or they are too large to be standardised.
        """
        molecules = self._molecules.molecules
        targets = molecules.targets[cast(Subset[Molecules], self.ds_train).indices]
        columns = (targets if targets.ndim == 2 else targets[:, None]).double().unbind(1)
        properties = [self._property(name, unit, column) for (name, unit), column in zip(self._named_units, columns, strict=True)]
        self.objective = Objective(self._kind, tuple(properties))
        self._max_degree = num_degrees - 1
        frame_values = sum((2 * degree + 1) ** 2 for degree in range(num_degrees)) if precompute_bases else 0
        self._resident = ResidentMolecules(molecules, device_with_room(molecules, device, frame_values))
        self._geometry = None
        if precompute_bases:
            self._geometry = _edge_geometry(self._resident.relative_positions(), self._max_degree).with_frames()
        if len(properties) == 1:
            self._shift: float | Tensor = properties[0].mean
            self._scale: float | Tensor = properties[0].std
        else:
            self._shift, self._scale = (
                torch.tensor(values.tolist(), dtype=targets.dtype, device=self._resident.device)
                for values in (self.objective.means, self.objective.stds)
            )

    def _property(self, name: str, unit: str, targets: Tensor) -> Property:
        """The property whose training targets are [M] float64, NaN where unknown."""
        known = targets[~targets.isnan()]
        if len(known) < 2 or known.min() == known.max():  # the deviation of equal ones may be above 0 by rounding
            raise DataError(
                f"{self.path}: task {name} needs training molecules with different known targets, got {len(known)} with a known one"
            )
        if not (known.std() > 0 and known.std().isfinite() and known.mean().isfinite()):
            raise DataError(
                f"{self.path}: task {name}: expected training targets whose standard deviation is a number, "
                f"got some from {known.min().item():g} to {known.max().item():g}"
            )
        if self._kind == CLASSIFICATION:
            return Property(name, unit)
        return Property(name, unit, known.mean().item(), known.std().item())

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
        target = ((targets - self._shift) / self._scale).float()  # [B] or [B, P]
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
