"""The summary line of each campaign, on the terminal and for `python -m tests.fuzz`."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz import budget

FAILURES: Counter[str] = Counter()


def campaign_of(test_file: Path) -> str:
    """test_differential_models.py belongs to campaign `differential`."""
    return test_file.stem.split("_")[1]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = (yield).get_result()
    if report.failed and item.path.parent == Path(__file__).parent:
        FAILURES[campaign_of(item.path)] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    summary = {name: {"cases": cases, "failures": FAILURES[name]} for name, cases in budget.counted().items()}
    for name, numbers in summary.items():
        terminalreporter.write_line(f"fuzz: {name}, seed {budget.seed()}: {numbers['cases']} cases, {numbers['failures']} failures")
    if target := os.environ.get("SE3_FAST_FUZZ_SUMMARY"):
        Path(target).write_text(json.dumps(summary))
