"""Plots of the benchmarks as PNG files (matplotlib without a display)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"dense": "tab:red", "torch": "tab:orange", "cpp": "tab:blue", "triton": "tab:blue"}
LABELS = {"edges": "edges", "degrees": "number of degrees (largest degree + 1)"}


def plot_scaling(rows: Sequence[dict[str, Any]], fits: Sequence[dict[str, Any]], sweep: str, title: str, path: Path) -> None:
    """Time and peak memory of a step against the size, log-log, with the fitted exponents.

    Args:
        rows: those of :mod:`bench.scaling`.
        fits: what :func:`bench.scaling.fits` makes of them.
        sweep: ``edges`` or ``degrees``.
        title: what was measured, and on what.
        path: PNG file to write.
    """
    figure = _figure(10.0, 4.2)
    figure.suptitle(title, fontsize="medium")
    time_axes, memory_axes = figure.subplots(1, 2)
    measured = [row for row in rows if row["sweep"] == sweep and "step_ms" in row]
    fitted = [fit for fit in fits if fit["sweep"] == sweep]
    _plot(time_axes, measured, fitted, "step_ms", "time_exponent")
    time_axes.set(xlabel=LABELS[sweep], ylabel="forward and backward pass (ms)")
    _plot(memory_axes, measured, fitted, "peak_MiB", "memory_exponent")
    memory_axes.set(xlabel=LABELS[sweep], ylabel="peak memory above inputs (MiB)")
    figure.savefig(path, dpi=120)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # what only measures does without

    return Figure(figsize=(width, height), layout="constrained")


def _plot(axes: Axes, rows: Sequence[dict[str, Any]], fits: Sequence[dict[str, Any]], cost: str, exponent: str) -> None:
    axes.set(xscale="log", yscale="log")
    axes.grid(True, which="major", alpha=0.3)
    for fit in fits:
        chosen = [row for row in rows if row["backend"] == fit["backend"] and row.get(cost, 0) > 0]
        sizes = [row["edges"] if fit["sweep"] == "edges" else row["max_degree"] + 1 for row in chosen]
        label = fit["backend"] if fit[exponent] is None else f"{fit['backend']}: exponent {fit[exponent]:.2f}"
        axes.plot(sizes, [row[cost] for row in chosen], marker="o", label=label, color=COLOURS.get(fit["backend"]))
        if fit["sweep"] == "degrees":
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
    if fits:
        axes.legend(frameon=False)


def plot_rivals(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Times of a step of the same convolution by all who computed it, as bars.

    Args:
        rows: those of :mod:`bench.rivals`; those without a time are left out.
        title: what was measured, and on what.
        path: PNG file to write.
    """
    measured = sorted((row for row in rows if "step_ms" in row), key=lambda row: -row["step_ms"])
    figure = _figure(7.0, 1.2 + 0.4 * len(measured))
    axes = figure.add_subplot()
    axes.set_title(title, fontsize="medium")
    bars = axes.barh(
        [row["name"] for row in measured],
        [row["step_ms"] for row in measured],
        color=[COLOURS.get(row["name"], "tab:grey") for row in measured],
    )
    axes.bar_label(bars, [f" {row['step_ms']:.3g} ms, {row['peak_MiB']:.3g} MiB" for row in measured])
    axes.set(xlabel="forward and backward pass (ms)")
    axes.margins(x=0.35)
    figure.savefig(path, dpi=120)
