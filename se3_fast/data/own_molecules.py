"""Molecules of a table or an SDF of one's own, ready for training (needs the extra ``chem``)."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
from se3_fast.data.objective import CLASSIFICATION, REGRESSION
from se3_fast.predict.describe import described, unserved
from se3_fast.predict.readers import check_columns, read_file
from se3_fast.predict.records import Record, first_line

_SUFFIXES = (".csv", ".sdf", ".sd")
_SHARES = (0.8, 0.1)  # to train on and to validate on; the rest tests
_MOST_REASONS = 5
_SET_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
"""What a column may say of the set that a molecule belongs to; case does not matter."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Read:
    """Molecules that can be trained on, and why others cannot.

    Attributes:
        arrays: Of each molecule.
        targets: Of each molecule a number for each target, NaN where it is not known.
        smiles: Canonical, without hydrogen atoms.
        scaffolds: SMILES of the Murcko scaffolds.
        sets: Numbers of the sets that a column says, where one does.
        reasons: Why molecules are left out, and how many.
    """

    arrays: list[MoleculeArrays]
    targets: list[list[float]]
    smiles: list[str]
    scaffolds: list[str]
    sets: list[int]
    reasons: Counter[str]


class OwnMoleculesDataModule(MoleculeDataModule):
    """Molecules of a CSV file with SMILES, or of an SDF, with one or several targets.

    Molecules without any of the targets, and those that cannot be described (elements other than H, C, N, O, F; charges,
    radicals), are left out, and how many is logged. Molecules without positions in space get conformers. Of several targets a
    molecule need not have all.

    Args:
        path: The file, `.csv`, `.sdf` or `.sd`.
        targets: One or several columns of a CSV file, or properties of an SDF.
        units: Of the targets, as many; none: they have none.
        smiles_column: Of a CSV file.
        is_classification: Whether the targets are 0 or 1, whose probabilities are learned.
        split: 'random'; or 'scaffold': molecules of one Murcko scaffold stand in one set; the largest groups train.
        split_column: Column, or property, that says of each molecule train, validation or test; instead of `split`.
        batch_size: Molecules in a batch, on every process.
        seed: Of the split, the conformers and the training order; None means 0.
        num_degrees: Degrees of the model's features, for `precompute_bases`.
        precompute_bases: Compute the geometry of all edges once, and keep it in memory.
        featuriser: Makes the features.
        device: Where the data lie and batches are made; the host, if the device has no room for them.

    Raises:
        DataError: There are too few molecules with a number, numbers other than 0 and 1 for a classification, or only one scaffold
            for a split by scaffold.
        ValueError: The file is none of its kind, or has no such column; or units are not as many as targets.
        OSError: It cannot be read.
    """

    def __init__(
        self,
        path: Path,
        targets: str | Sequence[str],
        units: Sequence[str] = (),
        smiles_column: str = "smiles",
        is_classification: bool = False,
        split: str = "random",
        split_column: str | None = None,
        batch_size: int = 240,
        seed: int | None = None,
        num_degrees: int = 4,
        precompute_bases: bool = False,
        featuriser: Featuriser = QM9_FEATURISER,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(batch_size=batch_size, seed=seed)
        self.path = path
        names = [targets] if isinstance(targets, str) else list(targets)
        self._kind = CLASSIFICATION if is_classification else REGRESSION
        self._named_units = list(zip(names, _units_of(names, units), strict=True))
        self.featuriser = featuriser
        if path.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"{path}: expected a file with a number for each molecule, whose name ends in {', '.join(_SUFFIXES)}")
        read = _read(path, names, smiles_column, split_column, featuriser, self.seed)
        if not read.arrays:
            raise DataError(
                f"{path}: expected molecules with a number {_either(names)}, got none: {_summary(read.reasons) or 'it is empty'}"
            )
        if is_classification:
            _check_classes(path, names, read.targets)
        if read.reasons:
            _log.info("%d molecules of %s are left out: %s", read.reasons.total(), path, _summary(read.reasons))
        if split_column is not None:
            parts = [[number for number, one in enumerate(read.sets) if one == part] for part in range(3)]
        else:
            parts = _random_split(len(read.arrays), self.seed) if split == "random" else _scaffold_split(path, read.scaffolds)
        _log.info("%s: %s molecules to train on, validate on and test on", path, ", ".join(str(len(part)) for part in parts))
        _tell_repeated(path, read.smiles, parts)
        self._molecules = MoleculeDataset(_joined(read))
        self.split = f"{split}, seed {self.seed}" if split_column is None else f"from the column {split_column!r}"
        self.ds_train, self.ds_val, self.ds_test = (Subset(self._molecules, part) for part in parts)
        self._serve(num_degrees, precompute_bases, device)

    def description(self) -> dict[str, Any]:
        """Plain values that checkpoints carry: also `training_set`, by which a run sees that its table was changed."""
        return {**super().description(), "training_set": self._training_set()}

    def _training_set(self) -> str:
        """A checksum of which molecules are trained on, their numbers of atoms and bonds, and their targets."""
        numbers = torch.tensor(cast(Subset[Any], self.ds_train).indices)
        molecules = self._molecules.molecules
        parts = (numbers, molecules.n_node[numbers], molecules.n_edge[numbers], molecules.targets[numbers])
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]

    def __repr__(self) -> str:
        """Return file and target."""
        return f"OwnMolecules({self.path}, {self.task})"


