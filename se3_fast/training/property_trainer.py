"""Training on several properties at once, of which a molecule need not have all, or on classes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss

from se3_fast.data.objective import Objective
from se3_fast.unit_text import with_unit

from .evaluation import DirectPredictions, Evaluation, TargetScale, evaluate, matching_prediction
from .plots import plot_learning_curve, plot_parity
from .report import plots_may_fail
from .trainer import Trainer, TrainingResult

STANDARD_DEVIATIONS = "standard deviations"
"""The unit of errors of several properties together."""


@dataclass(kw_only=True)
class PropertyEvaluation(Evaluation):
    """Errors of each property. `predictions` and `targets` are [M, P], in the properties' units or as probabilities.

    `mae` and `mean_predictor_mae` are means over the properties, in their standard deviations; of a classification they are those
    of the probabilities.

    Attributes:
        objective: The properties.
        scores: By name of each property: `mae` in its unit and `mean_predictor_mae`; of a classification `roc_auc`,
            `average_precision` and `accuracy`, NaN where one class alone is known; and `known`, the number of molecules.
    """

    objective: Objective
    scores: dict[str, dict[str, float]]

    @property
    def roc_auc(self) -> float:
        """The mean of those of the properties that have one."""
        values = [score["roc_auc"] for score in self.scores.values() if not np.isnan(score["roc_auc"])]
        return float(np.mean(values)) if values else float("nan")

    def figures(self) -> dict[str, float]:
        """Of a classification ROC-AUC, else the mean MAE; of several properties those of each too."""
        name, value = ("roc_auc", self.roc_auc) if self.objective.is_classification else ("mae", self.mae)
        each = {f"{name}_{one}": score[name] for one, score in self.scores.items()} if len(self.scores) > 1 else {}
        return {name: value, **each}

    def summary(self, unit: str) -> str:
        """The figure of all together."""
        if self.objective.is_classification:
            return f"ROC-AUC {self.roc_auc:.4g}"
        return f"MAE {self.mae:.4g} {STANDARD_DEVIATIONS}"


class PropertyTrainer(Trainer):
    """Trains on several properties, or on classes; the data module has an `objective`, and NaN for targets that are not known.

    The loss is the mean over all known targets: L1 of standardised numbers, or the cross entropy of classes.
    """

    def batch_loss(self, model: nn.Module, batch: Any, num_padding_graphs: int = 0) -> Tensor:
        """See :meth:`Trainer.batch_loss`."""
        *inputs, target = batch
        with self.precision.autocast():
            prediction = model(*inputs)
        prediction = matching_prediction(prediction, target, num_padding_graphs)
        is_known = ~target.isnan()
        loss = binary_cross_entropy_with_logits if self.data_module.objective.is_classification else l1_loss
        losses = loss(prediction, target.nan_to_num(), reduction="none")
        return torch.where(is_known, losses, 0.0).sum() / is_known.sum().clamp(min=1)

    def evaluate(self, loader: Any) -> PropertyEvaluation:
        """The errors of each property over a loader."""
        predictions = DirectPredictions(self.model, loader, self.precision, self.world.device)
        found = evaluate(self.model, predictions, TargetScale(), self.world)
        objective: Objective = self.data_module.objective
        size = (len(found.targets), len(objective.properties))
        outputs, known = found.predictions.reshape(size), found.targets.reshape(size)
        return property_evaluation(outputs, known, objective)


def property_evaluation(outputs: np.ndarray, standardised: np.ndarray, objective: Objective) -> PropertyEvaluation:
    """The errors of a model's outputs [M, P] against standardised targets [M, P] float64, NaN where unknown."""
    predictions = objective.restore(outputs)
    targets = standardised * objective.stds + objective.means
    columns = zip(objective.properties, predictions.T, targets.T, strict=True)
    score = _class_scores if objective.is_classification else _number_scores
    scores = {one.name: score(found, known, one.mean) for one, found, known in columns}
    return PropertyEvaluation(
        mae=_mean(np.abs(predictions - targets) / objective.stds),
        mean_predictor_mae=_mean(np.abs(targets - objective.means) / objective.stds),
        predictions=predictions,
        targets=targets,
        objective=objective,
        scores=scores,
    )


