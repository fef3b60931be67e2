"""What a finished run leaves behind: the final figures and the plots."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from se3_fast.error_text import one_line
from se3_fast.unit_text import with_unit

from .evaluation import Evaluation
from .plots import plot_learning_curve, plot_parity
from .trainer import Trainer, TrainingResult


def report_training(trainer: Trainer, result: TrainingResult, property_name: str) -> None:
    """Print and log the errors, draw `learning_curve.png` and `parity.png` into the log folder.

    Only the main process does so.
    """
    if not trainer.world.is_main:
        return
    test, validation, unit = result.test, result.validation, trainer.scale.unit
    ratio = validation.mae / validation.mean_predictor_mae if validation.mean_predictor_mae else float("nan")
    trainer.loggers.log_metrics(
        {
            "test_mae": test.mae,
            "test_mean_predictor_mae": test.mean_predictor_mae,
            "validation_mae": validation.mae,
            "validation_mean_predictor_mae": validation.mean_predictor_mae,
            "validation_ratio": ratio,
        }
    )
    print(f"test MAE of {property_name}: {_error(test, unit)}")
    print(
        f"validation MAE of {property_name}: {_error(validation, unit)}; predicting the training mean gives "
        f"{with_unit(f'{validation.mean_predictor_mae:.4g}', unit)} (ratio {ratio:.3f})"
    )
    folder = trainer.options.log_dir
    counted = "molecules" if test.targets.ndim == 1 else "nodes or molecules"
    with plots_may_fail():
        plot_learning_curve(trainer.history, unit, folder / "learning_curve.png")
        plot_parity(test.predictions, test.targets, property_name, unit, folder / "parity.png", counted)


@contextmanager
def plots_may_fail() -> Iterator[None]:
    """A plot that cannot be written is said to be missing: what was trained is worth more."""
    try:
        yield
    except OSError as error:
        print(f"warning: a plot could not be written ({one_line(error)})", file=sys.stderr)


def _error(evaluation: Evaluation, unit: str) -> str:
    return with_unit(f"{evaluation.mae:.4g}", unit) if evaluation.targets.size else "not known, as there are no samples"