def _units_of(names: Sequence[str], units: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        raise ValueError(f"target: expected different ones, got {', '.join(names)}")
    if units and len(units) != len(names):
        raise ValueError(f"unit: expected one for each of {len(names)} targets, or none, got {len(units)}")
    return units or [""] * len(names)


def _read(
    path: Path, names: Sequence[str], smiles_column: str, split_column: str | None, featuriser: Featuriser, seed: int
) -> _Read:
    read = _Read([], [], [], [], [], Counter())
    columns = [*names, *([] if split_column is None else [split_column])]
    check_columns(path, smiles_column, columns)
    with rdBase.BlockLogs():
        for record in tqdm(read_file(path, smiles_column, columns), unit="molecule", disable=None, leave=False):
            targets = [float("nan") if number is None else number for number in map(record.number_in, names)]
            reason = _unusable(record, names, split_column)
            try:
                arrays = [] if reason else described(record.molecule, featuriser, seed=seed)[1]
            except (ValueError, RuntimeError) as error:
                reason = first_line(error)
            if reason:
                read.reasons[reason] += 1
                continue
            read.arrays.append(arrays[0])
            read.targets.append(targets)
            read.smiles.append(Chem.MolToSmiles(Chem.RemoveHs(record.molecule)))
            read.scaffolds.append(MurckoScaffold.MurckoScaffoldSmiles(mol=record.molecule))
            read.sets.append(_SET_NAMES.get(_set_name(record, split_column), -1))
    return read


def _unusable(record: Record, names: Sequence[str], split_column: str | None) -> str:
    """Why nothing can be learned of a record, or empty."""
    if not isinstance(record.molecule, Chem.Mol):
        return record.fault or "no molecule"
    reason = unserved(record.molecule, ELEMENTS, 0)
    if not reason and all(record.number_in(name) is None for name in names):
        reason = f"no number {_either(names)}"
    if not reason and split_column is not None and _set_name(record, split_column) not in _SET_NAMES:
        got = record.columns.get(split_column, "")
        reason = f"{split_column}: expected train, validation or test, got {got!r:.50}"
    return reason


def _set_name(record: Record, split_column: str | None) -> str:
    return "" if split_column is None else record.columns.get(split_column, "").strip().lower()


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _check_classes(path: Path, names: Sequence[str], targets: Sequence[Sequence[float]]) -> None:
    for name, column in zip(names, zip(*targets, strict=True), strict=True):
        other = next((value for value in column if value not in (0.0, 1.0) and not np.isnan(value)), None)
        if other is not None:
            raise DataError(f"{path}: {name}: expected 0 or 1 for a classification, got {other:g}")


def _summary(reasons: Counter[str]) -> str:
    parts = [f"{reason} ({count})" for reason, count in reasons.most_common(_MOST_REASONS)]
    return "; ".join([*parts, "..."] if len(reasons) > _MOST_REASONS else parts)


def _tell_repeated(path: Path, smiles: Sequence[str], parts: Sequence[Sequence[int]]) -> None:
    """Warn of molecules that are trained on and stand in another set as well."""
    trained = {smiles[number] for number in parts[0]}
    others = [number for part in parts[1:] for number in part]
    repeated = sum(smiles[number] in trained for number in others)
    if repeated:
        _log.warning(
            "%s: %d of the %d molecules to validate and test on are the same as molecules to train on, whose numbers are known: "
            "their errors say too little",
            path,
            repeated,
            len(others),
        )


def _random_split(count: int, seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(count).tolist()
    train, validation = (int(share * count) for share in _SHARES)
    return [order[:train], order[train : train + validation], order[train + validation :]]


def _scaffold_split(path: Path, scaffolds: Sequence[str]) -> list[list[int]]:
    """Groups of equal scaffolds, the largest first, each to the first set that has room for it.

    The training set has room for the first group, however large, and the test set for all.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, scaffold in enumerate(scaffolds):
        groups[scaffold].append(number)
    if len(groups) == 1:
        only = f"{scaffolds[0]!r}" if scaffolds[0] else "none, as they have no rings"
        raise DataError(
            f"{path}: expected molecules of different scaffolds for a split by scaffold, got {len(scaffolds)} of {only}"
        )
    rooms = [share * len(scaffolds) for share in _SHARES] + [float(len(scaffolds))]
    largest, *others = sorted(groups.values(), key=lambda group: (-len(group), group[0]))
    parts: list[list[int]] = [list(largest), [], []]
    for group in others:
        part = next(part for part, room in zip(parts, rooms, strict=True) if len(part) + len(group) <= room)
        part.extend(group)
    return parts


def _joined(read: _Read) -> Molecules:
    arrays: dict[str, Any] = stack_molecules(read.arrays, np.zeros((len(read.arrays), 1)))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if name != "targets"}
    tensors["node_attr"] = tensors["node_attr"][:, :NUM_NODE_FEATURES].contiguous()
    tensors["edge_attr"] = tensors["edge_attr"][:, :NUM_EDGE_FEATURES].contiguous()
    # As the table has them: what is left of large numbers when their mean is subtracted would be rounded away in float32.
    targets = torch.tensor(read.targets, dtype=torch.float64)  # [M, P]
    return Molecules(numbers=torch.arange(len(read.arrays)), targets=targets.squeeze(1), **tensors)
