"""Arguments of benchmarks that cannot be: one line, before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import orders
from bench.published.__main__ import NAMES, WORKLOADS, parse
from bench.workloads import DESCRIPTIONS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that holds the package."""
    (tmp_path / "se3_transformer").mkdir()
    (tmp_path / "se3_transformer" / "__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["{folder}/none"], "argument folder: expected a folder with the package se3_transformer, got none: "),
        (["{folder}/se3_transformer"], "argument folder: expected a folder with the package se3_transformer, got one without: "),
        (["{folder}", "--before", "{folder}"], "argument --before: expected a folder with the package se3_fast, got one without: "),
        (["{folder}", "--rounds", "0"], "argument --rounds: expected a whole number above 0, got '0'"),
        (["{folder}", "--threads", "1", "two"], "argument --threads: expected a whole number above 0, got 'two'"),
        (["{folder}", "--workloads", "qm9"], "argument --workloads: expected NAME:SIZE with one of qm9, "),
        (["{folder}", "--workloads", "qm8:16"], "argument --workloads: expected NAME:SIZE with one of qm9, "),
        (["{folder}", "--workloads", "qm9:0"], "argument --workloads: expected NAME:SIZE with one of qm9, "),
        (["{folder}", "--json", "{folder}/none/rows.json"], "argument --json: expected a file that can be written, got "),
        (["{folder}", "--json", "{folder}"], "argument --json: expected a file that can be written, got "),
    ],
)
def test_published(folder: Path, words: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([word.format(folder=folder) for word in words])
    assert ended.value.code == 2 and f"error: {fault}" in capsys.readouterr().err


def test_published_takes_what_there_is(folder: Path) -> None:
    assert set(NAMES) == DESCRIPTIONS.keys() and {workload.partition(":")[0] for workload in WORKLOADS} <= set(NAMES)
    words = [str(folder), "--rounds", "2", "--threads", "1", "4", "--workloads", "qm9:3", "--json", str(folder / "rows.json")]
    found = parse(words)
    assert (found.folder, found.rounds, found.threads, found.workloads) == (folder, 2, [1, 4], ["qm9:3"])
    assert parse([str(folder)]).workloads == WORKLOADS


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--seconds", "-1"], "argument --seconds: expected seconds, 0 or more, got '-1'"),
        (["--seconds", "nan"], "argument --seconds: expected seconds, 0 or more, got 'nan'"),
        (["--json", "nowhere/rows.json"], "argument --json: expected a file that can be written, got 'nowhere/rows.json'"),
    ],
)
def test_orders(words: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        orders.main(words)
    assert ended.value.code == 2 and f"error: {fault}" in capsys.readouterr().err
