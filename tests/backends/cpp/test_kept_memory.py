"""Scratch memory that the C++ operations keep from call to call: what is of use is kept, whatever came before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from se3_fast.backends.cpp import library

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

ROOT = Path(__file__).parents[3]


def peaks(*points: str) -> list[int]:
    """Peak bytes of a training step of convolutions, edges and largest degree of each, one after another in one process."""
    command = [sys.executable, "-m", "bench.rivals", "--peaks", "cpp", *points]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    return [int(line) for line in finished.stdout.split()]


def test_sizes_that_are_not_asked_for_any_more_make_room() -> None:
    """They had filled what is kept, and every later call of another size took its memory from the system anew."""
    first, *_, last = peaks("200,4", "120,4", "150,3", "200,2", "220,4")
    assert last < 1.3 * first
