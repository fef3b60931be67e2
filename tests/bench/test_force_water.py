"""The boxes of water, and a row of the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import force_water


def test_a_box_is_water_of_density_1() -> None:
    atoms = force_water.box(64)
    assert sorted(atoms.get_chemical_formula()) == sorted("H128O64")
    assert abs(atoms.get_masses().sum() / atoms.get_volume() * 1.66054 - 1.0) < 0.01
    distances = atoms.get_all_distances(mic=True)
    bonds = (distances < 1.0) & (distances > 0)
    assert bonds.sum() == 4 * 64  # each hydrogen has one, both ways
    assert distances[(distances > 0) & ~bonds].min() > 1.2
    with pytest.raises(ValueError, match="expected a cube, such as 343 or 2744, got 60"):
        force_water.box(60)


def test_a_table_grows_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "water.json"
    for count in ("1", "8"):
        assert force_water.main(["--molecules", count, "--contestants", "se3_fast", "--json", str(path)]) == 0
    table = json.loads(path.read_text())
    assert [row["atoms"] for row in table["rows"]] == [3, 24]
    assert all(row["ms"] > 0 and row["peak_GiB"] > 0 for row in table["rows"])
    assert "| 24 | se3_fast" in capsys.readouterr().out
