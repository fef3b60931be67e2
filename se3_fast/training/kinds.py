"""Which command a checkpoint belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import CheckpointError

_MARKS = {"se3_fast.train": "fiber_in", "se3_fast.train_forces": "elements"}
"""Of each training command an entry that its description of the model has, and that of no other command."""


def check_written_by(command: str, checkpoint: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint describes a model of a training command; one that describes none (published format) passes.

    Args:
        command: `se3_fast.train` or `se3_fast.train_forces`.
        checkpoint: As read.
        path: Where it comes from, for the message.

    Raises:
        CheckpointError: It is of another command, which is named, or of a program of its own.
    """
    config = checkpoint.get("model_config")
    if config is None or _MARKS[command] in config:
        return
    other = next((name for name, mark in _MARKS.items() if mark in config), None)
    if other is None:
        came = "one of another program"
    elif other == "se3_fast.train_forces":
        came = f"a force field; python -m {other} --load_ckpt_path {path}, with the options of its training, evaluates it"
    else:
        came = f"one of {other}; python -m se3_fast.inference --load_ckpt_path {path} evaluates it"
    raise CheckpointError(f"{path}: expected a checkpoint of {command}, got {came}")
