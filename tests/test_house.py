"""Imports run one way: what stands below knows nothing of what stands above. CONTRIBUTING.md has the map."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "se3_fast"

FLOORS = (
    ("kernels",),
    ("autograd",),
    ("fiber", "so3", "graph", "contraction"),
    ("backends",),
    ("ops",),
    ("layers", "parameter_layout"),
    ("model", "fuse_level"),
)
"""From the ground up. A module may import its own floor and those below; other modules of the package stand above all of these."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules() -> dict[str, Path]:
    return {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"), key=str)} | {
        module_of(PACKAGE / "kernels" / path.name): path for path in (ROOT / "kernels").glob("*.py")
    }


MODULES = modules()
assert "se3_fast.kernels.linear" in MODULES and "se3_fast.backends.dense.linear" in MODULES


def imports(name: str, with_lazy: bool) -> Iterator[str]:
    """The modules of the package that a module imports; those inside functions, and for types alone, too if ``with_lazy``."""
    tree = ast.parse(MODULES[name].read_text())
    nodes = ast.walk(tree) if with_lazy else _at_import(tree)
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""]).rstrip(".")
            source = base if node.level else node.module or ""
            names = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        for found in names:
            known = found if found in MODULES else found.rpartition(".")[0]
            if known in MODULES and known != name:
                yield known


def _at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when a module is imported."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Try):
            yield from node.body
        else:
            yield node


def floor(name: str) -> int:
    part = name.split(".")[1] if "." in name else ""
    return next((number for number, parts in enumerate(FLOORS) if part in parts), len(FLOORS))


def test_nothing_imports_what_stands_above_it() -> None:
    upward = [
        f"{name} imports {other}"
        for name in MODULES
        for other in imports(name, with_lazy=True)
        if floor(other) > floor(name) and other != "se3_fast"
    ]
    assert not upward


def test_no_circles() -> None:
    """Of what runs at import."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in imports(name, with_lazy=False):
                visit(other, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_only_the_backends_know_each_other() -> None:
    """What a backend's folder imports of another's: the formula, and the contraction that they share."""
    shared = {"dense", "torch", "choice", "launch_tables"}
    found = {
        (name.split(".")[2], other.split(".")[2])
        for name in MODULES
        if name.startswith("se3_fast.backends.")
        for other in imports(name, with_lazy=True)
        if other.startswith("se3_fast.backends.")
    }
    assert {pair for pair in found if pair[0] != pair[1] and pair[1] not in shared} <= {
        ("choice", "cpp"),
        ("choice", "cuda"),
        ("cuda", "triton"),
    }
