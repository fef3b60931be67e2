"""Whatever mode the first calls of a process are made in, training afterwards gives the same numbers (:mod:`tests.first_calls`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.budget import is_long


def test_training_after_first_calls_in_every_mode() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-W", "ignore", "-m", "tests.first_calls", *(["all"] if is_long() else [])]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert child.returncode == 0, child.stderr
    results = json.loads(child.stdout)
    assert len(results) > (100 if is_long() else 10)
    faults = {case: fault for case, fault in results.items() if fault}
    assert not faults, "\n".join(f"{case}:\n{fault}" for case, fault in faults.items())
