"""The compiled CPU operations called directly with what does not fit: an error that names the argument, and never a crash."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from se3_fast.backends.cpp import library

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

OPERATIONS = (
    "wigner_blocks",
    "radial",
    "radial_backward",
    "edge_attention",
    "edge_attention_backward",
    "equivariant_norm",
    "equivariant_norm_backward",
    "linear",
    "linear_backward",
    "tfn_conv",
    "tfn_conv_backward",
    "tfn_conv_by_source",
    "tfn_conv_by_source_backward",
    "attention_block",
    "depthwise_conv",
    "depthwise_conv_backward",
    "depthwise_conv_along",
    "force_network",
    "force_network_along",
)


class Outcome(NamedTuple):
    """What came of a call: see ``attack.py``; ``error`` is empty where it succeeded."""

    operation: str
    change: str
    is_bad: bool
    arguments: list[str]
    error: str


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Of all bad calls, made in another process."""
    path = tmp_path_factory.mktemp("attack") / "calls"
    command = [sys.executable, "-m", "tests.backends.cpp.attack", str(path)]
    finished = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    lines = path.read_text().splitlines() if path.exists() else []
    last = lines[-1][:200] if lines else "before any call"
    assert finished.returncode == 0, f"ended with {finished.returncode} at {last}\n{finished.stderr[-3000:]}"
    return [Outcome(*json.loads(before), json.loads(after)) for before, after in (line.split("\t") for line in lines)]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_bad_calls_are_refused(operation: str, outcomes: list[Outcome]) -> None:
    calls = [outcome for outcome in outcomes if outcome.operation == operation]
    accepted = [outcome.change for outcome in calls if outcome.is_bad and not outcome.error]
    assert len([outcome for outcome in calls if outcome.is_bad]) > 30
    assert accepted == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_errors_name_the_argument(operation: str, outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.operation == operation and outcome.error:
            found = re.fullmatch(r"RuntimeError: (\w+)(\[\d+\])?: expected .+, got .+", outcome.error)
            assert found and found[1] in outcome.arguments, f"{outcome.change}: {outcome.error}"
