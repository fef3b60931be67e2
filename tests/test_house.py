"""The house's rule, read off the imports: they run one way and in no circle, and what is left outside ``backends/`` is counted."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import se3_fast

ROOT = Path(se3_fast.__file__).parent
BACKENDS = {"dense", "torch", "cpp", "triton", "cuda"}

FLOORS = (
    ("model",),
    ("layers",),
    ("ops",),
    ("backends",),
    ("autograd", "kernels"),
    ("contraction", "graph", "fiber", "so3", "modes", "transforms"),
)
"""From the top down: a file imports from its own floor and those below."""

COMPARISONS_WITH_BACKENDS = {
    "ops.basis",
    "ops.edge_attention",
    "ops.edge_frames",
    "ops.equivariant_norm",
    "ops.linear",
    "ops.parameter_rows",
    "ops.perceptron",
    "ops.pooling",
    "ops.radial",
    "ops.shared_features",
    "ops.tfn_conv",
}
"""Files outside ``backends/`` that still ask which backend it is: their Functions for single backends have not moved there yet."""

IMPORTS_WITHIN_FUNCTIONS = {
    "backends.choice",  # a backend is asked whether it is there only where it might be taken
    "kernels.resources",  # the compiler of Triton, only where kernels are compiled for no device
    "backends.cuda.library",  # NVIDIA's bindings, an optional package
    "ops.aligned_weights",  # this and all below: Triton is an optional package
    "ops.basis",
    "ops.edge_attention",
    "ops.edge_frames",
    "ops.equivariant_norm",
    "ops.linear",
    "ops.parameter_rows",
    "ops.perceptron",
    "ops.pooling",
    "ops.radial",
    "ops.tfn_conv",
}


@cache
def trees() -> dict[str, ast.Module]:
    """The files of the floors, by their name within the package."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if floor(name) is not None:
            found[name] = ast.parse(path.read_text())
    for path in (ROOT / "kernels").glob("*.py"):  # a link, which rglob may not follow
        found[f"kernels.{path.stem}".removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def floor(name: str) -> int | None:
    return next((number for number, names in enumerate(FLOORS) if name.partition(".")[0] in names), None)


def imported(name: str, node: ast.AST) -> list[str]:
    """What a statement imports of the package; of ``from folder import file`` both."""
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        module = ".".join(["se3_fast", *name.split(".")[: -node.level], *filter(None, [module])])
    if module.partition(".")[0] != "se3_fast":
        return []
    inner = module.removeprefix("se3_fast").removeprefix(".")
    files = [f"{inner}.{alias.name}".removeprefix(".") for alias in node.names]
    return [file if file in trees() else inner for file in files]


def imports_at_the_top(name: str) -> set[str]:
    return {target for node in trees()[name].body for target in imported(name, node)} - {name, ""}


@pytest.mark.parametrize("name", sorted(trees()))
def test_imports_run_down(name: str) -> None:
    targets = {target for node in ast.walk(trees()[name]) for target in imported(name, node)}
    own = floor(name)
    assert own is not None
    above = {target for target in targets if (number := floor(target)) is not None and number < own}
    assert above == set()


def test_no_circle() -> None:
    """Of the imports that run when a file is imported."""
    tuple(TopologicalSorter({name: imports_at_the_top(name) for name in trees()}).static_order())


def test_who_compares_with_a_backend() -> None:
    """A file that comes to ask for a backend's name belongs into ``backends/``; one that no more does leaves the table."""
    found = set()
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and not name.startswith("backends"):
                constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                if BACKENDS.intersection(value for value in constants if isinstance(value, str)):
                    found.add(name)
    assert found == COMPARISONS_WITH_BACKENDS


def test_who_imports_within_functions() -> None:
    found = set()
    for name, tree in trees().items():
        for function in ast.walk(tree):
            nodes = ast.walk(function) if isinstance(function, ast.FunctionDef) else ()
            if any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes):
                found.add(name)
    assert found == IMPORTS_WITHIN_FUNCTIONS
