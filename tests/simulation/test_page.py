"""docs/molecular_dynamics.md: its code and its commands run as they stand, in their order."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from se3_fast.__main__ import main
from tests.simulation.conftest import small_force_field, write_force_field

MORE = {
    "relax": ["--device", "cpu", "--max_steps", "10"],  # a force field that nothing has trained has no minimum near
    "md": ["--device", "cpu"],
    "evaluate-forces": ["--device", "cpu"],
    "export-lammps": [],
}
PAGE = Path(__file__).parents[2] / "docs" / "molecular_dynamics.md"


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    for seed, name in enumerate(("force_field", "other_seed")):
        write_force_field(tmp_path / "results" / f"{name}.pth", small_force_field(seed, num_layers=1))
    names: dict[str, object] = {}
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "python", "sh", "sh", "python"]
    for language, block in blocks:
        if language == "python":
            if "torch_sim" not in block or find_spec("torch_sim"):
                exec(compile(block, PAGE.name, "exec"), names)
            continue
        for line in block.splitlines():
            command, *words = shlex.split(line)
            assert command == "se3-fast"
            assert main([*words, *MORE[words[0]]]) in (0, 3), line
    written = ("relaxed.xyz", "nve.traj", "nve.png", "warm.xyz", "warm.csv", "errors.csv", "force_field.pkl")
    assert all((tmp_path / name).stat().st_size > 0 for name in written)
