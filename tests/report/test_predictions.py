"""The page of predictions: what it says, that nothing of the input becomes code, that it asks for nothing elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("rdkit")
from rdkit import Chem

from se3_fast.data.objective import Objective, Property
from se3_fast.predict.command import main
from se3_fast.predict.predictor import PredictedValue, Prediction, Predictor
from se3_fast.report.predictions import PredictionReport, Subject

HOMO = Objective("regression", (Property("homo", "eV"),))
SMILES = ["c1ccccc1O", "C1CCOCC1", "CC(=O)[O-]", "C" * 30, "<b>&"]


class Outline(HTMLParser):
    """Elements, their attributes, and the text outside of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.texts.append(data)


def outline_of(page: str) -> Outline:
    outline = Outline()
    outline.feed(page)
    return outline


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    table = folder / "known.csv"
    table.write_text("smiles,name,y\nCCCO,<script>alert(1)</script></script>,-10.9\nCCCCO,b,unknown\nc1ccccc1,c,-9.5\n")
    report = folder / "report.html"
    arguments = ["--model", "homo", str(table), "--target", "Y", "--smiles", *SMILES, "--report", str(report)]
    assert main([*arguments, "--output", str(folder / "out.csv")]) == 3
    return report.read_text()


def test_figures_and_rows(page: str) -> None:
    outline = outline_of(page)
    text = " ".join(" ".join(outline.texts).split())
    assert "homo of 8 molecules" in text and "MAE of 2 known (eV)" in text and "median uncertainty (eV)" in text
    assert "30 heavy atoms, training has at most 9" in text and "not a SMILES: '<b>&'" in text
    assert sum(tag == "tr" for tag, _ in outline.elements) == 1 + 8
    assert sum(attributes.get("class") == "molecule" for _, attributes in outline.elements) == 6  # acetate has no number
    positions = re.search(r'<script type="application/json" id="positions">(.*?)</script>', page, re.DOTALL)
    assert positions is not None and len(json.loads(positions[1].replace("<\\/", "</"))) == 6


def test_nothing_of_the_input_becomes_code_and_nothing_is_fetched(page: str) -> None:
    outline = outline_of(page)
    assert sum(tag == "script" for tag, _ in outline.elements) == 3
    assert "<script>alert(1)" not in page
    assert not [attributes for tag, attributes in outline.elements if tag in ("script", "img", "iframe") and "src" in attributes]
    hrefs = {attributes["href"] for tag, attributes in outline.elements if tag == "link"}
    assert hrefs == {"data:,"}
    names = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    drawn_twice = {name for name in names if names.count(name) > 1}
    assert not drawn_twice - {"text"}


def test_size_does_not_grow_with_the_number_of_molecules() -> None:
    (one,) = Predictor.from_checkpoint("homo").predict(["CCCO"])
    report = PredictionReport(Subject("homo", HOMO))
    for _ in range(6_000):
        report.add(one)
    page = report.page()
    assert "1,000 more are in the output" in page and page.count('class="molecule"') == 60


def test_no_molecule_at_all() -> None:
    report = PredictionReport(Subject("homo", HOMO))
    report.add(Prediction("", 1, "a", {"homo": PredictedValue()}, error="not a SMILES"))
    page = report.page()
    assert "not a SMILES" in page and "viewer" not in page.split("<body>")[1].split("<script>")[0]


def test_values_without_a_unit() -> None:
    report = PredictionReport(Subject("model.pth", Objective("regression", (Property("y"),))))
    for number in (1, 2):
        values = {"y": PredictedValue(1.0 * number, 0.1, None, 1.5)}
        report.add(Prediction("", number, "a", values, 1, molecule=Chem.MolFromSmiles("CCO")))
    text = " ".join(" ".join(outline_of(report.page()).texts).split())
    assert "Model model.pth; se3_fast" in text and "MAE of 2 known" in text and "y, known" in text
    assert "()" not in text


def test_values_that_are_small_by_their_unit() -> None:
    report = PredictionReport(Subject("model.pth", Objective("regression", (Property("k", "mol/l", 3e-9, 2e-9),))))
    values = {"k": PredictedValue(4.123456e-9, 3.21e-10, None, 5.5e-9)}
    report.add(Prediction("", 1, "a", values, 1, molecule=Chem.MolFromSmiles("CCO")))
    texts = [text.strip() for text in outline_of(report.page()).texts]
    assert {"0.000000004123", "0.000000000321", "0.000000005500"} <= set(texts)  # the table
    assert "0.00000000412" in texts and "known 0.00000000550" in texts  # the card
