"""Tables whose rows are measured in processes of their own, one after the other, and written as they come."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.environment import environment
from se3_fast.files import atomic_file


def measured_rows(module: str, requests: Iterable[tuple[str, Sequence[str]]], path: Path | None) -> list[dict[str, Any]]:
    """Run ``python -m MODULE --row ...`` for every request; its last line is the row, in JSON.

    A row that fails gets a line that says why, and the others go on.

    Args:
        module: the benchmark.
        requests: what a row is called in messages, and its further arguments.
        path: file that rows are added to; None: they are printed only.

    Returns:
        All rows of the file, or those that were measured; each says its date, commit and processor.
    """
    table = json.loads(path.read_text()) if path and path.exists() else {"rows": []}
    here = environment()
    table |= here
    for name, arguments in requests:
        command = [sys.executable, "-W", "ignore", "-m", module, "--row", *arguments]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            print(f"{name}: {(finished.stderr.strip().splitlines() or ['ended by the system'])[-1]}", flush=True)
            continue
        row = json.loads(finished.stdout.splitlines()[-1])
        table["rows"].append(row | {"date": time.strftime("%Y-%m-%d"), "commit": here["commit"], "processor": here["processor"]})
        print(json.dumps(table["rows"][-1]), flush=True)
        if path:
            with atomic_file(path) as file:
                file.write(json.dumps(table, indent=1).encode() + b"\n")
    return table["rows"]
