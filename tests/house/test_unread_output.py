"""Commands whose output nobody reads to its end, as in `se3-fast --help | head -1`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from se3_fast.command_line import UNREAD, leave_unread_streams, quiet_when_unread

COMMANDS = {
    "help": ["se3_fast", "--help"],
    "help of a command": ["se3_fast", "predict", "--help"],
    "models": ["se3_fast", "models"],
    "models by their module": ["se3_fast.pretrained"],
    "predictions": ["se3_fast", "predict", "--model", "homo", "--smiles", *["CCCO"] * 50],
}


def _run(words: list[str], is_error_unread: bool = False) -> tuple[int, str]:
    """Exit status, and what is said on standard error, of a command whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    error = subprocess.STDOUT if is_error_unread else subprocess.PIPE
    done = subprocess.run([sys.executable, "-m", *words], stdout=writer, stderr=error, check=False, text=True)
    os.close(writer)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("name", COMMANDS)
def test_it_ends_without_a_word(name: str) -> None:
    if name == "predictions":
        pytest.importorskip("rdkit")
    status, said = _run(COMMANDS[name])
    assert said == "" and status in ((0, UNREAD) if name == "help of a command" else (UNREAD,))  # argparse passes it over


def test_mistakes_that_nobody_reads() -> None:
    assert _run(["se3_fast", "nonsense"], is_error_unread=True)[0] == UNREAD


def test_other_broken_pipes_are_errors() -> None:
    """Of a process that ended, for example."""

    @quiet_when_unread
    def main(arguments: object) -> int:
        raise BrokenPipeError("of another pipe")

    with pytest.raises(BrokenPipeError, match="of another pipe"):
        main([])
    assert not leave_unread_streams()
