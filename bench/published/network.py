"""What a whole protein network gains, on the CPU: ``python -m bench.published.network FOLDER``.

FOLDER is a checkout of RFdiffusion (RosettaCommons/RFdiffusion). Its network is made twice, each time in a process of its own: with
the SE(3)-Transformer that it brings, in ``env/SE3Transformer``, and with ours in its place, as docs/drop-in.md says. Both have the
same random parameters, of the sizes in ``config/inference/base.yaml``, and the same random inputs, in float32; what they return is
compared before anything is timed. Then they take turns: one call without gradients, and the part of it within the SE(3)-Transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from bench.arguments import at_least_one, new_file
from bench.children import CallFailed
from bench.published.__main__ import ROOT, Contestant, Started
from bench.published.rfdiffusion import config_file, transformer_folder

MODULE = "bench.published.rfdiffusion"
LENGTH = 100
ROUNDS = 5
PARTS = ("whole", "transformers")

TOLERANCE = 1e-3
"""Largest relative RMS difference of an output: forty blocks with random parameters enlarge a rounding a thousandfold."""

ROUNDING = 1 + 2**-22
"""Positions times this show by how much."""


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare and time both; the content of the file.

    Raises:
        CallFailed: one does not start, does not end, or computes something else.
    """
    load = os.getloadavg()[1]
    contestants = [Contestant("ours", ROOT), Contestant("published", transformer_folder(arguments.folder))]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        started = [stack.enter_context(Started(each, arguments.threads, "default")) for each in contestants]
        differences = _differences(started, arguments, Path(name))
        seconds: dict[str, list[dict[str, float]]] = {each.contestant.name: [] for each in started}
        for number in range(arguments.rounds + 1):
            for each in started if number % 2 else reversed(started):
                found = each.call("seconds_of_call", MODULE)
                if number > 0:  # the first round warms up
                    seconds[each.contestant.name].append(found)
    details = {each.contestant.name: each.details for each in started}
    return {
        "environment": details["ours"].pop("environment") | {"load_average": [load, os.getloadavg()[1]]},
        "clock": "processor time" if arguments.threads == 1 else "wall time",
        "contestants": details,
        "length": arguments.length,
        "threads": arguments.threads,
        "differences": differences,
        "rows": [{"contestant": name} | _times(of) for name, of in seconds.items()],
    }


def _differences(started: Sequence[Started], arguments: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Make both networks, the published one first, whose parameters ours reads; how far what is returned is from what ours returns.

    ``rounding``: how far what ours returns is from what it returns for positions that are rounded otherwise.
    """
    paths = {}
    for each in reversed(started):
        name = each.contestant.name
        setting = {"folder": str(arguments.folder.resolve()), "is_ours": name == "ours", "length": arguments.length}
        each.call("make", MODULE, **setting, path=str(folder / "parameters.pt"))
        paths[name] = str(folder / f"{name}.pt")
        each.call("write_outputs", MODULE, path=paths[name])
    ours = started[0]
    paths["rounding"] = str(folder / "rounding.pt")
    ours.call("write_outputs", MODULE, path=paths["rounding"], stretched=ROUNDING)
    setting = {"path_of_ours": paths.pop("ours"), "tolerance": TOLERANCE}
    return {name: ours.call("difference", path=path, name=name, **setting) for name, path in paths.items()}


def _times(seconds: Sequence[dict[str, float]]) -> dict[str, Any]:
    times: dict[str, Any] = {"calls": len(seconds)}
    for part in PARTS:
        of_part = [found[part] for found in seconds]
        times |= {f"{part}_median_s": median(of_part), f"{part}_least_s": min(of_part), f"{part}_s": of_part}
    return times


def table(result: dict[str, Any]) -> str:
    """Medians of both, and how many times faster ours is."""
    lines = ["| | whole call | within the SE(3)-Transformers | the rest |", "|---|---|---|---|"]
    ours, published = (_medians(row) for row in result["rows"])
    for name, values in (("published", published), ("ours", ours)):
        lines.append(f"| {name} | " + " | ".join(f"{value:.3g} s" for value in values) + " |")
    ratios = [of_published / of_ours for of_published, of_ours in zip(published, ours, strict=True)]
    lines.append("| times faster | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines)


def _medians(row: dict[str, Any]) -> list[float]:
    whole, within = (row[f"{part}_median_s"] for part in PARTS)
    return [whole, within, whole - within]


def _checkout(text: str) -> Path:
    """A folder that has what is needed of RFdiffusion."""
    folder = Path(text)
    network = folder / "rfdiffusion" / "RoseTTAFoldModel.py"
    for file in (network, transformer_folder(folder) / "se3_transformer" / "__init__.py", config_file(folder)):
        if not file.is_file():
            came = f"one without {file.relative_to(folder)}" if folder.is_dir() else "none"
            raise argparse.ArgumentTypeError(f"expected a checkout of RFdiffusion, got {came}: {text!r:.200}")
    return folder


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.published.network", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=_checkout, help="checkout of RFdiffusion")
    parser.add_argument("--length", type=at_least_one, default=LENGTH, help="residues")
    parser.add_argument("--rounds", type=at_least_one, default=ROUNDS, help="in which both have their turn")
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--json", type=new_file, help="file for the results")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    arguments = parse(words)
    try:
        result = measured(arguments)
    except CallFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = {name: f"{value:.2g}" for name, value in result["differences"].items()}
    print(f"{arguments.length} residues, {result['clock']}, outputs differ by {found['published']} (a rounding: {found['rounding']})")
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
