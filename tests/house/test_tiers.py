"""The tables of tiers.py name tests that exist."""

from __future__ import annotations

from pathlib import Path

from tests.tiers import LONG, SLOW

ROOT = Path(__file__).parents[1]


def test_every_pattern_names_a_test() -> None:
    for pattern in (*LONG, *SLOW):
        name, _, test = pattern.partition("::")
        if not test:
            continue
        texts = [path.read_text() for path in ROOT.rglob(name)]
        assert any(f"def {test.partition('[')[0].partition('*')[0]}" in text for text in texts), pattern