def _mean(errors: np.ndarray) -> float:
    """Of errors [M, P] the mean over the properties of their means over what is known."""
    means = [column[~np.isnan(column)].mean() for column in errors.T if not np.isnan(column).all()]
    return float(np.mean(means)) if means else float("nan")


def _number_scores(found: np.ndarray, known: np.ndarray, mean: float) -> dict[str, float]:
    return {
        "mae": _mean(np.abs(found - known)[:, None]),
        "mean_predictor_mae": _mean(np.abs(mean - known)[:, None]),
        "known": float((~np.isnan(known)).sum()),
    }


def _class_scores(found: np.ndarray, known: np.ndarray, _: float) -> dict[str, float]:
    # Not at the top: importing torchmetrics takes as long as importing PyTorch, and other commands do without.
    from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_average_precision

    is_known = ~np.isnan(known)
    scores = dict.fromkeys(("roc_auc", "average_precision", "accuracy"), float("nan"))
    if len(np.unique(known[is_known])) == 2:
        probabilities, classes = torch.from_numpy(found[is_known]), torch.from_numpy(known[is_known]).long()
        scores = {
            "roc_auc": binary_auroc(probabilities, classes).item(),
            "average_precision": binary_average_precision(probabilities, classes).item(),
            "accuracy": binary_accuracy(probabilities, classes).item(),
        }
    return {**scores, "known": float(is_known.sum())}


def report_properties(trainer: PropertyTrainer, result: TrainingResult) -> None:
    """Print and log the errors of each property on both sets, draw `learning_curve.png` and parity plots into the log folder.

    Only the main process does so.
    """
    if not trainer.world.is_main:
        return
    figures: dict[str, float] = {}
    for set_name, evaluation in (("test", result.test), ("validation", result.validation)):
        assert isinstance(evaluation, PropertyEvaluation)
        for one in evaluation.objective.properties:
            score = evaluation.scores[one.name]
            print(f"{set_name} {_told(score, one.name, one.unit)}")
            figures |= {f"{set_name}_{name}_{one.name}": value for name, value in score.items()}
    trainer.loggers.log_metrics(figures)
    with plots_may_fail():
        _plot(trainer, result.test)


def _plot(trainer: PropertyTrainer, test: Evaluation) -> None:
    folder, objective = trainer.options.log_dir, trainer.data_module.objective
    plot_learning_curve(trainer.history, STANDARD_DEVIATIONS, folder / "learning_curve.png")
    if objective.is_classification:
        return
    for one, found, known in zip(objective.properties, test.predictions.T, test.targets.T, strict=True):
        is_known = ~np.isnan(known)
        path = folder / f"parity_{re.sub(r'[^A-Za-z0-9]', '_', one.name)}.png"
        plot_parity(found[is_known], known[is_known], one.name, one.unit, path)


def _told(score: dict[str, float], name: str, unit: str) -> str:
    counted = f"{score['known']:.0f} molecules"
    if not score["known"]:
        return f"error of {name}: not known, as there are no samples"
    if "roc_auc" in score:
        if np.isnan(score["roc_auc"]):
            return f"ROC-AUC of {name}: not known, as all of {counted} are of one class"
        parts = f"average precision {score['average_precision']:.4g}, accuracy {score['accuracy']:.4g}"
        return f"ROC-AUC of {name}: {score['roc_auc']:.4g} ({parts}; {counted})"
    error, mean = (with_unit(f"{score[key]:.4g}", unit) for key in ("mae", "mean_predictor_mae"))
    return f"MAE of {name}: {error} ({counted}; predicting the training mean gives {mean})"
