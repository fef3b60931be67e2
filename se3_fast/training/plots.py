"""Plots of a finished run (matplotlib without a display): as figures, and as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from se3_fast.files import atomic_file
from se3_fast.unit_text import in_unit, with_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR = "#0b5cad"
SECOND_COLOUR = "#c2410c"

_FEWEST_FOR_DENSITY = 200
_SMALLEST_SPREAD = 0.05  # of values, by their size; closer ones are drawn relative to one of them
_METRICS = {"validation_mae": "Validation MAE", "validation_roc_auc": "Validation ROC-AUC"}


def learning_curve(history: Sequence[dict[str, Any]], unit: str) -> Figure:
    """Training loss against the epoch, and below it MAE or ROC-AUC on the validation set.

    Args:
        history: Records with `epoch`, `train_loss` and, where it was evaluated, `validation_mae` or `validation_roc_auc`.
        unit: Unit of the MAE.
    """
    figure = _empty(height=4.8)
    loss_axes, metric_axes = figure.subplots(2, sharex=True)
    _curve(loss_axes, history, "train_loss", COLOUR)
    losses = [record["train_loss"] for record in history]
    has_decades = bool(losses) and 0 < 10 * min(losses) < max(losses)
    loss_axes.set(ylabel="loss", yscale="log" if has_decades else "linear", title="Training loss")
    metric = next((name for name in _METRICS if any(name in record for record in history)), "validation_mae")
    _curve(metric_axes, [record for record in history if metric in record], metric, SECOND_COLOUR)
    is_error = metric == "validation_mae"
    metric_axes.set(xlabel="epoch", ylabel=in_unit("MAE", unit) if is_error else "ROC-AUC", title=_METRICS[metric])
    metric_axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _curve(axes: Axes, records: Sequence[dict[str, Any]], name: str, colour: str) -> None:
    marker = "o" if len(records) < 30 else ""
    axes.plot([one["epoch"] for one in records], [one[name] for one in records], color=colour, marker=marker, markersize=4)
    axes.grid(alpha=0.3)


def parity(predictions: np.ndarray, targets: np.ndarray, name: str, unit: str, counted: str = "molecules") -> Figure:
    """Predicted against known values: points, or where they are many, their density.

    Values whose differences are small beside their size, as total energies are, are drawn relative to one of them.

    Args:
        predictions: [M] or [M, ...], in `unit`; at least one value.
        targets: Likewise.
        name: The property.
        unit: Its unit.
        counted: What the M values are of.
    """
    count, predictions, targets = len(targets), predictions.ravel(), targets.ravel()
    error = np.abs(predictions - targets).mean()
    spread, size = np.ptp(targets), np.abs(targets).max()
    reference = np.round(targets.mean()) if 0 < spread < _SMALLEST_SPREAD * size else 0.0
    predictions, targets = predictions - reference, targets - reference
    low, high = min(targets.min(), predictions.min()), max(targets.max(), predictions.max())
    margin = 0.03 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    figure = _empty(height=4.4)
    axes = figure.add_subplot()
    if len(targets) >= _FEWEST_FOR_DENSITY:
        bins = axes.hexbin(targets, predictions, gridsize=45, bins="log", cmap="viridis", extent=(*ends, *ends), mincnt=1)
        figure.colorbar(bins, ax=axes, label=counted)
    else:
        axes.scatter(targets, predictions, s=14, color=COLOUR, alpha=0.7, linewidths=0)
    axes.plot(ends, ends, color="black", linewidth=0.8, label="equal")
    relative = f" - ({reference:.0f})" if reference else ""
    axes.set(
        xlabel=in_unit(f"{name}{relative}, known", unit),
        ylabel=in_unit(f"{name}{relative}, predicted", unit),
        title=f"MAE {with_unit(f'{error:.4g}', unit)}, {count:,} {counted}",
        xlim=ends,
        ylim=ends,
    )
    axes.set_aspect("equal")
    axes.legend(loc="upper left", frameon=False)
    return figure


def plot_learning_curve(history: Sequence[dict[str, Any]], unit: str, path: Path) -> None:
    """Write :func:`learning_curve` as a PNG file.

    Raises:
        OSError: The file cannot be written.
    """
    _save(learning_curve(history, unit), path)


def plot_parity(predictions: np.ndarray, targets: np.ndarray, name: str, unit: str, path: Path, counted: str = "molecules") -> None:
    """Write :func:`parity` as a PNG file; nothing is written of no values.

    Raises:
        OSError: The file cannot be written.
    """
    if targets.size:
        _save(parity(predictions, targets, name, unit, counted), path)


def _empty(height: float) -> Figure:
    # Not at the top: a run draws once, at its end, and help is asked for more often.
    from matplotlib.figure import Figure

    return Figure(figsize=(5.0, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
