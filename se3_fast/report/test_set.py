"""The report of a model on the test set of a data module: after a training, or when it is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rdkit import Chem, rdBase
from torch.utils.data import Subset

from se3_fast.data.molecule_arrays import MoleculeArrays, molecule_of_arrays
from se3_fast.data.molecule_data import MoleculeDataModule
from se3_fast.data.molecules import MoleculeDataset, Molecules
from se3_fast.data.objective import Objective
from se3_fast.model import SE3TransformerPooled
from se3_fast.predict.predictor import PredictedValue, Prediction
from se3_fast.training.uncertainty import LastLayerUncertainty, PooledOutputs, pooled_outputs

from .predictions import PredictionReport, Subject


def write_test_report(
    path: Path,
    model: SE3TransformerPooled,
    data_module: MoleculeDataModule,
    subject: Subject,
    uncertainties: Sequence[LastLayerUncertainty | None],
    device: torch.device,
) -> None:
    """Predict the test set, or this process's share of it, and write a page about that.

    Args:
        path: The page.
        model: On the device.
        data_module: Its test set.
        subject: What the report is of; its objective says how the model's outputs are read.
        uncertainties: Of each property.
        device: Where the model is.

    Raises:
        OSError: The page cannot be written.
    """
    loader = data_module.test_dataloader()
    found = pooled_outputs(model, loader, device, most=None)
    test_set = cast("Subset[Molecules]", data_module.ds_test)
    numbers = np.asarray(test_set.indices, dtype=np.int64)[cast(Any, loader.sampler).order()]
    values = _values(found, subject.objective, data_module.objective, uncertainties)
    report = PredictionReport(subject)
    with rdBase.BlockLogs():  # of valences that look wrong without charges
        for row, number in enumerate(numbers.tolist()):
            molecule = _molecule(cast(MoleculeDataset, test_set.dataset)[number])
            name = "" if molecule is None else Chem.MolToSmiles(Chem.RemoveHs(molecule, sanitize=False))
            report.add(Prediction("", number + 1, name, values[row], conformers=1, molecule=molecule))
        report.write(path)


def _values(
    found: PooledOutputs, learned: Objective, known: Objective, uncertainties: Sequence[LastLayerUncertainty | None]
) -> list[dict[str, PredictedValue]]:
    """What is predicted and known of each molecule."""
    predictions = learned.restore(found.outputs)  # [M, P]
    targets = found.targets * known.stds + known.means  # [M, P]
    deviations = np.full_like(predictions, np.nan)
    for column, one in enumerate(uncertainties):
        if one is not None and not learned.is_classification:
            deviations[:, column] = one.deviations(found.features) * learned.properties[column].std
    return [
        {
            name: PredictedValue(
                value=float(predictions[row, column]),
                uncertainty=_known(deviations[row, column]),
                target=_known(targets[row, column]),
            )
            for column, name in enumerate(learned.names)
        }
        for row in range(len(predictions))
    ]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _molecule(alone: Molecules) -> Chem.Mol | None:
    """The molecule; None where its features are not those of this package."""
    if alone.node_attr.is_floating_point() or alone.edge_attr.is_floating_point():
        return None
    names = ("node_attr", "node_pos", "edge_attr", "src", "dst")
    return molecule_of_arrays(MoleculeArrays(**{name: getattr(alone, name).numpy() for name in names}))
