"""The example of vectors at nodes in the README runs as it stands, learns, and goes on from its checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from se3_fast.training import read_checkpoint

README = (Path(__file__).parents[2] / "README.md").read_text()
(EXAMPLE,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class Bodies" in block]


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "README.md", "exec"), {})
    error, shape = capsys.readouterr().out.splitlines()[-1].split(maxsplit=1)
    assert float(error) > 0 and shape == "(100, 1, 3)"
    checkpoint = read_checkpoint(tmp_path / "results" / "bodies.pth")
    assert (checkpoint["epoch"], checkpoint["step"]) == (3, 30)
    losses = [record["train_loss"] for record in checkpoint["history"]]
    assert losses[-1] < 0.8 * losses[0]
