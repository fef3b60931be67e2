"""A trained model that is given molecules and says numbers, or why it does not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem

from se3_fast import Graph, SE3TransformerPooled
from se3_fast.data.domain import Domain
from se3_fast.data.featuriser import Featuriser, featuriser_of_checkpoint
from se3_fast.data.molecule_arrays import ELEMENTS, MoleculeArrays
from se3_fast.data.molecules import NUM_NODE_FEATURES
from se3_fast.data.objective import Objective
from se3_fast.devices import device_of
from se3_fast.files import path_of
from se3_fast.layers.inputs import check_whole
from se3_fast.pretrained import find_model
from se3_fast.training.checkpoint import read_checkpoint
from se3_fast.training.errors import CheckpointError
from se3_fast.training.kinds import check_written_by
from se3_fast.training.model_config import model_of_checkpoint
from se3_fast.training.uncertainty import LastLayerUncertainty, uncertainties_of_entry

from .describe import described, not_in_training, unserved
from .options import BATCH_SIZE
from .readers import read_smiles
from .records import Record, RecordError, first_line, molecule_of_ase

_MOST_ATOMS_OF_BATCH = 8192
_NEEDED = ("model_config", "data")


@dataclass(frozen=True)
class PredictedValue:
    """What a model says of one property of a molecule.

    Attributes:
        value: In the property's unit, or the probability of a 1; the mean over the conformers. None if there is an error.
        uncertainty: Standard deviation of its error that is expected, in the property's unit; the mean over the conformers. None
            if there is no value, the checkpoint has none, or the value is a probability.
        spread: Standard deviation over the conformers; None for a single one.
        target: The known value, where the record has one.
    """

    value: float | None = None
    uncertainty: float | None = None
    spread: float | None = None
    target: float | None = None


@dataclass(frozen=True)
class Prediction:
    """What a model says of one molecule.

    Attributes:
        file: Where the molecule stands, or empty.
        number: Of its line or place, from 1.
        name: Its title, or empty.
        values: By the name of each property.
        conformers: How many sets of positions were predicted for.
        outside: How the molecule differs from those that the model was trained on; empty if nothing is seen.
        error: Why there are no values, or empty.
        molecule: With the first of the positions; None for molecules that were no RDKit molecules or could not be read.
    """

    file: str
    number: int
    name: str
    values: Mapping[str, PredictedValue]
    conformers: int = 0
    outside: str = ""
    error: str = ""
    molecule: Chem.Mol | None = None

    @property
    def value(self) -> float | None:
        """That of the only property, or the first."""
        return self._first().value

    @property
    def uncertainty(self) -> float | None:
        """That of the only property, or the first."""
        return self._first().uncertainty

    @property
    def spread(self) -> float | None:
        """That of the only property, or the first."""
        return self._first().spread

    @property
    def target(self) -> float | None:
        """That of the only property, or the first."""
        return self._first().target

    def _first(self) -> PredictedValue:
        return next(iter(self.values.values()))


@dataclass(frozen=True)
class _Described:
    """A record with arrays for each conformer; none if there is an error."""

    record: Record
    arrays: list[MoleculeArrays]
    outside: str = ""
    error: str = ""
    molecule: Chem.Mol | None = None


class Predictor:
    """Predicts the properties that a model has learned for molecules.

    Args:
        model: The model; it is put on the device and in evaluation mode.
        objective: The properties, and how the model's outputs are read.
        featuriser: The function that makes the features that the model was trained on.
        domain: What the training set spans; None if it is not known.
        uncertainties: Of each property; None: it is not known of any.
        device: Where the model computes.

    Attributes:
        objective: The properties.
        domain: What the training set spans, or None.
        uncertainties: Of each property, or None.
    """

    def __init__(
        self,
        model: SE3TransformerPooled,
        objective: Objective,
        featuriser: Featuriser,
        domain: Domain | None,
        uncertainties: Sequence[LastLayerUncertainty | None] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.objective = objective
        self.domain = domain
        self.uncertainties = uncertainties or [None] * len(objective.properties)
        self._device = device_of(device)
        self._model = model.to(self._device).eval()
        self._featuriser = featuriser

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Predictor:
        """The predictor of a checkpoint of `se3_fast.train`, or of a trained model by its name.

        Args:
            path: A file; or, if there is none of this name and it has no suffix, one of `se3_fast.pretrained.model_names()`.
            device: Where the model computes.

        Raises:
            CheckpointError: It is none, is damaged, or does not say how features or numbers are made; in one line.
            ValueError: `path` is no path, or there is no such device.
        """
        path = path_of("path", path)
        if not path.exists() and len(path.parts) == 1 and not path.suffix:
            path = find_model(path.name)
        checkpoint = read_checkpoint(path)
        check_written_by("se3_fast.train", checkpoint, path)
        try:
            missing = [name for name in _NEEDED if name not in checkpoint]
            if missing:
                raise ValueError(f"missing: {', '.join(missing)}")
            objective = Objective.of_data(checkpoint["data"])
            featuriser = featuriser_of_checkpoint(checkpoint)
            model = model_of_checkpoint(path, checkpoint["model_config"], checkpoint["state_dict"])
            config, count = checkpoint["model_config"], len(objective.properties)
            if config["output_dim"] != count:
                raise ValueError(f"model_config: output_dim: expected {count}, one for each property, got {config['output_dim']}")
            width = config["fiber_out"][0]
            entry = checkpoint.get("uncertainty")
            uncertainties = None if entry is None else uncertainties_of_entry(entry, count, width)
        except ValueError as error:
            raise _faulty(path, error) from None
        domain = Domain.of_description(checkpoint["domain"]) if "domain" in checkpoint else None
        return cls(model, objective, featuriser, domain, uncertainties, device)

    def predict(
        self, molecules: Iterable[Any], num_conformers: int = 1, seed: int = 0, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Predict for RDKit molecules, ASE atoms, SMILES, or `MoleculeArrays`, in their order.

        Args:
            molecules: Of those without positions in space conformers are made.
            num_conformers: Of each such molecule.
            seed: Of the conformers.
            batch_size: Molecules that are computed together, at most.

        Raises:
            TypeError: Something else is among them, or it is one molecule: a text would be taken letter by letter.
            ValueError: `num_conformers` or `batch_size` is no whole number above 0, or `seed` is none from 0 on.
        """
        if isinstance(molecules, str | Chem.Mol | MoleculeArrays):
            raise TypeError(f"molecules: expected a list, as in predict([molecule]), got one {type(molecules).__name__}")
        records = (_record_of(number, molecule) for number, molecule in enumerate(molecules, 1))
        return list(self.predict_records(records, num_conformers, seed, batch_size))

    def predict_records(
        self, records: Iterable[Record], num_conformers: int = 1, seed: int = 0, batch_size: int = BATCH_SIZE
    ) -> Iterator[Prediction]:
        """Predict for records as they come, in memory that does not grow with their number; arguments as for :meth:`predict`."""
        check_whole("num_conformers", num_conformers, 1)
        check_whole("batch_size", batch_size, 1)
        check_whole("seed", seed, 0)
        waiting: list[_Described] = []
        count = atoms = 0
        for record in records:
            waiting.append(self._describe(record, num_conformers, seed))
            count += max(len(waiting[-1].arrays), 1)
            atoms += sum(len(arrays.node_attr) for arrays in waiting[-1].arrays)
            if count >= batch_size or atoms >= _MOST_ATOMS_OF_BATCH:
                yield from self._predict_batch(waiting)
                waiting, count, atoms = [], 0, 0
        yield from self._predict_batch(waiting)

    def _describe(self, record: Record, num_conformers: int, seed: int) -> _Described:
        if record.molecule is None:
            return _Described(record, [], error=record.fault)
        if isinstance(record.molecule, MoleculeArrays):
            return self._describe_arrays(record, record.molecule)
        reason = self._unserved(record.molecule)
        if reason:
            return _Described(record, [], outside=reason, error=reason, molecule=record.molecule)
        try:
            molecule, arrays = described(record.molecule, self._featuriser, num_conformers, seed)
        except (ValueError, RuntimeError) as error:
            return _Described(record, [], error=first_line(error), molecule=record.molecule)
        return _Described(record, arrays, "; ".join(self._reasons_outside(molecule, arrays[0])), molecule=molecule)

    def _describe_arrays(self, record: Record, arrays: MoleculeArrays) -> _Described:
        unknown = set(arrays.node_attr[:, NUM_NODE_FEATURES - 1].tolist()) - set(self._elements())
        if unknown:
            reason = not_in_training(unknown)
            return _Described(record, [], outside=reason, error=reason)
        reasons = self.domain.reasons_outside(arrays.node_attr, arrays.edge_attr, arrays.src) if self.domain else []
        return _Described(record, [arrays], "; ".join(reasons))

    def _elements(self) -> Iterable[int]:
        return self.domain.elements if self.domain else ELEMENTS

    def _unserved(self, molecule: Chem.Mol) -> str:
        """What the features cannot express about a molecule, or empty: such a molecule would be taken for another."""
        return unserved(molecule, self._elements(), self.domain.charge if self.domain else 0)

    def _reasons_outside(self, molecule: Chem.Mol, arrays: MoleculeArrays) -> list[str]:
        pieces = len(Chem.GetMolFrags(molecule))
        most = self.domain.most_pieces if self.domain else 1
        known = "1" if most == 1 else f"at most {most}"
        reasons = [f"{pieces} pieces without a bond between them, training has {known}"] if pieces > most else []
        if self.domain is not None:
            reasons += self.domain.reasons_outside(arrays.node_attr, arrays.edge_attr, arrays.src)
        return reasons

    def _predict_batch(self, batch: list[_Described]) -> Iterator[Prediction]:
        molecules = [arrays for one in batch for arrays in one.arrays]
        values, features = self._values(molecules) if molecules else (np.empty((0, 1)), np.empty((0, 1)))
        first = 0
        for one in batch:
            part = slice(first, first + len(one.arrays))
            yield self._prediction(one, values[part], features[part])
            first = part.stop

    @torch.inference_mode()
    def _values(self, molecules: list[MoleculeArrays]) -> tuple[np.ndarray, np.ndarray]:
        """The properties of molecules, [M, P] float64, in their units, and their pooled features [M, W] float64."""
        n_node = [len(molecule.node_attr) for molecule in molecules]
        shift = np.repeat(np.cumsum(n_node) - n_node, [len(molecule.src) for molecule in molecules])  # [E]
        src, dst = (
            torch.from_numpy(np.concatenate([getattr(molecule, name) for molecule in molecules]) + shift) for name in ("src", "dst")
        )
        dtype = next(self._model.parameters()).dtype  # float64, where that was the default when the model was made
        pos = torch.from_numpy(np.concatenate([molecule.node_pos for molecule in molecules])).to(dtype)  # [N, 3]
        node_attr = np.concatenate([molecule.node_attr[:, :NUM_NODE_FEATURES] for molecule in molecules])  # [N, 6]
        edge_attr = np.concatenate([molecule.edge_attr for molecule in molecules])  # [E, 4]
        graph = Graph(src, dst, sum(n_node), n_node, [len(molecule.src) for molecule in molecules], {"pos": pos})
        graph.edata["rel_pos"] = pos[dst] - pos[src]  # [E, 3]
        node_feats = {"0": torch.from_numpy(node_attr).to(self._device, dtype).unsqueeze(-1)}  # [N, 6, 1]
        edge_feats = {"0": torch.from_numpy(edge_attr).to(self._device, dtype).unsqueeze(-1)}  # [E, 4, 1]
        features = self._model.transformer(graph.to(self._device), node_feats, edge_feats)  # [M, W]
        outputs = self._model.mlp(features)  # [M, P]
        return self.objective.restore(outputs.double().cpu().numpy()), features.double().cpu().numpy()

    def _prediction(self, one: _Described, values: np.ndarray, features: np.ndarray) -> Prediction:
        record, error = one.record, one.error
        if len(values) and not np.isfinite(values).all():
            error = "the model's number is not finite"
        is_served = len(values) > 0 and not error
        too_far = self._too_far(features) if is_served else ""
        return Prediction(
            file=record.file,
            number=record.number,
            name=record.name,
            values={
                learned.name: self._value(number, values, features if is_served else None, record)
                for number, learned in enumerate(self.objective.properties)
            },
            conformers=len(values),
            outside="; ".join(filter(None, [one.outside, too_far])),
            error=error,
            molecule=one.molecule,
        )

    def _value(self, number: int, values: np.ndarray, features: np.ndarray | None, record: Record) -> PredictedValue:
        """What is said of a property, with values [conformers, P] and features [conformers, W]; None: it is not served."""
        learned, uncertainty = self.objective.properties[number], self.uncertainties[number]
        target = record.number_in(learned.name)
        if features is None:
            return PredictedValue(target=target)
        deviation = None
        if uncertainty is not None and not self.objective.is_classification:
            deviation = learned.std * float(uncertainty.deviations(features).mean())
        return PredictedValue(
            value=float(values[:, number].mean()),
            uncertainty=deviation,
            spread=float(values[:, number].std(ddof=1)) if len(values) > 1 else None,
            target=target,
        )

    def _too_far(self, features: np.ndarray) -> str:
        """That pooled features [conformers, W] are unlike those of training, or empty."""
        for uncertainty in filter(None, self.uncertainties):
            distance, farthest = float(uncertainty.distances(features).mean()), uncertainty.farthest
            if distance > farthest:
                return f"features at distance {distance:.3g} from those of training, most others are within {farthest:.3g}"
        return ""


