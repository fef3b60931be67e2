"""The report of predictions for molecules: figures, plots, drawings, a table that sorts, a view in space.

It holds a few numbers of every molecule, and drawings of at most 60, whatever the number of molecules.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rdkit import Chem

from se3_fast import __version__
from se3_fast.data.objective import Objective, Property
from se3_fast.files import atomic_file
from se3_fast.predict.predictor import PredictedValue, Prediction
from se3_fast.training.calibration import Calibration
from se3_fast.training.plots import learning_curve, parity
from se3_fast.training.property_trainer import STANDARD_DEVIATIONS
from se3_fast.unit_text import in_unit

from . import charts
from .page import Card, document, drawings, figures, section, table

_MOST_DRAWN = 60
_MOST_ROWS = 5_000


@dataclass(frozen=True)
class Subject:
    """What a report is of.

    Attributes:
        model: Name or file of the model.
        objective: What is predicted.
        facts: Further names and values, which stand first.
        history: Records of the epochs of a training, for the learning curve.
        of_which: What the molecules are.
    """

    model: str
    objective: Objective
    facts: Sequence[tuple[str, str]] = ()
    history: Sequence[dict[str, Any]] = ()
    of_which: str = "molecules"


@dataclass(frozen=True)
class _Known:
    """Predictions of one property for the molecules whose value is known.

    Attributes:
        values: [m].
        targets: [m].
        uncertainties: [m], NaN where there is none.
    """

    values: np.ndarray
    targets: np.ndarray
    uncertainties: np.ndarray


class PredictionReport:
    """Collects predictions as they come, then writes one page.

    Args:
        subject: What the report is of.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._properties = subject.objective.properties
        self._has_uncertainty = not subject.objective.is_classification
        self._served: list[list[tuple[float, float, float]]] = []  # of each property value, uncertainty, known value; or NaN
        self._rows: list[str] = []
        self._failed = 0
        self._warned = 0
        self._drawn: list[tuple[float, int, Prediction]] = []
        self._order = count()

    def add(self, prediction: Prediction) -> None:
        """Take one prediction in."""
        if prediction.value is None:
            self._failed += 1
        else:
            values = [prediction.values[one.name] for one in self._properties]
            self._served.append([(_number(one.value), _number(one.uncertainty), _number(one.target)) for one in values])
            self._warned += bool(prediction.outside)
            self._keep_drawn(prediction)
        if len(self._rows) < _MOST_ROWS:
            self._rows.append(self._row(prediction))

    def _keep_drawn(self, prediction: Prediction) -> None:
        """Of molecules with known values those with the largest errors are drawn; of others the first."""
        if prediction.molecule is None:
            return
        number = next(self._order)
        errors = [
            abs(value - known) / one.std
            for one, (value, _, known) in zip(self._properties, self._served[-1], strict=True)
            if not np.isnan(known)
        ]
        entry = (max(errors, default=-1.0 - number), -number, prediction)
        if len(self._drawn) < _MOST_DRAWN:
            heapq.heappush(self._drawn, entry)
        else:
            heapq.heappushpop(self._drawn, entry)

    def write(self, path: Path) -> None:
        """Write the page.

        Raises:
            OSError: It cannot be written.
        """
        with atomic_file(path) as file:
            file.write(self.page().encode())

    def page(self) -> str:
        """The page, HTML."""
        subject = self._subject
        title = f"{', '.join(subject.objective.names)} of {len(self._served) + self._failed:,} {subject.of_which}"
        units = ", ".join(dict.fromkeys(one.unit for one in self._properties if one.unit))
        note = f"Model {subject.model}; {f'values in {units}; ' if units else ''}se3_fast {__version__}"
        values = np.array(self._served).reshape(-1, len(self._properties), 3)  # [M, P, 3]
        plots = [charts.svg(figure) for figure in self._plots(values)]
        cards = [self._card(prediction) for _, _, prediction in sorted(self._drawn, reverse=True, key=lambda entry: entry[:2])]
        which = "the first" if np.isnan(values[:, :, 2]).all() else "those with the largest errors"
        sections = [
            f"<h1>{escape(title)}</h1>",
            f'<p class="note">{escape(note)}</p>',
            figures([*subject.facts, *self._summary(values)]),
            section("Plots", f'<div class="plots">{"".join(plots)}</div>') if plots else "",
            drawings(cards, f"{len(cards)} molecules, {which}; a click shows one in space."),
            self._table(),
        ]
        return document(title, "\n".join(sections), has_view=bool(cards))

    def _summary(self, values: np.ndarray) -> list[tuple[str, str]]:
        told = [("molecules with a number", f"{len(values):,}"), ("without a number", f"{self._failed:,}")]
        told.append(("outside of the training data", f"{self._warned:,}"))
        for number, one in enumerate(self._properties):
            if len(values):
                told += self._told_of(one, values[:, number])
        return told

    def _told_of(self, one: Property, values: np.ndarray) -> Iterator[tuple[str, str]]:
        """Figures of a property with values [M, 3]; of several properties with its name."""
        of_name, unit = (f" of {one.name}" if len(self._properties) > 1 else ""), one.unit
        yield in_unit(f"mean{of_name}", unit), f"{values[:, 0].mean():.4g}"
        if not np.isnan(values[:, 1]).all():
            yield in_unit(f"median uncertainty{of_name}", unit), f"{np.nanmedian(values[:, 1]):.3g}"
        known = _known(values)
        if not len(known.values):
            return
        errors = known.values - known.targets
        if self._subject.objective.is_classification:
            yield f"accuracy{of_name}, {len(errors):,} known", f"{(np.abs(errors) < 0.5).mean():.4f}"
            return
        yield in_unit(f"MAE{of_name} of {len(errors):,} known", unit), f"{np.abs(errors).mean():.4g}"
        yield in_unit(f"RMSE{of_name}", unit), f"{np.sqrt((errors**2).mean()):.4g}"
        spread = ((known.targets - known.targets.mean()) ** 2).mean()
        if spread > 0:
            yield f"R2{of_name}", f"{1 - (errors**2).mean() / spread:.4f}"

    def _plots(self, values: np.ndarray) -> Iterator[Figure]:
        if self._subject.history:
            objective = self._subject.objective
            unit = self._properties[0].unit if objective.is_one_number else STANDARD_DEVIATIONS
            yield learning_curve(self._subject.history, unit)
        for number, one in enumerate(self._properties):
            known = _known(values[:, number])
            if not len(known.values):
                if len(values) > 1:
                    yield charts.histogram(values[:, number, 0], one.name, one.unit)
            elif self._subject.objective.is_classification:
                yield from _plots_of_classes(known, one)
            else:
                yield from _plots_of_numbers(known, one)

    def _table(self) -> str:
        columns = [("place", "number"), ("name", "text")]
        for one in self._properties:
            of_name = f" {one.name}" if len(self._properties) > 1 else ""
            titles = ("predicted", "uncertainty", "known") if self._has_uncertainty else ("probability", "known")
            columns += [(in_unit(f"{title}{of_name}", one.unit), "number") for title in titles]
        columns += [("outside of the training data", "text"), ("error", "text")]
        left_out = len(self._served) + self._failed - len(self._rows)
        note = f'<p class="note">The first {len(self._rows):,}; {left_out:,} more are in the output.</p>' if left_out else ""
        return section("Molecules", note + table(columns, self._rows))

    def _row(self, prediction: Prediction) -> str:
        cells = "".join(_cells(prediction.values[one.name], one, self._has_uncertainty) for one in self._properties)
        return (
            f'<tr><td class="number">{prediction.number}</td><td>{escape(prediction.name)}</td>{cells}'
            f'<td class="warn">{escape(prediction.outside)}</td><td class="bad">{escape(prediction.error)}</td></tr>'
        )

    def _card(self, prediction: Prediction) -> Card:
        lines = [line for one in self._properties for line in _lines(prediction.values[one.name], one, len(self._properties) > 1)]
        if prediction.outside:
            lines.append(f'<span class="warn" title="{escape(prediction.outside)}">outside of the training data</span>')
        molecule = Chem.Mol() if prediction.molecule is None else prediction.molecule
        return Card(prediction.name or f"molecule {prediction.number}", molecule, lines)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _known(values: np.ndarray) -> _Known:
    """What is known of a property with value, uncertainty and known value [M, 3]."""
    found, uncertainties, targets = values[~np.isnan(values[:, 2])].T
    return _Known(found, targets, uncertainties)


