"""Checkpoints between formats: ``python -m se3_fast.checkpoints model.pth model.safetensors``, and back.

Formats go by the names' endings: ``.safetensors``, or anything else for the published format. Nothing in a file is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from se3_fast.command_line import quiet_when_unread
from se3_fast.files import SAFETENSORS_SUFFIX
from se3_fast.training.checkpoint import read_checkpoint, write_checkpoint, write_safetensors
from se3_fast.training.errors import run_command, user_errors


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The parameters in a file, on the CPU: a published checkpoint, one of this package, or safetensors.

    Raises:
        CheckpointError: the file is missing or damaged, is no checkpoint, or would run code when read.
    """
    return read_checkpoint(Path(path))["state_dict"]


def convert_file(source: Path | str, target: Path | str) -> None:
    """Write the checkpoint in ``source`` to ``target``, each in the format that its name's ending says.

    To safetensors go the parameters and the description of model and data, without the states of the training.

    Raises:
        CheckpointError: as :func:`read_state_dict`.
        OSError: ``target`` cannot be written.
    """
    checkpoint = read_checkpoint(Path(source))
    write = write_safetensors if Path(target).suffix == SAFETENSORS_SUFFIX else write_checkpoint
    write(Path(target), checkpoint)


@quiet_when_unread
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, convert, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m se3_fast.checkpoints", description="Convert a checkpoint to another format.")
    parser.add_argument("source", type=Path, help="checkpoint to read: .safetensors, or in the published format")
    parser.add_argument("target", type=Path, help="checkpoint to write, likewise")
    parsed = parser.parse_args(arguments)

    def convert() -> None:
        with user_errors():
            convert_file(parsed.source, parsed.target)

    return run_command(convert)


if __name__ == "__main__":
    sys.exit(main())
