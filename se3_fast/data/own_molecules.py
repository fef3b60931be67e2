"""Molecules of a table or an SDF of one's own, ready for training (needs the extra ``chem``)."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from torch.utils.data import Subset
from tqdm import tqdm

from se3_fast.data.featuriser import QM9_FEATURISER, Featuriser
from se3_fast.data.molecule_arrays import ELEMENTS, MoleculeArrays, stack_molecules
from se3_fast.data.molecule_data import MoleculeDataModule
from se3_fast.data.molecules import NUM_EDGE_FEATURES, NUM_NODE_FEATURES, DataError, MoleculeDataset, Molecules
from se3_fast.predict.describe import described, unserved
from se3_fast.predict.readers import read_file
from se3_fast.predict.records import first_line

_SUFFIXES = (".csv", ".sdf", ".sd")
_SHARES = (0.8, 0.1)  # to train on and to validate on; the rest tests
_MOST_REASONS = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Read:
    """Molecules that can be trained on, with the SMILES of their scaffolds, and why others cannot."""

    arrays: list[MoleculeArrays]
    targets: list[float]
    scaffolds: list[str]
    reasons: Counter[str]


class OwnMoleculesDataModule(MoleculeDataModule):
    """Molecules of a CSV file with SMILES, or of an SDF, for one number of each.

    Molecules without that number, and those that cannot be described (elements other than H, C, N, O, F; charges, radicals), are
    left out, and how many is logged. Molecules without positions in space get conformers.

    Args:
        path: The file, `.csv`, `.sdf` or `.sd`.
        target: Column of a CSV file, or property of an SDF.
        unit: Of the target, or empty.
        smiles_column: Of a CSV file.
        split: 'random'; or 'scaffold': molecules of one Murcko scaffold stand in one set; the largest groups train.
        batch_size: Molecules in a batch, on every process.
        seed: Of the split, the conformers and the training order; None means 0.
        num_degrees: Degrees of the model's features, for `precompute_bases`.
        precompute_bases: Compute the geometry of all edges once, and keep it in memory.
        featuriser: Makes the features.
        device: Where the data lie and batches are made; the host, if the device has no room for them.

    Raises:
        DataError: There are too few molecules with a number.
        ValueError: The file is none of its kind, or has no such column.
        OSError: It cannot be read.
    """

    def __init__(
        self,
        path: Path,
        target: str,
        unit: str = "",
        smiles_column: str = "smiles",
        split: str = "random",
        batch_size: int = 240,
        seed: int | None = None,
        num_degrees: int = 4,
        precompute_bases: bool = False,
        featuriser: Featuriser = QM9_FEATURISER,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.path = path
        self.task = target
        self.unit = unit
        self.featuriser = featuriser
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"{path}: expected a file with a number for each molecule, whose name ends in {', '.join(_SUFFIXES)}")
        read = _read(path, target, smiles_column, featuriser, self.seed)
        if not read.arrays:
            raise DataError(
                f"{path}: expected molecules with a number {target!r}, got none: {_summary(read.reasons) or 'it is empty'}"
            )
        if read.reasons:
            _log.info("%d molecules of %s are left out: %s", read.reasons.total(), path, _summary(read.reasons))
        parts = _random_split(len(read.arrays), self.seed) if split == "random" else _scaffold_split(read.scaffolds)
        _log.info("%s: %s molecules to train on, validate on and test on", path, ", ".join(str(len(part)) for part in parts))
        self._molecules = MoleculeDataset(_joined(read))
        self.ds_train, self.ds_val, self.ds_test = (Subset(self._molecules, part) for part in parts)
        self._serve(num_degrees, precompute_bases, device)

    def __repr__(self) -> str:
        """Return file and target."""
        return f"OwnMolecules({self.path}, {self.task})"


def _read(path: Path, target: str, smiles_column: str, featuriser: Featuriser, seed: int) -> _Read:
    read = _Read([], [], [], Counter())
    with rdBase.BlockLogs():
        for record in tqdm(read_file(path, smiles_column, target), unit="molecule", disable=None, leave=False):
            molecule = record.molecule
            if not isinstance(molecule, Chem.Mol):
                read.reasons[record.fault or "no molecule"] += 1
                continue
            reason = unserved(molecule, ELEMENTS, 0) or ("" if record.target is not None else f"no number {target!r}")
            try:
                arrays = [] if reason else described(molecule, featuriser, seed=seed)[1]
            except (ValueError, RuntimeError) as error:
                reason = first_line(error)
            if reason:
                read.reasons[reason] += 1
                continue
            read.arrays.append(arrays[0])
            read.targets.append(float(record.target or 0.0))
            read.scaffolds.append(MurckoScaffold.MurckoScaffoldSmiles(mol=molecule))
    return read


def _summary(reasons: Counter[str]) -> str:
    parts = [f"{reason} ({count})" for reason, count in reasons.most_common(_MOST_REASONS)]
    return "; ".join([*parts, "..."] if len(reasons) > _MOST_REASONS else parts)


def _random_split(count: int, seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(count).tolist()
    train, validation = (int(share * count) for share in _SHARES)
    return [order[:train], order[train : train + validation], order[train + validation :]]


def _scaffold_split(scaffolds: Sequence[str]) -> list[list[int]]:
    """Groups of equal scaffolds, the largest first, each to the first set that has room for it; the test set has always."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, scaffold in enumerate(scaffolds):
        groups[scaffold].append(number)
    rooms = [share * len(scaffolds) for share in _SHARES] + [float(len(scaffolds))]
    parts: list[list[int]] = [[], [], []]
    for group in sorted(groups.values(), key=lambda group: (-len(group), group[0])):
        part = next(part for part, room in zip(parts, rooms, strict=True) if len(part) + len(group) <= room)
        part.extend(group)
    return parts


def _joined(read: _Read) -> Molecules:
    arrays: dict[str, Any] = stack_molecules(read.arrays, np.zeros((len(read.arrays), 1)))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name != "targets"}
    tensors["node_attr"] = tensors["node_attr"][:, :NUM_NODE_FEATURES].contiguous()
    tensors["edge_attr"] = tensors["edge_attr"][:, :NUM_EDGE_FEATURES].contiguous()
    return Molecules(numbers=torch.arange(len(read.arrays)), targets=torch.tensor(read.targets), **tensors)
