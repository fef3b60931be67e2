"""What importing the package loads: no compiler, no algebra; of what takes a second PyTorch alone, and that when it is needed."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch

import se3_fast
from se3_fast.autograd.modes import known_when_compiled
from se3_fast.lazy import lazy_names

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


def run_python(code: str) -> str:
    """What a process of its own prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Beyond what PyTorch itself has loaded."""
    code = f"import sys, torch; before = set(sys.modules); import se3_fast; print(*(set({HEAVY}) & (set(sys.modules) - before)))"
    assert not run_python(code).split()


LAZY = """
import sys, se3_fast
assert "Fiber" in dir(se3_fast) and not hasattr(se3_fast, "nothing") and not {"torch", "numpy"} & set(sys.modules)
assert se3_fast.ops.tfn_conv.__name__ == "se3_fast.ops.tfn_conv" and se3_fast.layers.ConvSE3 is se3_fast.ConvSE3
names = {}
se3_fast.__all__.remove("Predictor")  # which needs RDKit
exec("from se3_fast import *", names)
assert set(se3_fast.__all__) == set(names) - {"__builtins__"} == set(se3_fast.__all__) & set(vars(se3_fast))
"""


def test_without_pytorch_names_are_imported_when_they_are_asked_for() -> None:
    run_python(LAZY)


def test_beside_pytorch_all_is_there_at_once() -> None:
    """An exported program that names an operator can be read."""
    run_python("import torch, se3_fast; torch.ops.se3_fast.linear.default; vars(se3_fast)['model'], vars(se3_fast)['fuse_level']")


def test_every_name_has_a_home() -> None:
    assert sorted(se3_fast._HOMES) == se3_fast.__all__
    with pytest.raises(AttributeError, match="module 'se3_fast' has no attribute 'nothing'"):
        _ = se3_fast.nothing


def test_an_error_of_an_import_is_no_missing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        return {}[name] if name == "of a key" else getattr(sys, name)

    monkeypatch.setattr("se3_fast.lazy.import_module", fail)
    get, _ = lazy_names("se3_fast", {"first": "of a key", "second": "of an attribute"})
    with pytest.raises(KeyError, match="of a key"):
        get("first")
    with pytest.raises(RuntimeError, match="of an attribute: its import failed"):
        get("second")


def test_functions_are_marked_as_torch_marks_them() -> None:
    """The mark is not part of PyTorch's public interface; this PyTorch's compiler sets, and looks for, the same."""

    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(known_when_compiled(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}
