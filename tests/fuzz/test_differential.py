"""The differential campaign: drawn cases on every backend against `dense`; see cases.py, strategies.py and differential.py.

A failure prints the case, made as small as it can be; `check(<case>, <backend>)` runs it again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from se3_fast.backends.cpp import library
from tests.fuzz import budget
from tests.fuzz.cases import Case
from tests.fuzz.differential import check
from tests.fuzz.strategies import ORDINARY, TINY, energies, layers, models

ROUND = 100
"""Cases of a round of the long run; each round has a seed of its own."""

ON_CPU = ["torch", *(["cpp"] if library.is_available() else [])]


def explore(strategy: SearchStrategy[Case], backends: list[str], short: int, part: float, compiler: str | None = None) -> None:
    """Check drawn cases: ``short`` of them, or in the long run as many as there is time for in ``part`` of the campaign's share."""
    end = budget.deadline("differential", part)
    is_failing = False

    def body(case: Case) -> None:
        nonlocal is_failing
        if time.monotonic() >= end and not is_failing:  # else it is being made smaller
            return
        budget.begin("differential", f"check({case!r}, *{backends})")
        try:
            check(case, *backends, compiler=compiler)
        except Exception:
            is_failing = True
            raise

    if not budget.is_long():
        settings(OPTIONS, max_examples=short, derandomize=True)(given(strategy)(body))()
        return
    for number in itertools.count():
        if time.monotonic() >= end:
            return
        seed(f"{budget.seed()}-{number}")(settings(OPTIONS, max_examples=ROUND)(given(strategy)(body)))()


OPTIONS = settings(
    database=None, deadline=None, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck)
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_layers() -> None:
    explore(layers(ORDINARY), ON_CPU, short=25, part=0.25)


def test_models() -> None:
    explore(models(ORDINARY), ON_CPU, short=12, part=0.25)


def test_force_fields() -> None:
    explore(energies(ORDINARY), ON_CPU, short=12, part=0.1)


def test_force_fields_by_triton_kernels() -> None:
    pytest.importorskip("triton")
    explore(energies(TINY), ["triton"], short=3, part=0.1)


def test_layers_by_triton_kernels() -> None:
    pytest.importorskip("triton")
    explore(layers(TINY), ["triton"], short=6, part=0.15)


def test_models_by_triton_kernels() -> None:
    pytest.importorskip("triton")
    explore(models(TINY), ["triton"], short=2, part=0.1)


def test_compiled_models() -> None:
    explore(models(TINY).map(compilable), ["torch"], short=1, part=0.05, compiler="aot_eager")


def compilable(case: Case) -> Case:
    """The case without what compiled graphs do not do: second derivatives, published bases, inference mode before training."""
    mode = case.run.mode if case.run.mode == "no_grad" else "first"
    return replace(case, run=replace(case.run, mode=mode), basis=None)
