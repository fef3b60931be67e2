"""Plots as SVG, to stand within a page."""

from __future__ import annotations

import hashlib
import io
import re

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from se3_fast.training.calibration import LEVELS, Calibration
from se3_fast.training.plots import COLOUR
from se3_fast.unit_text import in_unit

_NUM_BINS = 10


def histogram(values: np.ndarray, name: str, unit: str) -> Figure:
    """How predictions [M] are distributed."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(values, bins=min(40, max(5, len(values) // 5)), color=COLOUR)
    axes.set(xlabel=in_unit(f"{name}, predicted", unit), ylabel="molecules", title="Predictions")
    return figure


def calibration(found: Calibration, name: str) -> Figure:
    """Share of errors in intervals against the share that was expected."""
    return _diagonal(LEVELS, found.held, f"Calibration of {name}", "errors expected in the interval", "errors found in it")


def reliability(probabilities: np.ndarray, classes: np.ndarray, name: str) -> Figure:
    """Of molecules [M] with similar probabilities of a 1, the share that is 1 (classes [M] of 0 and 1)."""
    places = np.minimum((probabilities * _NUM_BINS).astype(int), _NUM_BINS - 1)
    used = np.unique(places)
    expected = np.array([probabilities[places == place].mean() for place in used])
    found = np.array([classes[places == place].mean() for place in used])
    return _diagonal(expected, found, f"Calibration of {name}", "probability", "share that is 1")


def receiver_operating_characteristic(probabilities: np.ndarray, classes: np.ndarray, name: str) -> Figure:
    """True against false positives for all thresholds; probabilities [M], classes [M] of 0 and 1, both of which are there."""
    # Not at the top: importing torchmetrics takes as long as importing PyTorch.
    from torchmetrics.functional.classification import binary_auroc, binary_roc

    known = torch.from_numpy(probabilities), torch.from_numpy(classes).long()
    false_positives, true_positives, _ = binary_roc(*known)
    title = f"ROC of {name}: AUC {binary_auroc(*known).item():.3f}"
    return _diagonal(false_positives.numpy(), true_positives.numpy(), title, "false positives", "true positives", "chance")


def _diagonal(x: np.ndarray, y: np.ndarray, title: str, x_label: str, y_label: str, diagonal: str = "as it should be") -> Figure:
    """A curve within the unit square, beside its diagonal."""
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label=diagonal)
    axes.plot(x, y, color=COLOUR, marker="." if len(x) < 30 else "", label="found")
    axes.set(xlabel=x_label, ylabel=y_label, title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    axes.legend(loc="best", frameon=False)
    return figure


def svg(figure: Figure) -> str:
    """A figure as an ``svg`` element whose text stays text; the same figure gives the same text."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "se3_fast", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    # Names within a page must differ from plot to plot.
    prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>p{prefix}", text)
    return text[text.index("<svg") :]
