"""What importing the package loads: no compiler, no algebra; of what takes a second PyTorch alone, and that when it is needed."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from types import ModuleType

import pytest
import torch

import se3_fast
from se3_fast.__main__ import COMMANDS
from se3_fast.autograd.modes import known_when_compiled
from se3_fast.lazy import lazy_names
from se3_fast.predict.options import SUFFIXES, WRITTEN_SUFFIXES

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
NOT_FOR_HELP = ("torch", "numpy", "pandas", "ase", *HEAVY[:-1])


def run_python(code: str) -> str:
    """What a process of its own prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    """Beyond what PyTorch itself has loaded."""
    code = f"import sys, torch; before = set(sys.modules); import se3_fast; print(*(set({HEAVY}) & (set(sys.modules) - before)))"
    assert not run_python(code).split()


AS_A_COMMAND = "import sys; sys.orig_argv[1:] = ['-m', 'se3_fast']"
LAZY = f"""
{AS_A_COMMAND}
import se3_fast
assert "Fiber" in dir(se3_fast) and not hasattr(se3_fast, "nothing") and not {{"torch", "numpy"}} & set(sys.modules)
assert se3_fast.ops.tfn_conv.__name__ == "se3_fast.ops.tfn_conv" and se3_fast.layers.ConvSE3 is se3_fast.ConvSE3
names = {{}}
se3_fast.__all__.remove("Predictor")  # which needs RDKit
exec("from se3_fast import *", names)
assert set(se3_fast.__all__) == set(names) - {{"__builtins__"}} == set(se3_fast.__all__) & set(vars(se3_fast))
"""


def test_commands_import_names_when_they_are_asked_for() -> None:
    run_python(LAZY)


def test_all_is_there_at_once_where_no_command_runs() -> None:
    """An exported program that names an operator can be read."""
    run_python("import se3_fast, torch; torch.ops.se3_fast.linear.default; vars(se3_fast)['model'], vars(se3_fast)['fuse_level']")


@pytest.mark.parametrize(
    "words",
    [["-m", "se3_fast"], ["-X", "utf8", "-m", "se3_fast.train", "--amp"], ["/usr/local/bin/se3-fast", "train"]],
    ids=["module", "sub-module", "script"],
)
def test_commands_are_told_by_how_the_process_was_started(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python", *words])
    assert se3_fast._is_command()
    for others in (["-m", "pytest", "se3_fast"], ["-m"], ["-c", "import se3_fast"], []):
        monkeypatch.setattr("sys.orig_argv", ["python", *others])
        assert not se3_fast._is_command()


@pytest.mark.parametrize("name", ["se3_fast", "se3_fast.data", "se3_fast.predict", "se3_fast.training"])
def test_every_name_has_a_home(name: str) -> None:
    package = import_module(name)
    assert sorted(package._HOMES) == sorted(package.__all__)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


def test_an_error_of_an_import_is_no_missing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        return {}[name] if name == "of a key" else getattr(sys, name)

    monkeypatch.setattr("se3_fast.lazy.import_module", fail)
    get, _ = lazy_names("se3_fast", {"first": "of a key", "second": "of an attribute"})
    with pytest.raises(KeyError, match="of a key"):
        get("first")
    with pytest.raises(RuntimeError, match="of an attribute: its import failed"):
        get("second")


ANSWERED = f"""
{AS_A_COMMAND}
from se3_fast.__main__ import main
for name in {list(COMMANDS)}:
    for option, wanted in (("--help", 0), ("--no_such_option", 2)):
        try:
            main([*name.split(), option])
        except SystemExit as ended:
            assert ended.code == wanted, name
        else:
            raise AssertionError(name)
assert main(["--help"]) == main(["--version"]) == 0 and main(["nonsense"]) == 2
print(*({set(NOT_FOR_HELP)} & set(sys.modules)), file=sys.stderr)
"""


def test_help_and_mistakes_in_options_wait_for_nothing() -> None:
    """Of any command."""
    finished = subprocess.run([sys.executable, "-c", ANSWERED], check=True, capture_output=True, text=True)
    assert finished.stdout.count("usage: ") == len(COMMANDS) + 1
    assert not finished.stderr.splitlines()[-1]


def test_choices_of_options_are_what_there_is() -> None:
    """Parsers name what they do not import."""
    pytest.importorskip("ase")
    pytest.importorskip("rdkit")
    for parser, runs, name in (
        ("se3_fast.commands.md", "se3_fast.simulation.md", "ENSEMBLES"),
        ("se3_fast.commands.relax", "se3_fast.simulation.relax", "OPTIMIZERS"),
    ):
        assert getattr(import_module(parser), name) == tuple(getattr(import_module(runs), name))
    assert tuple(import_module("se3_fast.predict.writers").WRITERS) == WRITTEN_SUFFIXES
    assert (*import_module("se3_fast.predict.readers")._TEXT_READERS, ".csv", ".npz") == SUFFIXES


def test_functions_are_marked_as_torch_marks_them() -> None:
    """The mark is not part of PyTorch's public interface; this PyTorch's compiler sets, and looks for, the same."""

    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(known_when_compiled(ours)) == vars(torch.compiler.assume_constant_result(theirs)) != {}
