"""The page in a browser: it loads without errors, its table sorts, its molecules are drawn in space. Needs Chromium or Chrome."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rdkit")

from se3_fast import Predictor
from se3_fast.data.objective import Objective, Property
from se3_fast.predict.predictor import PredictedValue, Prediction
from se3_fast.report.predictions import PredictionReport, Subject

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SMILES = ["CCCO", "c1ccccc1O", "C1CCOCC1", "CC(F)(F)C#N"]
SECONDS = 60

LISTEN = """<script>
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
window.addEventListener("unhandledrejection", (event) => errors.push(String(event.reason)));
</script>"""
VISIT = """<script>
window.addEventListener("load", () => {
  const column = (number) => [...document.querySelectorAll("tbody tr")].map((row) => row.children[number].textContent);
  const heads = document.querySelectorAll("th");
  const found = { before: column(2) };
  heads[2].firstChild.click();
  found.ascending = column(2);
  heads[2].firstChild.click();
  found.descending = column(2);
  heads[1].firstChild.click();
  found.names = column(1);
  const cards = document.querySelectorAll(".molecule");
  const images = [...cards].map((card) => { card.click(); return viewer.pngURI(); });
  found.shown = document.getElementById("shown").textContent;
  viewer.removeAllModels();
  viewer.render();
  images.push(viewer.pngURI());
  found.differentImages = new Set(images).size;
  found.plots = document.querySelectorAll(".plots svg").length;
  console.log("found " + JSON.stringify({ ...found, errors }));
});
</script>"""


def visit(browser: str, page: str, folder: Path) -> dict[str, Any]:
    path = folder / "page.html"
    path.write_text(page.replace("<head>", f"<head>{LISTEN}").replace("</body>", f"{VISIT}</body>"), encoding="utf-8")
    options = "--headless=new --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --enable-logging=stderr"
    files = [f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'page.png'}", path.as_uri()]
    told = subprocess.run([browser, *options.split(), *files], capture_output=True, text=True, timeout=SECONDS, check=True).stderr
    found = re.search(r'"found (\{.*\})", source', told)
    assert found is not None, told[-2000:]
    assert (folder / "page.png").stat().st_size > 10_000
    return json.loads(found[1])


@pytest.fixture(scope="module")
def page() -> str:
    objective = Objective("regression", (Property("homo", "eV", -10.0, 1.0), Property("y")))
    history = [{"epoch": number, "train_loss": 1 / number, "validation_mae": 2 / number} for number in (1, 2, 3)]
    report = PredictionReport(Subject("a model", objective, [("parameters", "12")], history))
    for number, one in enumerate(Predictor.from_checkpoint("homo").predict([*SMILES, "nonsense"]), 1):
        values = {"homo": one.values["homo"], "y": PredictedValue(None if one.error else 1.0 * number, target=2.0)}
        report.add(Prediction("", number, f"{5 - number} molecule", values, 1, one.outside, one.error, one.molecule))
    return report.page()


def test_in_a_browser(page: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    found = visit(browser, page, tmp_path)
    assert found["errors"] == []
    values = [float(text) for text in found["before"][:-1]]
    assert [float(text) for text in found["ascending"][:-1]] == sorted(values) != values
    assert [float(text) for text in found["descending"][:-1]] == sorted(values)[::-1]
    assert found["before"][-1] == found["ascending"][-1] == found["descending"][-1] == ""  # rows without a number stand last
    assert found["names"] == [f"{number} molecule" for number in range(5)]
    assert found["differentImages"] == len(SMILES) + 1  # each molecule, and none
    assert found["plots"] == 3  # the learning curve, the predictions of one property, both numbers of the other
