"""The registry of benchmarks has every operation, and the page about it is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.registry import BENCHMARKS, DTYPES, table

ROOT = Path(__file__).parents[2]


def operations() -> set[str]:
    return {path.stem for path in (ROOT / "bench" / "ops").glob("*.py")} - {"__init__"}


def test_every_problem_is_of_an_operation_and_registered() -> None:
    assert set(BENCHMARKS) == operations()
    rooms = ("se3_fast/ops", "se3_fast/backends/triton")  # two save launches of that backend alone
    assert set(BENCHMARKS) <= {path.stem for room in rooms for path in (ROOT / room).glob("*.py")}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_passes_are_those_of_the_problem(name: str) -> None:
    benchmark = BENCHMARKS[name]
    problem = benchmark.problem("qm9", DTYPES[benchmark.dtypes[0]])
    assert tuple(problem.passes()) == benchmark.passes
    assert all(problem.cost_of(passes).bytes > 0 for passes in benchmark.passes)


def test_the_page_has_the_table() -> None:
    assert table() in (ROOT / "docs" / "benchmarks.md").read_text()
