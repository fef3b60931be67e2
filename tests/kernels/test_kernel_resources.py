from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from se3_fast.kernels.resources import TABLE, TARGETS, Resources, _pointers, all_cases, main, signature

GOOD = Resources("module", "case", "sm_80", 64, 0, 4096, 32, 8, expects_matrix_instructions=True)


def compile_offline(tmp_path: Path, *arguments: str) -> list[dict[str, Any]]:
    """Run the command where Triton compiles; a kernel with a problem fails the test."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "se3_fast.kernels.resources", "--output", str(tmp_path / "table.md"), "--json", str(figures)]
    finished = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(figures.read_text())


def cells_of_table(path: Path) -> dict[tuple[str, str], list[str]]:
    """The cells of a table by module and case."""
    cells = {}
    for section in path.read_text().split("\n## ")[1:]:
        module, _, _, _, *lines = section.splitlines()
        for line in filter(None, lines):
            case, *rest = line.strip("| ").split(" | ")
            cells[module, case] = rest
    return cells


def test_first_case_of_every_module_compiles_as_the_table_says(tmp_path: Path) -> None:
    names = [f"{module}: {cases[0].name}" for module, cases in all_cases().items()]
    rows = compile_offline(tmp_path, "--targets", "sm_80", "sm_90", "--cases", *names)
    assert {f"{row['module']}: {row['case']}" for row in rows} == set(names)
    assert all(row["error"] is None and row["stack_bytes"] == 0 and row["registers"] > 0 for row in rows)
    current = cells_of_table(TABLE)
    for case, cells in cells_of_table(tmp_path / "table.md").items():
        assert cells == [current[case][column] for column in (1, 3)], case  # of sm_75, sm_80, sm_86, sm_90, ...


@pytest.mark.skipif("SE3_FAST_COMPILE_ALL" not in os.environ, reason="minutes of compiling; SE3_FAST_COMPILE_ALL=1 runs it")
def test_every_case_compiles_without_spills_and_the_table_is_current(tmp_path: Path) -> None:
    rows = compile_offline(tmp_path)
    assert {row["target"] for row in rows} >= set(TARGETS)
    assert (tmp_path / "table.md").read_text() == TABLE.read_text()


def test_the_table_lists_every_case() -> None:
    modules = TABLE.read_text().split("\n## ")[1:]
    listed = {
        section.splitlines()[0]: [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines()[4:] if line]
        for section in modules
    }
    assert listed == {module: [case.name for case in cases] for module, cases in all_cases().items()}


def test_cases_are_complete() -> None:
    for module, cases in all_cases().items():
        assert len({case.name for case in cases}) == len(cases), module
        for case in cases:
            assert set(case.kernel.arg_names) == {*case.signature, *case.constants}, f"{module}: {case.name}"


def test_types_of_arguments() -> None:
    """By name, all others those of values; pointers are found in tuples of tuples, too."""
    kernel = SimpleNamespace(arg_names=["parts", "size", "output", "BLOCK"])
    types = signature(kernel, {"BLOCK": 16}, {"parts": (("*fp16",), ("*fp16", "i32")), "size": "i32", "other": "i64"}, "*fp32")
    assert types == {"parts": (("*fp16",), ("*fp16", "i32")), "size": "i32", "output": "*fp32"}
    assert list(_pointers(tuple(types.values()))) == [(0, 0, 0), (0, 1, 0), (2,)]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"stack_bytes": 8}, "8 bytes on the stack"),
        ({"matrix_instructions": 0}, "no matrix instructions"),
        ({"warps_per_multiprocessor": 0}, "4096 bytes of shared memory, more than a block can have"),
        ({"error": "CompilationError: no"}, "does not compile: CompilationError: no"),
        ({"error": "CompilationError: no", "target": "sm_75"}, None),
    ],
)
def test_problems_are_found(change: dict[str, Any], problem: str | None) -> None:
    assert dataclasses.replace(GOOD, **change).problem() == problem


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET: expected it not to be set"):
        main(["--output", str(tmp_path / "table.md")])


def test_unknown_cases_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="cases: expected 'module: case' of cases that there are, got 'basis: none'"):
        main(["--output", str(tmp_path / "table.md"), "--cases", "basis: none"])


def test_a_part_does_not_replace_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--targets", "sm_80"])
    assert "does not replace RESOURCES.md" in capsys.readouterr().err
