"""What a finished run leaves behind: the final figures and the plots."""

from __future__ import annotations

from .plots import plot_learning_curve, plot_parity
from .trainer import Trainer, TrainingResult


def report_training(trainer: Trainer, result: TrainingResult, property_name: str) -> None:
    """Print and log the errors, draw `learning_curve.png` and `parity.png` into the log folder.

    Only the main process does so.
    """
    if not trainer.world.is_main:
        return
    test, validation, unit = result.test, result.validation, trainer.scale.unit
    ratio = validation.mae / validation.mean_predictor_mae
    trainer.loggers.log_metrics(
        {
            "test_mae": test.mae,
            "test_mean_predictor_mae": test.mean_predictor_mae,
            "validation_mae": validation.mae,
            "validation_mean_predictor_mae": validation.mean_predictor_mae,
            "validation_ratio": ratio,
        }
    )
    print(f"test MAE of {property_name}: {test.mae:.4g} {unit}")
    print(
        f"validation MAE of {property_name}: {validation.mae:.4g} {unit}; predicting the training mean gives "
        f"{validation.mean_predictor_mae:.4g} {unit} (ratio {ratio:.3f})"
    )
    folder = trainer.options.log_dir
    plot_learning_curve(trainer.history, unit, folder / "learning_curve.png")
    plot_parity(test.predictions, test.targets, property_name, unit, folder / "parity.png")
