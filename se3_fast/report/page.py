"""The parts of a page: headings, boxes of figures, a table that sorts, drawings of molecules, a view in space."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rdkit import Chem
from rdkit.Chem.Draw import rdMolDraw2D

_DRAWING_SIZE = (220, 160)
_ASSETS = Path(__file__).with_name("assets")


@dataclass(frozen=True)
class Card:
    """A molecule that is drawn.

    Attributes:
        name: Its title.
        molecule: The molecule, with its positions in space if it has any.
        lines: What is written below the drawing, HTML.
    """

    name: str
    molecule: Chem.Mol
    lines: Sequence[str]


def figures(named: Sequence[tuple[str, str]]) -> str:
    """Boxes of (name, value)."""
    boxes = "".join(f'<div class="figure"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in named)
    return f'<div class="figures">{boxes}</div>'


def section(title: str, content: str) -> str:
    """A part of the page with a heading."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def table(columns: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    """A table whose columns (title, 'number' or 'text') sort by a click; rows are ``tr`` elements."""
    head = "".join(
        f'<th scope="col" data-kind="{kind}"><button type="button">{escape(name)}</button></th>' for name, kind in columns
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def drawings(cards: Sequence[Card], note: str) -> str:
    """A view in space, and cards with drawings; a click on a card shows its molecule in space."""
    if not cards:
        return ""
    blocks = [Chem.MolToMolBlock(card.molecule) for card in cards]
    # Within a script element only a slash could end it.
    positions = json.dumps(blocks).replace("</", "<\\/")
    drawn = "".join(_card(number, card) for number, card in enumerate(cards))
    return "".join(
        [
            section("In space", '<p class="note" id="shown"></p><div class="viewer" id="viewer"></div>'),
            section("Drawn", f'<p class="note">{escape(note)}</p><div class="molecules">{drawn}</div>'),
            f'<script type="application/json" id="positions">{positions}</script>',
        ]
    )


def _card(number: int, card: Card) -> str:
    name, lines = escape(card.name), "".join(f"<div>{line}</div>" for line in card.lines)
    return (
        f'<button type="button" class="molecule" data-index="{number}" title="{name}">{_drawing(card.molecule)}'
        f'<div class="name">{name}</div>{lines}</button>'
    )


def _drawing(molecule: Chem.Mol) -> str:
    flat = Chem.RemoveHs(molecule, sanitize=False)
    flat.RemoveAllConformers()
    drawer = rdMolDraw2D.MolDraw2DSVG(*_DRAWING_SIZE)
    drawer.drawOptions().clearBackground = False  # type: ignore[assignment]  # RDKit gives it the type of its owner
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, flat)
    drawer.FinishDrawing()
    text = drawer.GetDrawingText()
    return str(text[text.index("<svg") :])


def document(title: str, body: str, has_view: bool) -> str:
    """A whole page that needs nothing but itself."""
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
