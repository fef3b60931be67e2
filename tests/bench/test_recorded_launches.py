"""What is compiled before the measurements is what they launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.recorded_launches import Launch, Pointer, as_compiled, recorded
from bench.sections import Files, kernels
from se3_fast.kernels import pooling

ROOT = Path(__file__).parents[2]


def launch_of_pooling(num_features: int) -> Launch:
    sizes = torch.tensor([3])
    with recorded() as launches:
        pooling.forward(torch.zeros(3, num_features), sizes, sizes, is_max=True)
    (launch,) = launches
    return launch


def test_launches_that_one_compilation_serves_are_equal() -> None:
    compiled = [repr(as_compiled(launch_of_pooling(num_features))) for num_features in (5, 7)]
    assert compiled[0] == compiled[1]
    launch = Launch("pooling", "_kernel", (4, 2), (torch.zeros(4)[1:], (torch.zeros(2).half(),), 1, 48, 50, 2**40, 0.5), {"A": 7})
    pointers = Pointer(torch.float32, launch.arguments[0].data_ptr() % 16), (Pointer(torch.float16, 0),)
    assert as_compiled(launch)[2:] == ((1,), (*pointers, 1, 16, 3, 2**32 + 16, 0.5), {"A": 7})


ONCE = """
import sys
from pathlib import Path

import torch
from tests import triton_driver

triton_driver.use()
from bench.recorded_launches import as_compiled, compile_launch, recorded
from se3_fast.kernels import pooling

def run(num_features):
    sizes = torch.tensor([3])
    pooling.forward(torch.zeros(3, num_features), sizes, sizes, is_max=True)

def compiled():
    return len(list(Path(sys.argv[1]).rglob("*.cubin")))

with recorded() as launches:
    run(5)
compile_launch(as_compiled(launches[0]))
assert compiled() == 1, compiled()
pooling._forward_kernel.device_caches.clear()  # as in a process that starts
run(7)
assert compiled() == 1, compiled()
"""


def test_a_launch_finds_what_was_compiled_before(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", ONCE, str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_a_workload_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MOST_PROCESSES", 1)
    found = kernels.measure(Files(None, tmp_path, tmp_path), {"no such workload": 1})
    assert found["launches"] == found["compiled"] == 0
    assert found["failures"] == ["KeyError: 'no such workload'"] * 2
