"""Make a named model of a checkpoint: `se3-fast models pack results/model.pth --name mine --folder models`.

Models of the sample and of QM9 are evaluated again, with rounded weights. Of others, which were trained on a file of one's own, the
data are not at hand: their weights stay as they are, and the card has the errors that the training found.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from se3_fast.commands.pack_model import main
from se3_fast.data import QM9DataModule
from se3_fast.data.objective import Objective
from se3_fast.data.tasks import TASK_UNITS
from se3_fast.files import SAFETENSORS_SUFFIX, atomic_file, check_writable
from se3_fast.training.calibration import Calibration
from se3_fast.training.checkpoint import read_checkpoint, write_safetensors
from se3_fast.training.distributed import World
from se3_fast.training.errors import CheckpointError, run_command, user_errors
from se3_fast.training.kinds import check_written_by
from se3_fast.training.model_config import model_of_checkpoint
from se3_fast.training.uncertainty import last_layer_uncertainties, pooled_features
from se3_fast.unit_text import with_unit

from . import CHECKSUMS, file_checksum

_BATCH_SIZE = 128
_SETS = {
    "sample": "the sample data set of the package (GFN2-xTB, conformers by ETKDG and MMFF94)",
    "qm9": "QM9 (DFT, B3LYP/6-31G(2df,p), geometries of the same method)",
}


def pack(source: Path, name: str, folder: Path, data_dir: Path, note: str) -> None:
    """Write a checkpoint as a named model: weights, their uncertainty, a card with errors, a checksum.

    Args:
        source: A checkpoint of `se3_fast.train`.
        name: Of the model.
        folder: Where the three files go; `SHA256SUMS` keeps the lines of other models.
        data_dir: Folder of `qm9_edge.npz`, for models trained on it.
        note: A sentence for the card, about the training.

    Raises:
        CheckpointError: It is none, is not of a finished training, or has too few validation molecules for an uncertainty.
        OSError: A file cannot be written.
    """
    checkpoint = read_checkpoint(source)
    check_written_by("se3_fast.train", checkpoint, source)
    path = folder / f"{name}{SAFETENSORS_SUFFIX}"
    check_writable(path)
    if checkpoint.get("data", {}).get("dataset") in _SETS:
        packed, card = _rounded(source, name, checkpoint, data_dir, note)
    else:
        packed, card = checkpoint, _card_of_own(source, name, checkpoint, note)
    write_safetensors(path, packed)
    _write_text(folder / f"{name}.md", card)
    _add_checksum(path)


def _rounded(source: Path, name: str, checkpoint: dict[str, Any], data_dir: Path, note: str) -> tuple[dict[str, Any], str]:
    """The checkpoint with weights in half precision and the uncertainty of those, and its card with their errors."""
    state_dict = {key: tensor.half() for key, tensor in checkpoint["state_dict"].items()}
    model = model_of_checkpoint(source, checkpoint["model_config"], state_dict).eval()
    data = checkpoint["data"]
    data_module = QM9DataModule(data_dir, data["task"], _BATCH_SIZE, dataset=data["dataset"])
    cpu = torch.device("cpu")
    (uncertainty,) = last_layer_uncertainties(model, data_module, World(cpu))
    if uncertainty is None:
        raise CheckpointError(f"{source}: expected a model with finite features and more molecules to validate it on")
    features, errors = pooled_features(model, data_module.test_dataloader(), cpu)
    deviations = uncertainty.deviations(features) * data["std"]
    card = _card(name, checkpoint, errors * data["std"], deviations, note)
    return {**checkpoint, "state_dict": state_dict, "uncertainty": uncertainty.description()}, card


def _card_of_own(source: Path, name: str, checkpoint: dict[str, Any], note: str) -> str:
    missing = [entry for entry in ("data", "featuriser", "domain", "results") if entry not in checkpoint]
    if missing:
        raise CheckpointError(f"{source}: expected a checkpoint of a training that is finished; missing: {', '.join(missing)}")
    data, results = checkpoint["data"], checkpoint["results"]
    objective = Objective.of_data(data)
    units = {one.name: one.unit for one in objective.properties}
    errors = [_told(property_name, units[property_name], score) for property_name, score in results["test"].items()]
    return f"""# {name}

{data["task"]} of molecules, {errors[0]}

| | |
|---|---|
| trained on | {results["num_train"]:,} molecules of `{Path(data["dataset"]).name}` |
{_rows(checkpoint, note)}
| test error | {"; ".join(errors)} |
"""


def _told(name: str, unit: str, score: dict[str, float]) -> str:
    if "roc_auc" in score:
        error = f"ROC-AUC of {name}: {score['roc_auc']:.4g}"
    else:
        error = f"MAE of {name}: {with_unit(format(score['mae'], '.4g'), unit)}"
    return f"test {error} ({score['known']:.0f} molecules)"


def _rows(checkpoint: dict[str, Any], note: str) -> str:
    """Rows of a card about the training, the model and its molecules."""
    config, domain = checkpoint["model_config"], checkpoint["domain"]
    parameters = sum(tensor.numel() for tensor in checkpoint["state_dict"].values())
    heavy_atoms = f"{domain['fewest_heavy_atoms']} to {domain['most_heavy_atoms']}"
    elements = ", ".join(map(str, domain["elements"]))
    return f"""| training | {" ".join([f"{checkpoint['epoch']} epochs, seed {checkpoint['seed']}.", note]).strip()} |
| model | {config["num_layers"]} layers, degrees 0 to {config["num_degrees"] - 1}, {config["num_channels"]} channels; \
{parameters:,} parameters |
| molecules | neutral; elements of atomic numbers {elements}; {heavy_atoms} heavy atoms |"""


def _card(name: str, checkpoint: dict[str, Any], errors: np.ndarray, deviations: np.ndarray, note: str) -> str:
    data = checkpoint["data"]
    unit = TASK_UNITS[data["task"]]
    told = Calibration.of(errors, deviations)
    return f"""# {name}

{data["task"]} ({unit}) of molecules of {_SETS[data["dataset"]]}: test MAE {np.abs(errors).mean():.4g} {unit}

| | |
|---|---|
| trained on | {_SETS[data["dataset"]]}; the published split |
{_rows(checkpoint, note)}
| weights | in half precision |
| test error | MAE {np.abs(errors).mean():.4g} {unit}, RMSE {np.sqrt((errors**2).mean()):.4g} {unit}, {len(errors):,} molecules |
| uncertainty | last layer; {told.within_one:.1%} of the test errors are within one, {told.within_two:.1%} within two; \
rank correlation with the absolute error {told.rank_correlation:.2f} |
| licence | MIT, as the package |

Numbers are those of the method that the training data were computed with, for positions of the method that their positions come
from. Molecules outside of this are served with a warning, or not at all: see `docs/predict.md`.
"""


def _add_checksum(path: Path) -> None:
    sums = path.with_name(CHECKSUMS)
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.exists() else []
    others = [line for line in lines if line.split()[-1:] != [path.name]]
    _write_text(sums, "\n".join(sorted([*others, f"{file_checksum(path)}  {path.name}"], key=lambda line: line.split()[-1])) + "\n")


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""

    def action() -> None:
        with user_errors():
            pack(arguments.source, arguments.name, arguments.folder, arguments.data_dir, arguments.note)

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
