"""Cost over sizes: exponents of known data, what ends a sweep, tables and plots."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from bench import plots, scaling
from bench.workloads import BACKENDS


def test_exponents_of_power_laws() -> None:
    sizes = [10, 30, 100, 1000]
    for exponent in (0.5, 1.0, 3.0):
        assert scaling.fitted_exponent(sizes, [7.0 * size**exponent for size in sizes]) == pytest.approx(exponent)
    assert scaling.fitted_exponent([1, 2], [1.0, 2.0]) is None
    assert scaling.fitted_exponent(sizes, [5.0 + 0.01 * size for size in sizes]) is None  # a constant, then a line
    assert scaling.fitted_exponent(sizes, [5.0] * 4) is None


def known_rows() -> list[dict[str, Any]]:
    """Time: launches of 1 ms, then 1 us an edge; memory: 5 MiB and 1 KiB an edge; degrees: the cube of their number."""
    rows: list[dict[str, Any]] = []
    for edges in (100, 1000, 10**5, 10**6, 10**7):
        row = {"sweep": "edges", "backend": "torch", "edges": edges, "max_degree": 3}
        rows.append(row | {"step_ms": 1.0 + 1e-3 * edges, "peak_MiB": 5.0 + edges / 1024})
    rows.append({"sweep": "edges", "backend": "dense", "edges": 100, "max_degree": 3, "reason": "OutOfMemoryError: too little"})
    for degree in range(1, 7):
        row = {"sweep": "degrees", "backend": "torch", "edges": 200, "max_degree": degree}
        rows.append(row | {"step_ms": (degree + 1) ** 3.0, "peak_MiB": 2.0 * (degree + 1) ** 3})
    return rows


def test_fits_of_known_rows() -> None:
    of_edges, of_degrees = scaling.fits(known_rows())
    assert of_edges["sizes"] == [10**5, 10**6, 10**7]
    assert of_edges["time_exponent"] == pytest.approx(1.0, abs=0.01)
    assert of_edges["bytes_per_edge"] == pytest.approx(1024)
    assert of_degrees["sizes"] == [5, 6, 7]
    assert of_degrees["time_exponent"] == pytest.approx(3.0) and of_degrees["memory_exponent"] == pytest.approx(3.0)
    assert of_degrees["bytes_per_edge"] is None


def test_table_and_plots(tmp_path: Path) -> None:
    rows = known_rows()
    fits = scaling.fits(rows)
    text = scaling.table(rows, fits)
    assert "| 100 | 3 | 1.10 (5.1) | not measured (OutOfMemoryError: too little) |" in text
    assert "degrees, torch: time exponent 3.00, memory exponent 3.00" in text
    for sweep in ("edges", "degrees"):
        plots.plot_scaling(rows, fits, sweep, "known data", tmp_path / f"{sweep}.png")
        assert (tmp_path / f"{sweep}.png").read_bytes().startswith(b"\x89PNG")
    plots.plot_rivals([{"name": "e3nn", "step_ms": 2.0, "peak_MiB": 1.0}, {"name": "x", "reason": "no"}], "", tmp_path / "r.png")
    assert (tmp_path / "r.png").exists()


def test_sweep_drops_what_is_slow_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first backend grows slow, the second fails at the second size; the last goes to the end."""
    slow, failing, last = BACKENDS

    def timed(edges: int, degree: int, backends: list[str]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {backend: {"step_ms": 1.0} for backend in backends}
        if slow in backends:
            found[slow] = {"step_ms": 10.0 * edges}
        if failing in backends and edges > 2:
            found[failing] = {"reason": "RuntimeError: no"}
        return found

    monkeypatch.setattr(scaling, "_timed", timed)
    monkeypatch.setattr(scaling, "peaks", lambda backend, points: [2**20 * len(points)] * len(points))
    monkeypatch.setattr(scaling, "DEVICE", scaling.DEVICE.__class__("cpu"))
    rows = scaling.sweep_edges(scaling.Limits(step_ms=30.0), [2, 4, 8])
    reasons = {(row["backend"], row["edges"]): row.get("reason") for row in rows}
    assert reasons[slow, 4] is None and reasons[slow, 8] == "the step before took too long"
    assert reasons[failing, 2] is None and reasons[failing, 4] == reasons[failing, 8] == "RuntimeError: no"
    assert [row["peak_MiB"] for row in rows if row["backend"] == last] == [3.0, 3.0, 3.0]


def test_sweep_ends_at_the_deadline() -> None:
    rows = scaling.sweep_degrees(scaling.Limits(deadline=time.monotonic() - 1.0), [1, 2])
    assert [row["reason"] for row in rows] == ["out of time"] * 2 * len(BACKENDS)


def test_largest_graph_doubles_until_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(backend: str, points: list[tuple[int, int]]) -> list[int]:
        if points[0][0] > 5 * scaling.EDGES[0]:
            raise RuntimeError("CUDA out of\nmemory")
        return [points[0][0] * 2**20]

    monkeypatch.setattr(scaling, "peaks", limited)
    found = scaling.largest_graph("torch")
    assert found["edges"] == found["peak_MiB"] == 4 * scaling.EDGES[0]
    assert found["ended_by"] == "RuntimeError: CUDA out of memory"


def test_real_sweep() -> None:
    """A size of every backend, measured; peak memory from processes of their own."""
    rows = scaling.sweep_degrees(scaling.Limits(), [1])
    assert [row["backend"] for row in rows] == list(BACKENDS)
    assert all(row["step_ms"] > 0 and row["peak_MiB"] > 0 for row in rows)
