"""The report of predictions for molecules: figures, plots, drawings, a table that sorts, a view in space.

It holds a few numbers of every molecule, and drawings of at most 60, whatever the number of molecules.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path

import numpy as np
from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

from se3_fast import __version__
from se3_fast.files import atomic_file
from se3_fast.predict.predictor import Prediction
from se3_fast.training.calibration import Calibration
from se3_fast.unit_text import in_unit

from . import charts

_MOST_DRAWN = 60
_MOST_ROWS = 5_000
_DRAWING_SIZE = (220, 160)
_ASSETS = Path(__file__).with_name("assets")


@dataclass(frozen=True)
class Subject:
    """What a report is of.

    Attributes:
        model: Name or file of the model.
        property_name: What is predicted.
        unit: Its unit.
    """

    model: str
    property_name: str
    unit: str


class PredictionReport:
    """Collects predictions as they come, then writes one page.

    Args:
        subject: What the report is of.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._served: list[tuple[float, float, float]] = []  # value, uncertainty, known value; NaN where there is none
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
            known = _number(prediction.target)
            self._served.append((prediction.value, _number(prediction.uncertainty), known))
            self._warned += bool(prediction.outside)
            self._keep_drawn(prediction, abs(prediction.value - known))
        if len(self._rows) < _MOST_ROWS:
            self._rows.append(_row(prediction))

    def _keep_drawn(self, prediction: Prediction, error: float) -> None:
        """Of molecules with known values those with the largest errors are drawn; of others the first."""
        if prediction.molecule is None:
            return
        number = next(self._order)
        entry = (-1.0 - number if np.isnan(error) else error, -number, prediction)
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
        in_which = f"values in {subject.unit}; " if subject.unit else ""
        title = f"{subject.property_name} of {len(self._served) + self._failed:,} molecules"
        values = np.array(self._served).reshape(-1, 3)
        is_known = ~np.isnan(values[:, 2])
        drawn = [prediction for _, _, prediction in sorted(self._drawn, reverse=True, key=lambda entry: entry[:2])]
        sections = [
            f"<h1>{escape(title)}</h1>",
            f'<p class="note">Model {escape(subject.model)}; {escape(in_which)}se3_fast {__version__}</p>',
            _figures(self._summary(values, is_known)),
            _section("Plots", f'<div class="plots">{"".join(self._plots(values, is_known))}</div>') if len(values) else "",
            _drawings(drawn, subject, has_known=bool(is_known.any())),
            self._table(),
        ]
        return _document(title, "\n".join(sections), has_view=bool(drawn))

    def _summary(self, values: np.ndarray, is_known: np.ndarray) -> list[tuple[str, str]]:
        unit = self._subject.unit
        figures = [("molecules with a number", f"{len(values):,}"), ("without a number", f"{self._failed:,}")]
        figures.append(("outside of the training data", f"{self._warned:,}"))
        if len(values):
            figures.append((in_unit("mean", unit), f"{values[:, 0].mean():.4g}"))
            if not np.isnan(values[:, 1]).all():
                figures.append((in_unit("median uncertainty", unit), f"{np.nanmedian(values[:, 1]):.3g}"))
        known = values[is_known]
        if len(known):
            errors = known[:, 0] - known[:, 2]
            figures.append((in_unit(f"MAE of {len(known):,} known", unit), f"{np.abs(errors).mean():.4g}"))
            figures.append((in_unit("RMSE", unit), f"{np.sqrt((errors**2).mean()):.4g}"))
            spread = ((known[:, 2] - known[:, 2].mean()) ** 2).mean()
            if spread > 0:
                figures.append(("R2", f"{1 - (errors**2).mean() / spread:.4f}"))
        return figures

    def _plots(self, values: np.ndarray, is_known: np.ndarray) -> list[str]:
        name, unit = self._subject.property_name, self._subject.unit
        known = values[is_known]
        if not len(known):
            return [charts.histogram(values[:, 0], name, unit)] if len(values) > 1 else []
        plots = [charts.parity(known[:, 0], known[:, 2], name, unit)]
        sure = known[~np.isnan(known[:, 1])]
        if len(sure):
            plots.append(charts.calibration(Calibration.of(sure[:, 0] - sure[:, 2], sure[:, 1])))
        return plots

    def _table(self) -> str:
        unit = escape(self._subject.unit)
        columns = [
            ("place", "number"),
            ("name", "text"),
            (in_unit("predicted", unit), "number"),
            (in_unit("uncertainty", unit), "number"),
            (in_unit("known", unit), "number"),
            ("outside of the training data", "text"),
            ("error", "text"),
        ]
        head = "".join(f'<th scope="col" data-kind="{kind}"><button type="button">{name}</button></th>' for name, kind in columns)
        left_out = len(self._served) + self._failed - len(self._rows)
        note = f'<p class="note">The first {len(self._rows):,}; {left_out:,} more are in the output.</p>' if left_out else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(self._rows)}</tbody></table>"
        return _section("Molecules", f'{note}<div class="scroll">{table}</div>')


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _row(prediction: Prediction) -> str:
    numbers = "".join(
        f'<td class="number" data-value="{"" if value is None else value}">{"" if value is None else f"{value:.4f}"}</td>'
        for value in (prediction.value, prediction.uncertainty, prediction.target)
    )
    return (
        f'<tr><td class="number">{prediction.number}</td><td>{escape(prediction.name)}</td>{numbers}'
        f'<td class="warn">{escape(prediction.outside)}</td><td class="bad">{escape(prediction.error)}</td></tr>'
    )


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    boxes = "".join(f'<div class="figure"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in figures)
    return f'<div class="figures">{boxes}</div>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _drawings(predictions: Sequence[Prediction], subject: Subject, has_known: bool) -> str:
    """Cards with drawings; a click shows the molecule in space."""
    if not predictions:
        return ""
    blocks = [Chem.MolToMolBlock(prediction.molecule) for prediction in predictions]
    # Within a script element only a slash could end it.
    positions = json.dumps(blocks).replace("</", "<\\/")
    cards = "".join(_card(number, prediction, subject.unit) for number, prediction in enumerate(predictions))
    which = "those with the largest errors" if has_known else "the first"
    return "".join(
        [
            _section("In space", '<p class="note" id="shown"></p><div class="viewer" id="viewer"></div>'),
            _section(
                "Drawn",
                f'<p class="note">{len(predictions)} molecules, {which}; a click shows one in space.</p>'
                f'<div class="molecules">{cards}</div>',
            ),
            f'<script type="application/json" id="positions">{positions}</script>',
        ]
    )


def _card(number: int, prediction: Prediction, unit: str) -> str:
    told = "" if prediction.uncertainty is None else f" &#177; {prediction.uncertainty:.2f}"
    known = "" if prediction.target is None else f"<div>known {prediction.target:.3f}</div>"
    warning = (
        f'<div class="warn" title="{escape(prediction.outside)}">outside of the training data</div>' if prediction.outside else ""
    )
    name = escape(prediction.name or f"molecule {prediction.number}")
    return (
        f'<button type="button" class="molecule" data-index="{number}" title="{name}">{_drawing(prediction.molecule)}'
        f'<div class="name">{name}</div><div><b>{prediction.value:.3f}</b>{told} {escape(unit)}</div>{known}{warning}</button>'
    )


def _drawing(molecule: Chem.Mol | None) -> str:
    assert molecule is not None  # others are not kept
    flat = Chem.RemoveHs(molecule)
    flat.RemoveAllConformers()
    drawer = rdMolDraw2D.MolDraw2DSVG(*_DRAWING_SIZE)
    drawer.drawOptions().clearBackground = False  # type: ignore[assignment]  # RDKit gives it the type of its owner
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, flat)
    drawer.FinishDrawing()
    text = drawer.GetDrawingText()
    return str(text[text.index("<svg") :])


def _document(title: str, body: str, has_view: bool) -> str:
    asset = {path.name: path.read_text(encoding="utf-8") for path in _ASSETS.iterdir() if path.is_file()}
    view = f"<!--\n{asset['3Dmol-LICENSE.txt']}\n-->\n<script>{asset['3Dmol-min.js']}</script>" if has_view else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{asset["report.css"]}</style>
{view}
</head>
<body>
{body}
<footer>Drawn with RDKit{" and 3Dmol.js (BSD-3-Clause)" if has_view else ""}; this page needs no network.</footer>
<script>{asset["report.js"]}</script>
</body>
</html>
"""
