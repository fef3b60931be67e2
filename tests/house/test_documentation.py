"""The code of README and docs runs as it stands, in its order, from a fresh folder; pages link to files that there are."""

from __future__ import annotations

import csv
import importlib
import io
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from se3_fast.__main__ import COMMANDS, main
from se3_fast.data.force_frames import FORCE_SAMPLE_PATH
from se3_fast.data.qm9 import SAMPLE_PATH
from se3_fast.pretrained import find_model
from se3_fast.training.checkpoint import read_checkpoint, write_checkpoint
from tests.training.conftest import write_few_molecules

NOT_RUN = {"se3_fast.data.make_force_sample"}
"""Commands that are tried elsewhere, by their last words."""

TINY = "--num_layers 1 --num_degrees 2 --num_channels 4 --max_steps 1 --num_workers 0 --device cpu --silent"
FEW_STEPS = {
    "train": f"{TINY} --num_heads 2 --batch_size 16",
    "train-forces": f"{TINY} --num_train 10 --num_validation 5",
    "evaluate": "--num_workers 0 --device cpu",
}

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


def shell_commands_of(page: str) -> list[list[str]]:
    """The words of the commands of this package in blocks that name no language, in their order."""
    lines = [line for block in blocks_of(page, "") for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if re.match(r"(\w+=\S+ )?(se3-fast|python -m se3_fast\.)", line)]
    return [words for words in commands if "..." not in words]


def run_shell_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command with as few steps, and as small a model, as there can be."""
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    if words[0] == "python":
        home = importlib.import_module(words[2]).main.__module__
        words = next(name for name, (module, _) in COMMANDS.items() if module == home).split() + words[3:]
    else:
        words = words[1:]
    return main([*words, *FEW_STEPS.get(words[0], "").split()])


@pytest.fixture
def with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that pages speak of, which is the current one."""
    Chem = pytest.importorskip("rdkit.Chem")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_few_molecules(tmp_path / "data")
    with np.load(SAMPLE_PATH) as archive:
        smiles = [text.decode() for text in archive["smiles"][:30]]
    rows = [f"{text},{len(text)},{len(text) / 3:.2f},{len(text) % 2}" for text in smiles]
    (tmp_path / "table.csv").write_text("smiles,y\n" + "".join(f"{text},{len(text)}\n" for text in smiles))
    parts = ["train"] * 24 + ["valid"] * 3 + ["test"] * 3
    wide = [f"{row},{part}" for row, part in zip(rows, parts, strict=True)]
    (tmp_path / "wide.csv").write_text("\n".join(["smiles,gap,mu,active,part", *wide]) + "\n")
    for name in ("molecules.sdf", "new.sdf", "input.sdf"):
        with Chem.SDWriter(str(tmp_path / name)) as writer:
            for text in smiles:
                molecule = Chem.MolFromSmiles(text)
                molecule.SetProp("BOILING POINT", str(len(text)))
                writer.write(molecule)
    for name in ("new.smi", "more.smi"):
        (tmp_path / name).write_text("\n".join(smiles[:3]))
    shutil.copy(FORCE_SAMPLE_PATH, tmp_path / "forces_ethanol.npz")
    (tmp_path / "results").mkdir()
    write_checkpoint(tmp_path / "results" / "model.pth", read_checkpoint(find_model("homo")))
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if shell_commands_of(page)])
def test_shell_commands_run_in_order(page: str, with_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in shell_commands_of(page):
        if words[-1] not in NOT_RUN:
            assert run_shell_command(words, monkeypatch) in (0, 3), " ".join(words)


def test_the_reference_has_all_public_names() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    for module in ("se3_fast", "se3_fast.training", "se3_fast.data", "se3_fast.predict"):
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            home = getattr(getattr(loaded, name), "__module__", None)  # constants have none
            of_constant = {one for one in shown if home is None and hasattr(sys.modules.get(one), name)}
            assert {f"{module}.{name}", f"{home}.{name}", home} & shown or of_constant, f"{module}.{name}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    folder = (ROOT / page).parent
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith(("http:", "https:")) or (folder / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
