"""``python -m bench.force_rivals``: what it makes of its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.force_rivals import summary

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "force_rivals_cpu.json"


def a_row(seed: int, optimizer: str, error: float, processor: str = "fast") -> dict[str, Any]:
    named = {
        "processor": processor,
        "contestant": "se3_fast",
        "version": "1",
        "seed": seed,
        "data": "frames.npz",
        "budget_s": 250.0,
        "optimizer": optimizer,
    }
    sizes = {"parameters": 10, "steps": 100, "ms_per_frame": 2.0, "ms_per_frame_of_50": 1.0}
    return named | sizes | {"force_mae_eV_A": error, "energy_mae_eV": 0.002}


def test_seeds_are_averaged_and_optimizers_and_processors_and_versions_kept_apart() -> None:
    rows = [a_row(1, "Adam", 0.03), a_row(1, "Soap", 0.01), a_row(2, "Adam", 0.05), a_row(1, "Adam", 0.07, "slow")]
    rows.append(a_row(1, "Soap", 0.02) | {"version": "2"})
    assert summary(rows).splitlines()[2:] == [
        "| fast | frames.npz | 250 | se3_fast 1 | Adam | 10 | 100 | 40.0 (30.0 to 50.0) | 2.0 | 2.00 | 1.00 |",
        "| fast | frames.npz | 250 | se3_fast 1 | Soap | 10 | 100 | 10.0 | 2.0 | 2.00 | 1.00 |",
        "| slow | frames.npz | 250 | se3_fast 1 | Adam | 10 | 100 | 70.0 | 2.0 | 2.00 | 1.00 |",
        "| fast | frames.npz | 250 | se3_fast 2 | Soap | 10 | 100 | 20.0 | 2.0 | 2.00 | 1.00 |",
    ]


def test_the_results_can_be_summed_up() -> None:
    assert "| se3_fast 0.1.0 | Soap |" in summary(json.loads(RESULTS.read_text())["rows"])
