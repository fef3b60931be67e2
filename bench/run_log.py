"""What a training command logged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunLog:
    """The last run that a log tells of.

    Attributes:
        epochs: of each epoch its number ``epoch`` and the figures that were logged.
        figures: those of the whole run.
        seconds: from the start of the training to the end of the last epoch, evaluations included.
    """

    epochs: list[dict[str, Any]]
    figures: dict[str, float]
    seconds: float


def read_log(path: Path) -> RunLog:
    """Read a log of the training commands (``--dllogger_name``)."""
    records = [json.loads(line.removeprefix("DLLL ")) for line in path.read_text(encoding="utf-8").splitlines()]
    start = max(number for number, record in enumerate(records) if record["step"] == "PARAMETER")
    of_run = records[start + 1 :]
    of_epochs = [record for record in of_run if record["step"]]
    figures: dict[str, float] = {}
    for record in of_run:
        figures |= {} if record["step"] else record["data"]
    seconds = float(of_epochs[-1]["elapsedtime"]) - float(records[start]["elapsedtime"]) if of_epochs else 0.0
    return RunLog([{"epoch": record["step"][0], **record["data"]} for record in of_epochs], figures, seconds)
