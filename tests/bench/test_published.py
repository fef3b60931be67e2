"""``python -m bench.published``: contestants are brought to the same inputs, compared, timed; the pages have what its file has.

The published program is stood in for by packages that are written here: our own layers by the published formula on a graph of DGL's
kind, right or wrong in one place.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import bench.published.__main__ as command
from bench.published import contestant, tables
from bench.workloads import DESCRIPTIONS

ROOT = Path(__file__).parents[2]

STAND_IN = """
from dgl import DGLGraph

import se3_fast
from se3_fast import Fiber


class Compared:
    def forward(self, graph, *features):
        assert isinstance(graph, DGLGraph)
        with se3_fast.backend("dense"):
            output = super().forward(graph, *features)
        return output if {scale} == 1 else {name_of_scaled}


class SE3Transformer(Compared, se3_fast.SE3Transformer):
    pass


class SE3TransformerPooled(Compared, se3_fast.SE3TransformerPooled):
    pass
"""
SCALED_OUTPUT = "{degree: {SCALE} * values for degree, values in output.items()}"
SCALED_GRADIENT = "{degree: values + {SCALE} * (values - values.detach()) for degree, values in output.items()}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published(tmp_path / "right", 1, "output")


def published(folder: Path, scale: float, scaled: str) -> Path:
    """A folder with a package ``se3_transformer``."""
    model = folder / "se3_transformer" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").touch()
    source = STAND_IN.replace("{name_of_scaled}", scaled).replace("{scale}", str(scale)).replace("{SCALE}", str(scale))
    (model / "__init__.py").write_text(source)
    return folder


def run(folder: Path, *words: str) -> int:
    return command.main([str(folder), "--rounds", "1", "--threads", "1", "--workloads", "protein_refine:5", *words])


def test_rows_tables_and_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SECONDS_OF_TURN", 0.01)
    file = tmp_path / "published.json"
    assert run(folder, "--before", str(ROOT), "--allocator", "tuned", "--json", str(file)) == 0
    result = json.loads(file.read_text())
    rows = result["rows"]
    names = ["ours", "published", "before"]
    assert [row["contestant"] for row in rows] == 3 * names
    assert [row["pass"] for row in rows] == ["forward"] * 3 + ["forward+backward"] * 3 + ["memory"] * 3
    assert [row.get("allocator") for row in rows] == ["tuned"] * 6 + [None] * 3
    for row in rows[:-3]:
        assert (row["nodes"], row["edges"], row["threads"]) == (5, 20, 1)
        assert 0 < row["least_ms"] <= row["median_ms"] and row["steps"] >= 1
        assert (0 < row["difference"] < 1e-5) if row["contestant"] == "published" else row["difference"] == 0
    assert all(row["peak_MiB"] > -1 for row in rows[-3:])
    assert result["contestants"]["ours"]["commit"] == result["contestants"]["before"]["commit"]
    assert set(result["contestants"]["published"]) == {"commit", "sha256_of_model", "dgl", "e3nn"}
    assert len(result["environment"]["load_average"]) == 2 and result["environment"]["processor"]
    printed = capsys.readouterr().out
    assert tables.full_table(result) in printed and "| protein_refine (residues 5) | 20 | 1 | tuned |" in printed


@pytest.mark.parametrize(
    ("scaled", "where"), [(SCALED_OUTPUT, "output 0"), (SCALED_GRADIENT, "gradient node 0")], ids=["output", "gradient"]
)
def test_another_function_is_refused(scaled: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(published(tmp_path / "wrong", 1.001, scaled)) == 1
    printed = capsys.readouterr()
    assert f"error: ours: ValueError: published: {where}: expected ours to 0.0001, got a relative difference" in printed.err
    assert "median_ms" not in printed.out


def test_programs_that_do_not_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("se3_transformer", "se3_fast"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('broken')")
    assert run(tmp_path) == 1
    assert "error: published: ImportError: broken" in capsys.readouterr().err
    assert run(published(tmp_path / "right", 1, "output"), "--before", str(tmp_path)) == 1
    assert "error: before: ImportError: broken" in capsys.readouterr().err


def result_of(ours: float, published: float) -> dict:
    """A result with these times and peaks."""
    rows = []
    for name, value in (("ours", ours), ("published", published)):
        row = {"workload": "qm9:16", "nodes": 300, "edges": 1234, "contestant": name}
        for direction in command.PASSES:
            rows.append(row | {"pass": direction, "median_ms": value, "threads": 2, "allocator": "default"})
        rows.append(row | {"pass": "memory", "peak_MiB": value})
    where = {"processor": "A CPU", "torch": "2.13.0", "date": "2026-11-29T12:00:00", "load_average": [0.12, 1.0]}
    of = {"ours": {"commit": "0123456789", "backend": "cpp"}, "published": {"dgl": "se3_fast.compat", "e3nn": "0.6.0"}}
    return {"rows": rows, "environment": where, "contestants": of}


def test_tables_take_their_place_in_the_pages(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/measurements.md"):
        (tmp_path / name).write_text(f"before\n\n{tables.BEGIN}\nold\n{tables.END}\n\nafter\n")
    for _ in range(2):
        tables.write_pages(result_of(10.0, 25.0), tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n\n<!--") and page.endswith("-->\n\nafter\n") and "old" not in page
    assert "| qm9 (batch 16) | 1,234 | 2.5 x faster (10.0 ms) | 2.5 x faster (10.0 ms) | 2.5 x less (10.0 MiB) |" in page
    assert "commit 0123456, backend `cpp`" in page and "2 threads." in page
    full = tables.table_of((tmp_path / "docs" / "measurements.md").read_text())
    assert full == tables.full_table(result_of(10.0, 25.0))
    assert "| qm9 (batch 16) | 1,234 | 2 | default | 10.0 ms | 25 ms (2.5 x) | 10.0 ms | 25 ms (2.5 x) |" in full


def test_where_ours_is_slower_the_table_says_so() -> None:
    assert "0.50 x faster (40 ms)" in tables.short_table(result_of(40.0, 20.0))


@pytest.mark.parametrize(("page", "table"), [("README.md", tables.short_table), ("docs/measurements.md", tables.full_table)])
def test_the_pages_have_the_table_of_the_file(page: str, table: object) -> None:
    result = json.loads((ROOT / "bench" / "results" / "published_cpu.json").read_text())
    assert tables.table_of((ROOT / page).read_text()) == table(result)  # type: ignore[operator]


@pytest.mark.parametrize("processor", ["xeon", "epyc"])
def test_the_page_has_the_tables_of_other_processors(processor: str) -> None:
    result = json.loads((ROOT / "bench" / "results" / f"published_{processor}_cpu.json").read_text())
    assert tables.short_table(result) in (ROOT / "docs" / "measurements.md").read_text()


def test_every_workload_has_a_description() -> None:
    assert {name.partition(":")[0] for name in command.WORKLOADS} <= set(DESCRIPTIONS)
    assert contestant.PUBLISHED not in sys.modules