def _plots_of_numbers(known: _Known, one: Property) -> Iterator[Figure]:
    yield parity(known.values, known.targets, one.name, one.unit)
    is_told = ~np.isnan(known.uncertainties)
    if is_told.any():
        errors = known.values - known.targets
        yield charts.calibration(Calibration.of(errors[is_told], known.uncertainties[is_told]), one.name)


def _plots_of_classes(known: _Known, one: Property) -> Iterator[Figure]:
    classes = known.targets
    if set(classes.tolist()) == {0.0, 1.0}:
        yield charts.receiver_operating_characteristic(known.values, classes, one.name)
        yield charts.reliability(known.values, classes, one.name)


def _cells(found: PredictedValue, one: Property, has_uncertainty: bool) -> str:
    decimals = one.decimals - 2
    values = [found.value, *([found.uncertainty] if has_uncertainty else []), found.target]
    return "".join(
        f'<td class="number" data-value="{"" if value is None else value}">{"" if value is None else f"{value:.{decimals}f}"}</td>'
        for value in values
    )


def _lines(found: PredictedValue, one: Property, has_name: bool) -> Iterator[str]:
    """What a card says of a property, HTML."""
    name = f"{escape(one.name)} " if has_name else ""
    decimals = one.decimals - 3
    told = "" if found.uncertainty is None else f" &#177; {found.uncertainty:.{decimals - 1}f}"
    yield f"{name}<b>{found.value:.{decimals}f}</b>{told} {escape(one.unit)}"
    if found.target is not None:
        yield f"known {found.target:.{decimals}f}"
