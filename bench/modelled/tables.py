"""What is printed and written: the launches of a step, dearest first, and two of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.modelled import gpu
from bench.modelled.launch_time import BOUNDS
from bench.modelled.opcodes import PIPES
from bench.modelled.step import Row

FIRST_LINE = (
    f"Modelled, not measured: a static model of an {gpu.NAME}. Uncalibrated: latencies, the rates of caches and memory, the time "
    "around a launch. Its ranking says more than its digits."
)


def as_json(what: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """A step for a file; ``what`` says which: ``workload``, ``size``, ``kind``, ``molecules``."""
    launches = [asdict(row) | {"bound": row.bound, "waves": row.waves} for row in rows]
    return {"about": FIRST_LINE, **what, "us": sum(row.us for row in rows), "rows": launches}


def whole(what: dict[str, Any], rows: Sequence[Row]) -> str:
    """All that is printed of a step."""
    head = f"{_title_of_step(what)}: {summary(rows, what['molecules'])}"
    return "\n\n".join((FIRST_LINE, head, launches_table(rows), bounds_table(rows), instructions_table(rows)))


def summary(rows: Sequence[Row], molecules: int | None) -> str:
    """Sum, throughput, share of the tensor cores' rate."""
    us = sum(row.us for row in rows)
    flop = sum(row.count * row.time.matrix_flop for row in rows if row.time is not None)
    parts = [f"{sum(row.count for row in rows)} launches", f"{us / 1e3:.3f} ms"]
    if molecules is not None:
        parts.append(f"{1e3 * molecules / us:.1f} molecules/ms")
    parts.append(f"{100 * flop / us / gpu.TENSOR_FLOP_PER_US:.1f} % of the tensor cores' rate")
    return ", ".join(parts)


def launches_table(rows: Sequence[Row]) -> str:
    """Dearest first: what each launch takes, what bounds it, how it fills the GPU."""
    head = ("launch", "n", "us all", "us each", "bound", "grid", "warps", "registers", "resident", "waves", "% tensor")
    body = []
    for row in _dearest_first(rows):
        each = row.us / row.count
        cells = [_title(row), str(row.count), f"{row.us:.1f}", f"{each:.1f}", row.bound]
        if row.time is not None:
            share = 100 * row.time.matrix_flop / each / gpu.TENSOR_FLOP_PER_US
            registers = f"{row.time.registers}" + (" (stack)" if row.time.stack_bytes else "")
            grid = "x".join(map(str, row.grid))
            cells += [grid, str(row.num_warps), registers, str(row.time.resident), f"{row.waves:.2f}"]
            cells += [f"{share:.1f}"] if share else []
        body.append(cells + [""] * (len(head) - len(cells)))
    return _aligned([list(head), *body])


def bounds_table(rows: Sequence[Row]) -> str:
    """Every bound of one launch, in microseconds."""
    body = [[_title(row), *(f"{row.bounds.get(name, 0.0):.1f}" for name in BOUNDS)] for row in _of_kernels(rows)]
    return _aligned([["us of one launch, by bound", *BOUNDS], *body])


def instructions_table(rows: Sequence[Row]) -> str:
    """Machine instructions of the longest warp by pipe, what it waits for, and what the model does not know."""
    body = []
    for row in _of_kernels(rows):
        assert row.time is not None
        counts = [str(row.time.instructions.get(pipe, 0) or "") for pipe in PIPES]
        waits = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.time.waited.items())
        body.append([_title(row), *counts, waits, _unknown(row)])
    return _aligned([["instructions of one warp, by pipe", *PIPES, "waits for", "not known"], *body])


def comparison(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Two steps, as :func:`as_json` has them: launches by kernel and layer, those that changed most first."""
    totals = [_by_title(step["rows"]) for step in (before, after)]
    titles = dict.fromkeys(title for total in totals for title in total)
    pairs = {title: [total.get(title, _Total()) for total in totals] for title in titles}
    ordered = sorted(pairs.items(), key=lambda item: -abs(item[1][1].us - item[1][0].us))
    ordered.append(("all", [_Total(sum(row["count"] for row in step["rows"]), step["us"]) for step in (before, after)]))
    body = [
        [title, str(old.count), f"{old.us:.1f}", old.bound, str(new.count), f"{new.us:.1f}", new.bound, f"{new.us - old.us:+.1f}"]
        for title, (old, new) in ordered
    ]
    table = _aligned([["launch", "n before", "us", "bound", "n after", "us", "bound", "change"], *body])
    steps = f"before: {_title_of_step(before)}\nafter: {_title_of_step(after)}"
    return "\n\n".join((FIRST_LINE, steps, table))


@dataclass
class _Total:
    """Launches of one kernel by one kind of layer; what bounds the dearest of them."""

    count: int = 0
    us: float = 0.0
    bound: str = ""


def _by_title(rows: Sequence[dict[str, Any]]) -> dict[str, _Total]:
    totals: dict[str, _Total] = {}
    for row in sorted(rows, key=lambda row: -row["us"]):
        total = totals.setdefault(f"{row['name']} ({row['issuer']})", _Total(bound=row["bound"]))
        total.count += row["count"]
        total.us += row["us"]
    return totals


def _dearest_first(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -row.us)


def _of_kernels(rows: Sequence[Row]) -> list[Row]:
    return [row for row in _dearest_first(rows) if row.time is not None]


def _title_of_step(what: dict[str, Any]) -> str:
    return f"{what['workload']}, size {what['size']}, {what['kind']}"


def _title(row: Row) -> str:
    return f"{row.name} ({row.issuer})"


def _unknown(row: Row) -> str:
    time = row.time
    assert time is not None
    parts = [f"{name} x {count}" for name, count in time.unknown_instructions.items()]
    if time.unknown_requests:
        parts.append(f"{time.unknown_requests} of {time.requests} addresses")
    if time.unknown_branches:
        parts.append(f"{time.unknown_branches} branches")
    return ", ".join(parts)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        texts.append("  ".join((first.lstrip().ljust(widths[0]), *others)).rstrip())
    return "\n".join(texts)
