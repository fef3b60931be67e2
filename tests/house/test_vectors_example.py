"""The example of vectors at nodes in docs/point_clouds.md runs as it stands, learns, and goes on from its checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from se3_fast.training import read_checkpoint

PAGE = (Path(__file__).parents[2] / "docs" / "point_clouds.md").read_text()
(EXAMPLE,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Bodies" in block]


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "point_clouds.md", "exec"), {})
    error, shape = capsys.readouterr().out.splitlines()[-1].split(maxsplit=1)
    assert float(error) > 0 and shape == "(100, 1, 3)"
    checkpoint = read_checkpoint(tmp_path / "results" / "bodies.pth")
    assert (checkpoint["epoch"], checkpoint["step"]) == (3, 30)
    losses = [record["train_loss"] for record in checkpoint["history"]]
    assert losses[-1] < 0.8 * losses[0]
