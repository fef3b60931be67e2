"""Two processes, plain or with sharded parameters, have the gradients of the plain model (:mod:`tests.training.sharded`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["cpp", "triton"])
def test_gradients_in_two_processes(name: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.training.sharded", name]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert errors.keys() == {"in_processes_of_equals", "sharded_by_block", "sharded_at_the_root"}
    assert max(errors.values()) < 1e-9, errors
