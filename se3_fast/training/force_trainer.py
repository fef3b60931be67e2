"""Training a force field: the loop of :class:`Trainer` with a loss on energies and forces."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from se3_fast.data.force_frames import ForceDataModule
from se3_fast.forces import ForceField, energy_and_forces, energy_forces_and_dipoles, energy_forces_and_stress

from .distributed import World
from .evaluation import Evaluation, move_batch
from .options import TrainingOptions
from .plots import plot_learning_curve, plot_parity
from .report import plots_may_fail
from .trainer import Trainer, TrainingResult

_LABELS = ("energies", "forces", "stress", "dipoles")
_EVALUATED = (*_LABELS, *(f"known_{name}" for name in _LABELS), "references")


@dataclass(kw_only=True)
class ForceEvaluation(Evaluation):
    """Errors of forces and energies. The inherited fields are those of force components, in eV/Angstrom.

    Attributes:
        energies: The same of energies, in eV per molecule. Their mean predictor is the sum of the atoms' reference energies; that
            of forces predicts none, so that its error is the mean absolute component.
        stress: The same of stress components, in eV/Angstrom^3; None: no frame has a stress. Their mean predictor is none, too.
        dipole: The same of dipole components, in e Angstrom; None: dipoles are not asked for. Their mean predictor is none, too.
    """

    energies: Evaluation
    stress: Evaluation | None = None
    dipole: Evaluation | None = None


class ForceTrainer(Trainer):
    """Trains a force field on absolute errors of energies, forces, stress and dipoles, over the mean absolute force of training.

    Frames add to the part of the loss whose label they have.

    Args:
        model: The force field. Its reference energies and scale are set from the training frames.
        data_module: The frames.
        options: What the run was told; mixed precision is not used.
        energy_weight: Weight of the mean absolute error of the energy of a molecule.
        force_weight: Weight of the mean absolute error of the force components, over all orientations.
        stress_weight: Weight of the mean absolute error of the stress components, in eV/Angstrom^3.
        dipole_weight: Weight of the mean absolute error of the dipole components, in e Angstrom.
        world: The processes of the run; None: this one alone, on the CPU.
        metadata: As for :class:`Trainer`.
        resume_from: Checkpoint of an earlier run, which this one goes on from.

    Raises:
        CheckpointError, ValueError, ImportError, OSError: As for :class:`Trainer`.
    """

    def __init__(
        self,
        model: ForceField,
        data_module: ForceDataModule,
        options: TrainingOptions,
        energy_weight: float = 0.1,
        force_weight: float = 1.0,
        stress_weight: float = 0.0,
        dipole_weight: float = 0.0,
        world: World | None = None,
        metadata: dict[str, Any] | None = None,
        resume_from: Path | None = None,
    ) -> None:
        if energy_weight < 0 or force_weight < 0 or energy_weight + force_weight == 0:
            raise ValueError(
                f"energy_weight and force_weight: expected none below 0 and one above, got {energy_weight} and {force_weight}"
            )
        if stress_weight < 0 or (stress_weight > 0 and not data_module.has_stresses):
            came = f"{stress_weight} and frames without stress" if stress_weight > 0 else stress_weight
            raise ValueError(f"stress_weight: expected 0, or a number above and frames with stress, got {came}")
        if dipole_weight < 0 or (dipole_weight > 0 and not (data_module.has_dipoles and model.has_dipole)):
            came = f"{dipole_weight} without them" if dipole_weight > 0 else dipole_weight
            raise ValueError(
                f"dipole_weight: expected 0, or a number above with frames and a force field that have dipoles, got {came}"
            )
        # The smallest scale is for frames whose forces are all zero, such as single atoms.
        known = data_module.statistics
        model.set_scale(known.energies.of_elements(), max(known.mean_absolute_force, 1e-3))
        self.energy_weight, self.force_weight = energy_weight, force_weight
        self.stress_weight, self.dipole_weight = stress_weight, dipole_weight
        self.force_field = model
        super().__init__(model, data_module, options, world, metadata, resume_from)

    def batch_loss(self, model: nn.Module, batch: Any, num_padding_graphs: int = 0) -> Tensor:
        """The loss [] of a batch of :class:`ForceDataModule`; frames are not padded."""
        graph, known_forces, known_energies, *more = batch
        if self.dipole_weight > 0:
            energies, forces, dipoles = energy_forces_and_dipoles(model, graph, create_graph=True)
            error = self.dipole_weight * _known_l1(dipoles, *more)
        elif self.stress_weight > 0:
            known_stress, volumes = more
            energies, forces, stress = energy_forces_and_stress(model, graph, volumes, create_graph=True)
            error = self.stress_weight * _known_l1(stress, known_stress)
        else:
            energies, forces = energy_and_forces(model, graph, create_graph=True)
            error = forces.new_zeros(())
        error = error + self.force_weight * _known_length(forces, known_forces)
        error = error + self.energy_weight * _known_l1(energies, known_energies)
        return error / self.force_field.scale

    def evaluate(self, loader: Any) -> ForceEvaluation:
        """The errors of forces and energies over a loader."""
        return evaluate_forces(self.force_field, loader, self.world)


def evaluate_forces(model: ForceField, loader: Any, world: World) -> ForceEvaluation:
    """Run a force field over batches of :class:`ForceDataModule`.

    Args:
        model: The force field.
        loader: The batches; every process has its own share.
        world: The processes whose figures are put together.
    """
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    latencies: list[float] = []
    found: dict[str, list[Tensor]] = {name: [] for name in _EVALUATED}
    for batch in loader:
        batch_start = time.perf_counter()
        graph, known_forces, known_energies, *more = move_batch(batch, world.device)
        tensors = {"known_forces": known_forces, "known_energies": known_energies, "references": model.reference_energy(graph)}
        if len(more) == 1:
            tensors |= energy_forces_and_dipoles(model, graph)._asdict() | {"known_dipoles": more[0]}
        elif more:
            known_stress, volumes = more
            tensors |= energy_forces_and_stress(model, graph, volumes)._asdict() | {"known_stress": known_stress}
        else:
            tensors["energies"], tensors["forces"] = energy_and_forces(model, graph)
        for name, tensor in tensors.items():
            found[name].append(tensor.detach().flatten().cpu())
        latencies.append(time.perf_counter() - batch_start)
    model.train(was_training)
    values = {name: torch.cat([torch.empty(0), *chain(*world.gather(parts))]).numpy() for name, parts in found.items()}
    forces = _errors(values["forces"], values["known_forces"])
    return ForceEvaluation(
        **vars(forces) | {"latencies": latencies, "seconds": time.perf_counter() - start},
        energies=_errors(values["energies"], values["known_energies"], values["references"]),
        stress=_errors(values["stress"], values["known_stress"]) if len(values["stress"]) else None,
        dipole=_errors(values["dipoles"], values["known_dipoles"]) if len(values["dipoles"]) else None,
    )


def _errors(predictions: np.ndarray, known: np.ndarray, references: np.ndarray | float = 0.0) -> Evaluation:
    """Where a label is known; `references` are what is predicted without a model."""
    is_known = np.isfinite(known)
    predictions, targets, guesses = (np.broadcast_to(values, known.shape)[is_known] for values in (predictions, known, references))
    return Evaluation(
        mae=_mean_absolute(predictions - targets),
        mean_predictor_mae=_mean_absolute(guesses - targets),
        predictions=predictions,
        targets=targets,
    )


def _known_errors(values: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Errors, 0 where a label is not known, and where it is."""
    is_known = known.isfinite()
    return (values - known.nan_to_num(0.0)) * is_known, is_known


