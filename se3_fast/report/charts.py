"""Plots as SVG, to stand within a page."""

from __future__ import annotations

import io
import re

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from se3_fast.training.calibration import LEVELS, Calibration
from se3_fast.unit_text import in_unit

_COLOUR = "#0b5cad"
_FEWEST_FOR_DENSITY = 200


def histogram(values: np.ndarray, name: str, unit: str) -> str:
    """How predictions [M] are distributed, as SVG."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(values, bins=min(40, max(5, len(values) // 5)), color=_COLOUR)
    axes.set(xlabel=in_unit(f"{name}, predicted", unit), ylabel="molecules", title="Predictions")
    return _svg(figure)


def parity(predictions: np.ndarray, targets: np.ndarray, name: str, unit: str) -> str:
    """Predicted against known values [M], as SVG: points, or where they are many, their density."""
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    low, high = min(targets.min(), predictions.min()), max(targets.max(), predictions.max())
    margin = 0.03 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    if len(targets) >= _FEWEST_FOR_DENSITY:
        bins = axes.hexbin(targets, predictions, gridsize=45, bins="log", cmap="viridis", extent=(*ends, *ends), mincnt=1)
        figure.colorbar(bins, ax=axes, label="molecules")
    else:
        axes.scatter(targets, predictions, s=14, color=_COLOUR, alpha=0.7, linewidths=0)
    axes.plot(ends, ends, color="black", linewidth=0.8, label="equal")
    axes.set(
        xlabel=in_unit(f"{name}, known", unit),
        ylabel=in_unit(f"{name}, predicted", unit),
        title="Known and predicted",
        xlim=ends,
        ylim=ends,
    )
    axes.set_aspect("equal")
    axes.legend(loc="upper left", frameon=False)
    return _svg(figure)


def calibration(found: Calibration) -> str:
    """Share of errors in intervals against the share that was expected, as SVG."""
    figure = Figure(figsize=(4.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, label="as it should be")
    axes.plot(LEVELS, found.held, color=_COLOUR, marker=".", label="found")
    axes.set(xlabel="errors expected in the interval", ylabel="errors found in it", title="Calibration", xlim=(0, 1), ylim=(0, 1))
    axes.set_aspect("equal")
    axes.legend(loc="upper left", frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """The figure as an ``svg`` element whose text stays text; the same figure gives the same text."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "se3_fast", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    # Names within a page must differ from plot to plot.
    prefix = f"{abs(hash(text)):x}"
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}", text)
    return text[text.index("<svg") :]
