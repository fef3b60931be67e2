"""What importing the package loads: no compiler, no algebra, nothing but PyTorch that takes a second."""

from __future__ import annotations

import subprocess
import sys

import torch

from se3_fast.autograd.modes import known_when_compiled

HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "e3nn",
    "sympy",
    "scipy",
    "triton",
    "rdkit",
    "matplotlib",
    "torchmetrics",
    "se3_fast.training",
)


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Beyond what PyTorch itself has loaded."""
    code = f"import sys, torch; before = set(sys.modules); import se3_fast; print(*(set({HEAVY}) & (set(sys.modules) - before)))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not loaded


def test_functions_are_marked_as_torch_marks_them() -> None:
    """The mark is not part of PyTorch's public interface; this PyTorch's compiler sets, and looks for, the same."""

    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(known_when_compiled(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}
