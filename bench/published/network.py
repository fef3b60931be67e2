"""What a whole protein network gains, on the CPU: ``python -m bench.published.network FOLDER``.

FOLDER is a checkout of RFdiffusion (RosettaCommons/RFdiffusion). Its network is made twice, each time in a process of its own: with
the SE(3)-Transformer that it brings, in ``env/SE3Transformer``, and with ours in its place, as docs/drop-in.md says. Both have the
same random parameters, of the sizes in ``config/inference/base.yaml``, and the same random inputs, in float32; what they return is
compared before anything is timed. Then they take turns: one call without gradients, and the part of it within SE(3)-Transformers.
The tuned allocator is the C library told to keep what is freed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from bench.arguments import at_least_one, new_file
from bench.children import CallFailed
from bench.published.__main__ import ALLOCATORS, ROOT, Contestant, Started
from bench.published.rfdiffusion import config_file, transformer_folder

MODULE = "bench.published.rfdiffusion"
LENGTH = 100
ROUNDS = 5
PARTS = {"whole_s": "whole call", "transformers_s": "within SE(3)-Transformers", "rest_s": "the rest"}

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
    rows = []
    details = {}
    for length, allocator in product(arguments.length, arguments.allocator):
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            started = [stack.enter_context(Started(each, arguments.threads, allocator)) for each in contestants]
            details = {each.contestant.name: each.details for each in started}
            found = {"differences": _differences(started, arguments.folder.resolve(), length, Path(name))}
            rows.append({"length": length, "allocator": allocator} | found | _times(started, arguments.rounds))
    where = details["ours"].pop("environment") | {"load_average": [load, os.getloadavg()[1]]}
    clock = "processor time" if arguments.threads == 1 else "wall time"
    return {"environment": where, "clock": clock, "threads": arguments.threads, "contestants": details, "rows": rows}


def _differences(started: Sequence[Started], checkout: Path, length: int, folder: Path) -> dict[str, float]:
    """Make both networks, the published one first, whose parameters ours reads; how far what is returned is from what ours returns.

    ``rounding``: how far what ours returns is from what it returns for positions that are rounded otherwise.
    """
    parameters = str(folder / "parameters.pt")
    paths = {name: str(folder / f"{name}.pt") for name in ("ours", "published", "rounding")}
    for each in reversed(started):
        name = each.contestant.name
        each.call("make", MODULE, folder=str(checkout), is_ours=name == "ours", length=length, path=parameters)
        each.call("write_outputs", MODULE, path=paths[name])
    ours = started[0]
    ours.call("write_outputs", MODULE, path=paths["rounding"], stretched=ROUNDING)
    setting = {"path_of_ours": paths.pop("ours"), "tolerance": TOLERANCE}
    return {name: ours.call("difference", path=path, name=name, **setting) for name, path in paths.items()}


def _times(started: Sequence[Started], rounds: int) -> dict[str, dict[str, Any]]:
    """The calls of both, in turns."""
    calls: dict[str, list[dict[str, float]]] = {each.contestant.name: [] for each in started}
    for number in range(rounds + 1):
        for each in started if number % 2 else reversed(started):
            found = each.call("seconds_of_call", MODULE)
            if number > 0:  # the first round warms up
                calls[each.contestant.name].append(found)
    return {name: _summary(found) for name, found in calls.items()}


def _summary(calls: Sequence[dict[str, float]]) -> dict[str, Any]:
    parts = {part: [found[part] for found in calls] for part in ("whole", "transformers")}
    parts["rest"] = [found["whole"] - found["transformers"] for found in calls]
    return {f"{part}_s": {"median": median(values), "least": min(values), "all": values} for part, values in parts.items()}


def table(result: dict[str, Any]) -> str:
    """Medians of both, with how many times faster ours is in brackets."""
    titles = [f"{part}, {name}" for part in PARTS.values() for name in ("published", "ours")]
    lines = ["| residues | allocator | " + " | ".join(titles) + " |", "|---" * (2 + len(titles)) + "|"]
    for row in result["rows"]:
        cells = [str(row["length"]), row["allocator"]]
        for part in PARTS:
            published, ours = (row[name][part]["median"] for name in ("published", "ours"))
            cells += [f"{published:.3g} s", f"{ours:.3g} s ({published / ours:.2f} x)"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    parser.add_argument("--length", type=at_least_one, nargs="+", default=[LENGTH], help="residues")
    parser.add_argument("--rounds", type=at_least_one, default=ROUNDS, help="in which both have their turn")
    parser.add_argument("--threads", type=at_least_one, default=1)
    parser.add_argument("--allocator", nargs="+", choices=ALLOCATORS, default=["default"])
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
    for row in result["rows"]:
        differs, rounding = (f"{row['differences'][name]:.2g}" for name in ("published", "rounding"))
        print(
            f"{row['length']} residues, {row['allocator']} allocator: outputs differ by {differs}, by {rounding} after a rounding"
        )
    print(f"\n{result['clock']}\n\n{table(result)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