def _faulty(path: Path, error: ValueError) -> CheckpointError:
    """The error of a checkpoint, with the path before it and, where something is missing, what writes it."""
    text = str(error)
    if text.startswith("missing: "):
        return CheckpointError(
            f"{path}: expected a checkpoint that describes model, task and scale; {text} (python -m se3_fast.train "
            "--load_ckpt_path trains it on, and writes them)"
        )
    return error if isinstance(error, CheckpointError) else CheckpointError(f"{path}: {text}")


def _record_of(number: int, molecule: Any) -> Record:
    if isinstance(molecule, str):
        return replace(next(read_smiles([molecule])), number=number)
    if isinstance(molecule, MoleculeArrays):
        return Record(number=number, molecule=molecule)
    if isinstance(molecule, Chem.Mol):
        name = molecule.GetProp("_Name") if molecule.HasProp("_Name") else ""
        return Record(number=number, name=name, molecule=molecule)
    if hasattr(molecule, "get_atomic_numbers") and hasattr(molecule, "get_positions"):
        try:
            return Record(number=number, molecule=molecule_of_ase(molecule))
        except RecordError as error:
            return Record(number=number, fault=str(error))
    raise TypeError(
        f"molecule {number}: expected an RDKit molecule, ASE atoms, SMILES or MoleculeArrays, got {type(molecule).__name__}"
    )
