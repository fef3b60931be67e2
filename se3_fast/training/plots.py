"""Plots of a finished run as PNG files (matplotlib without a display)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from se3_fast.files import atomic_file
from se3_fast.unit_text import in_unit, with_unit


def plot_learning_curve(history: Sequence[dict[str, Any]], unit: str, path: Path) -> None:
    """Training loss and validation MAE against the epoch.

    Args:
        history: Records with `epoch`, `train_loss` and, where it was evaluated, `validation_mae`.
        unit: Unit of the MAE.
        path: PNG file to write.

    Raises:
        OSError: The file cannot be written.
    """
    figure = _figure(width=7.0)
    loss_axes = figure.add_subplot()
    loss_axes.plot(
        [record["epoch"] for record in history],
        [record["train_loss"] for record in history],
        color="tab:blue",
        marker="." if len(history) < 30 else "",
    )
    loss_axes.set(xlabel="epoch", ylabel="training loss (L1, standardised)", yscale="log")
    loss_axes.yaxis.label.set_color("tab:blue")
    evaluated = [record for record in history if "validation_mae" in record]
    mae_axes = loss_axes.twinx()
    mae_axes.plot(
        [record["epoch"] for record in evaluated],
        [record["validation_mae"] for record in evaluated],
        color="tab:red",
        marker="o",
    )
    mae_axes.set(ylabel=in_unit("validation MAE", unit))
    mae_axes.yaxis.label.set_color("tab:red")
    _save(figure, path)


def plot_parity(predictions: np.ndarray, targets: np.ndarray, name: str, unit: str, path: Path, counted: str = "molecules") -> None:
    """Predicted against known values.

    Args:
        predictions: [M] or [M, ...], in `unit`; nothing is drawn of no values.
        targets: Likewise.
        name: The property.
        unit: Its unit.
        path: PNG file to write.
        counted: What the M values are of.

    Raises:
        OSError: The file cannot be written.
    """
    if targets.size == 0:
        return
    predictions, targets = predictions.ravel(), targets.ravel()
    figure = _figure(width=5.5)
    axes = figure.add_subplot()
    axes.plot(targets, predictions, linestyle="", marker=".", markersize=3, alpha=0.4)
    ends = [min(targets.min(), predictions.min()), max(targets.max(), predictions.max())]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    error = np.abs(predictions - targets).mean()
    axes.set(
        xlabel=in_unit(f"{name}, known", unit),
        ylabel=in_unit(f"{name}, predicted", unit),
        title=f"MAE {with_unit(f'{error:.4g}', unit)}, {len(targets)} {counted}",
        aspect="equal",
    )
    _save(figure, path)


def _figure(width: float) -> Figure:
    return Figure(figsize=(width, 5.0), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