def _known_l1(values: Tensor, known: Tensor) -> Tensor:
    """Mean absolute error [] where a label is known; 0 where none is."""
    errors, is_known = _known_errors(values, known)
    return errors.abs().sum() / is_known.sum().clamp(min=1)


def _known_length(forces: Tensor, known: Tensor) -> Tensor:
    """Half of the mean length [] of errors of forces [N, 3]: the mean absolute component over all orientations of a molecule."""
    errors, is_known = _known_errors(forces, known)
    return errors.norm(dim=1).sum() / (2 * is_known.any(1).sum()).clamp(min=1)


def _mean_absolute(values: np.ndarray) -> float:
    return float(np.abs(values).mean(dtype=np.float64)) if len(values) else float("nan")


def _ratio(evaluation: Evaluation) -> float:
    """Error over that of predicting nothing; not a number where that is none, as with single atoms."""
    return evaluation.mae / evaluation.mean_predictor_mae if evaluation.mean_predictor_mae else float("nan")


def report_forces(trainer: ForceTrainer, result: TrainingResult) -> None:
    """Print and log the errors, draw `learning_curve.png`, `parity_forces.png` and `parity_energies.png` into the log folder.

    Only the main process does so.
    """
    if not trainer.world.is_main:
        return
    figures: dict[str, float] = {}
    for name, evaluation in (("test", result.test), ("validation", result.validation)):
        assert isinstance(evaluation, ForceEvaluation)
        forces, energies = evaluation, evaluation.energies
        ratio = _ratio(forces)
        print(f"{name}: {errors_on_one_line(evaluation)}")
        figures |= {f"{name}_force_mae": forces.mae, f"{name}_mean_absolute_force": forces.mean_predictor_mae}
        figures |= {f"{name}_force_ratio": ratio, f"{name}_energy_mae": energies.mae}
        if evaluation.stress is not None:
            figures[f"{name}_stress_mae"] = evaluation.stress.mae
        if evaluation.dipole is not None:
            figures[f"{name}_dipole_mae"] = evaluation.dipole.mae
    trainer.loggers.log_metrics(figures)
    folder = trainer.options.log_dir
    test = result.test
    assert isinstance(test, ForceEvaluation)
    with plots_may_fail():
        plot_learning_curve(trainer.history, trainer.scale.unit, folder / "learning_curve.png")
        plot_parity(test.predictions, test.targets, "force", "eV/Å", folder / "parity_forces.png", counted="force components")
        energies = test.energies
        plot_parity(energies.predictions, energies.targets, "energy", "eV", folder / "parity_energies.png", counted="frames")


def errors_on_one_line(evaluation: ForceEvaluation) -> str:
    """The errors beside what predicting nothing, or the reference energies, would have."""
    energies, stress = evaluation.energies, evaluation.stress
    parts = [
        f"force MAE {evaluation.mae:.4g} eV/Å, {100 * _ratio(evaluation):.3g} % of the mean absolute "
        f"force {evaluation.mean_predictor_mae:.4g} eV/Å",
        f"energy MAE {energies.mae:.4g} eV (reference energies of the atoms: {energies.mean_predictor_mae:.4g} eV)",
    ]
    if stress is not None and len(stress.targets):
        parts.append(f"stress MAE {stress.mae:.4g} eV/Å³ (mean absolute component: {stress.mean_predictor_mae:.4g} eV/Å³)")
    dipole = evaluation.dipole
    if dipole is not None and len(dipole.targets):
        parts.append(f"dipole MAE {dipole.mae:.4g} e·Å (mean absolute component: {dipole.mean_predictor_mae:.4g} e·Å)")
    return "; ".join([*parts, f"{len(energies.targets)} frames"])
