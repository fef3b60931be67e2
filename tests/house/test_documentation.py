"""The code of README and docs runs as it stands, in its order, from a fresh folder; pages link to files that there are."""

from __future__ import annotations

import csv
import io
import re
import shlex
from pathlib import Path

import pytest
import torch

from se3_fast.__main__ import main

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
ELSEWHERE = {
    "docs/drop-in.md": "tests/compat/test_drop_in_page.py runs them",
    "docs/molecular_dynamics.md": "tests/simulation/test_page.py runs them, and its commands",
    "docs/reliability.md": "a case of the campaigns, which the repository has and an installation has not",
}
NEEDS = {"docs/predict.md": "model", "docs/forces.md": "force field"}
"""What a page's code takes to be there: what the commands before it have made."""


def blocks_of(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def is_run(block: str) -> bool:
    # A part of a training step of one's own; an example that tests/house/test_vectors_example.py runs.
    return "known_forces" not in block and "class Bodies" not in block


WITH_PYTHON = [page for page in PAGES if blocks_of(page, "python") and page not in ELSEWHERE]
WITH_CONSOLE = [page for page in PAGES if blocks_of(page, "console")]


def make_what_is_needed(page: str, folder: Path) -> dict:
    needed = NEEDS.get(page)
    results = folder / "results"
    if needed == "model":
        from se3_fast.pretrained import find_model
        from se3_fast.training.checkpoint import read_checkpoint, write_checkpoint

        results.mkdir()
        write_checkpoint(results / "model.pth", read_checkpoint(find_model("homo")))
        return {"molecules": ["CCCO"]}
    if needed == "force field":
        sizes = "--num_layers 1 --num_degrees 1 --num_channels 4 --num_radial 4 --max_steps 1 --num_train 20"
        files = f"--num_validation 10 --silent --log_dir {results} --save_ckpt_path {results / 'force_field.pth'}"
        assert main(["train-forces", *sizes.split(), *files.split()]) == 0
    return {}


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in ("README.md", "docs/predict.md"):
        pytest.importorskip("rdkit")
    torch.manual_seed(0)
    names = make_what_is_needed(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in filter(is_run, blocks_of(page, "python")):
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", WITH_CONSOLE)
def test_commands_print_what_is_shown(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rdkit")
    monkeypatch.chdir(tmp_path)
    for block in blocks_of(page, "console"):
        command, *shown = block.splitlines()
        words = shlex.split(command)
        assert words[:2] == ["$", "se3-fast"]
        assert main(words[2:]) in (0, 3)
        printed = capsys.readouterr()
        found = (printed.out + printed.err).splitlines()
        assert len(found) == len(shown)
        for wanted, got in zip(csv.reader(io.StringIO("\n".join(shown))), csv.reader(io.StringIO("\n".join(found))), strict=True):
            for left, right in zip(wanted, got, strict=True):
                assert left == right or float(left) == pytest.approx(float(right), abs=1e-3)
        for name in re.findall(r"--(?:report|output) (\S+)", command):
            assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    folder = (ROOT / page).parent
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith(("http:", "https:")) or (folder / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
