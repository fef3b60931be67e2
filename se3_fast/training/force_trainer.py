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
from torch.nn.functional import l1_loss

from se3_fast.data.force_frames import ForceDataModule, reference_energies
from se3_fast.forces import ForceField, energy_and_forces

from .distributed import World
from .evaluation import Evaluation, move_batch
from .options import TrainingOptions
from .plots import plot_learning_curve, plot_parity
from .report import plots_may_fail
from .trainer import Trainer, TrainingResult


@dataclass(kw_only=True)
class ForceEvaluation(Evaluation):
    """Errors of forces and energies. The inherited fields are those of force components, in eV/Angstrom.

    Attributes:
        energies: The same of energies, in eV per molecule. Their mean predictor is the sum of the atoms' reference energies; that
            of forces predicts none, so that its error is the mean absolute component.
    """

    energies: Evaluation


class ForceTrainer(Trainer):
    """Trains a force field with an L1 loss on energies and forces, in units of the mean absolute force of the training set.

    Args:
        model: The force field. Its reference energies and scale are set from the training frames.
        data_module: The frames.
        options: What the run was told; mixed precision is not used.
        energy_weight: Weight of the mean absolute error of the energy of a molecule.
        force_weight: Weight of the mean absolute error of the force components.
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
        world: World | None = None,
        metadata: dict[str, Any] | None = None,
        resume_from: Path | None = None,
    ) -> None:
        if energy_weight < 0 or force_weight < 0 or energy_weight + force_weight == 0:
            raise ValueError(
                f"energy_weight and force_weight: expected none below 0 and one above, got {energy_weight} and {force_weight}"
            )
        frames = data_module.train_frames
        # The smallest scale is for frames without forces, such as single atoms.
        model.set_scale(reference_energies(frames), max(float(frames.forces.abs().mean()), 1e-3))
        self.energy_weight, self.force_weight = energy_weight, force_weight
        self.force_field = model
        super().__init__(model, data_module, options, world, metadata, resume_from)

    def batch_loss(self, model: nn.Module, batch: Any, num_padding_graphs: int = 0) -> Tensor:
        """The loss [] of a batch ``(graph, forces, energies)``; frames are not padded."""
        graph, known_forces, known_energies = batch
        energies, forces = energy_and_forces(model, graph, create_graph=True)
        error = self.force_weight * l1_loss(forces, known_forces) + self.energy_weight * l1_loss(energies, known_energies)
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
    found: dict[str, list[Tensor]] = {"forces": [], "known_forces": [], "energies": [], "known_energies": [], "references": []}
    for batch in loader:
        batch_start = time.perf_counter()
        graph, known_forces, known_energies = move_batch(batch, world.device)
        energies, forces = energy_and_forces(model, graph)
        tensors = (forces, known_forces, energies, known_energies, model.reference_energy(graph))
        for parts, tensor in zip(found.values(), tensors, strict=True):
            parts.append(tensor.flatten().double().cpu())
        latencies.append(time.perf_counter() - batch_start)
    model.train(was_training)
    values = {name: torch.cat([torch.empty(0), *chain(*world.gather(parts))]).numpy() for name, parts in found.items()}
    return ForceEvaluation(
        mae=_mean_absolute(values["forces"] - values["known_forces"]),
        mean_predictor_mae=_mean_absolute(values["known_forces"]),
        predictions=values["forces"],
        targets=values["known_forces"],
        latencies=latencies,
        seconds=time.perf_counter() - start,
        energies=Evaluation(
            mae=_mean_absolute(values["energies"] - values["known_energies"]),
            mean_predictor_mae=_mean_absolute(values["references"] - values["known_energies"]),
            predictions=values["energies"],
            targets=values["known_energies"],
        ),
    )


def _mean_absolute(values: np.ndarray) -> float:
    return float(np.abs(values).mean())


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
        ratio = forces.mae / forces.mean_predictor_mae
        print(
            f"{name}: force MAE {forces.mae:.4g} eV/Å, {100 * ratio:.3g} % of the mean absolute force "
            f"{forces.mean_predictor_mae:.4g} eV/Å; energy MAE {energies.mae:.4g} eV (reference energies of the atoms: "
            f"{energies.mean_predictor_mae:.4g} eV); {len(energies.targets)} frames"
        )
        figures |= {f"{name}_force_mae": forces.mae, f"{name}_mean_absolute_force": forces.mean_predictor_mae}
        figures |= {f"{name}_force_ratio": ratio, f"{name}_energy_mae": energies.mae}
    trainer.loggers.log_metrics(figures)
    folder = trainer.options.log_dir
    test = result.test
    assert isinstance(test, ForceEvaluation)
    with plots_may_fail():
        plot_learning_curve(trainer.history, trainer.scale.unit, folder / "learning_curve.png")
        plot_parity(test.predictions, test.targets, "force", "eV/Å", folder / "parity_forces.png", counted="force components")
        energies = test.energies
        plot_parity(energies.predictions, energies.targets, "energy", "eV", folder / "parity_energies.png", counted="frames")
