"""The results of ``python -m bench.published`` as tables, and their places in README.md and docs/measurements.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]

BEGIN, END = "<!-- bench.published: from here -->", "<!-- bench.published: to here -->"
"""What stands before and after a table in a page."""


def heading(result: Result) -> str:
    """Where, when and of what the figures are."""
    where, of = result["environment"], result["contestants"]
    published = of["published"]
    dgl = "the DGL of `se3_fast.compat`" if published["dgl"] == "se3_fast.compat" else f"DGL {published['dgl']}"
    load = " and ".join(f"{value:.1f}" for value in where["load_average"])
    return (
        f"{where['processor']}, PyTorch {where['torch']}, {dgl}, e3nn {published['e3nn']}, {where['date'][:10]}, commit "
        f"{of['ours']['commit'][:7]}, backend `{of['ours']['backend']}`; load average at the beginning and the end: {load}."
    )


def short_table(result: Result) -> str:
    """Markdown: a line for every workload; the most threads that were measured."""
    threads = max(row["threads"] for row in result["rows"] if "threads" in row)
    columns = [
        (direction, allocator)
        for direction in ("forward", "forward+backward")
        for allocator in _distinct(row.get("allocator") for row in result["rows"])
    ]
    titles = [f"{direction}{', tuned allocator' if allocator == 'tuned' else ''}" for direction, allocator in columns]
    lines = _head(["workload", "edges", *titles, "memory"])
    for workload in _distinct(row["workload"] for row in result["rows"]):
        cells = [_name(workload), f"{_rows(result, workload=workload)[0]['edges']:,}"]
        for direction, allocator in columns:
            rows = _rows(result, workload=workload, threads=threads, allocator=allocator) if allocator else []
            cells.append(_faster([row for row in rows if row["pass"] == direction]))
        lines.append(_line([*cells, _less(_memory(result, workload))]))
    return "\n".join([f"{heading(result)} {_threads(threads)}.", "", *lines])


def full_table(result: Result) -> str:
    """Markdown: a line for every workload, number of threads and allocator; and the memory of a training step."""
    names = [name for name in result["contestants"] if name != "ours"]
    titles = [f"{direction}, {name}" for direction in ("forward", "forward+backward") for name in ("ours", *names)]
    lines = _head(["workload", "edges", "threads", "allocator", *titles])
    timed = [row for row in result["rows"] if "threads" in row]
    for key in _distinct((row["workload"], row["threads"], row["allocator"]) for row in timed):
        rows = _rows(result, workload=key[0], threads=key[1], allocator=key[2])
        cells = [_name(key[0]), f"{rows[0]['edges']:,}", str(key[1]), key[2]]
        for direction in ("forward", "forward+backward"):
            cells += _against([row for row in rows if row["pass"] == direction], "median_ms", "ms", names)
        lines.append(_line(cells))
    memory = _head(["workload", "edges", *(f"memory, {name}" for name in ("ours", *names))])
    for workload in _distinct(row["workload"] for row in result["rows"]):
        rows = _memory(result, workload)
        memory.append(_line([_name(workload), f"{rows[0]['edges']:,}", *_against(rows, "peak_MiB", "MiB", names)]))
    return "\n".join([heading(result), "", *lines, "", *memory])


def write_pages(result: Result, root: Path) -> None:
    """Put the tables in the place of those that README.md and docs/measurements.md of a project have."""
    for name, table in (("README.md", short_table(result)), ("docs/measurements.md", full_table(result))):
        page = root / name
        before, _, rest = page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def table_of(page: str) -> str:
    """The table that a page has."""
    return page.partition(BEGIN)[2].partition(END)[0].strip("\n")


def _distinct(values: Iterable[Any]) -> list[Any]:
    return [value for value in dict.fromkeys(values) if value is not None]


def _rows(result: Result, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if all(row.get(name) == value for name, value in wanted.items())]


def _memory(result: Result, workload: str) -> list[dict[str, Any]]:
    return [row for row in _rows(result, workload=workload) if row["pass"] == "memory"]


def _figures(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    return {row["contestant"]: row[name] for row in rows}


def _faster(rows: Sequence[dict[str, Any]]) -> str:
    figures = _figures(rows, "median_ms")
    return f"{_ratio(figures['published'], figures['ours'])} x faster ({_digits(figures['ours'])} ms)"


def _less(rows: Sequence[dict[str, Any]]) -> str:
    figures = _figures(rows, "peak_MiB")
    return f"{_ratio(figures['published'], figures['ours'])} x less ({_digits(figures['ours'])} MiB)"


def _against(rows: Sequence[dict[str, Any]], name: str, unit: str, others: Sequence[str]) -> list[str]:
    """Cells: ours, and the others with how many times ours they are."""
    figures = _figures(rows, name)
    ours = figures["ours"]
    return [
        f"{_digits(ours)} {unit}",
        *(f"{_digits(figures[other])} {unit} ({_ratio(figures[other], ours)} x)" for other in others),
    ]


def _ratio(larger: float, smaller: float) -> str:
    ratio = larger / smaller
    return f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.1f}"


def _name(workload: str) -> str:
    name, _, size = workload.partition(":")
    return f"{name} ({'batch' if name.startswith('qm9') else 'residues'} {size})"


def _threads(count: int) -> str:
    return "One thread" if count == 1 else f"{count} threads"


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), "|" + "---|" * len(titles)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
