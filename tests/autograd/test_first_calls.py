"""Whatever mode the first calls of a process are made in, training afterwards gives the same numbers (:mod:`tests.first_calls`)."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.budget import is_long

ROOT = Path(__file__).parents[2]
WORD = re.compile(r"\w+")


def test_training_after_first_calls_in_every_mode() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.first_calls", *(["all"] if is_long() else [])]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert child.returncode == 0, child.stderr
    results = json.loads(child.stdout)
    assert len(results) > (100 if is_long() else 10)
    faults = {case: fault for case, fault in results.items() if fault}
    assert not faults, "\n".join(f"{case}:\n{fault}" for case, fault in faults.items())


def classes_with_tensors(trees: list[ast.Module]) -> set[str]:
    """Tensor, and the names of classes with a field that has one, or another such class, in its annotation."""
    found = {"Tensor"}
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for _ in range(3):
        for node in classes:
            fields = [ast.unparse(field.annotation) for field in node.body if isinstance(field, ast.AnnAssign)]
            if any(found & set(WORD.findall(field)) for field in fields):
                found.add(node.name)
    return found


def test_tensors_are_kept_by_the_decorator_alone() -> None:
    paths = [path for folder in ("se3_fast", "kernels") for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text()) for path in paths]
    with_tensors = classes_with_tensors(trees)
    kept: dict[str, list[str]] = {"cache": [], "constant": []}
    for tree in trees:
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.returns is None:
                continue
            decorators = {
                ast.unparse(decorator).partition("(")[0].replace("lru_cache", "cache") for decorator in node.decorator_list
            }
            returned = ast.unparse(node.returns)
            if with_tensors & set(WORD.findall(returned)):
                for decorator in decorators & kept.keys():
                    kept[decorator].append(node.name)
    assert kept["cache"] == []
    assert len(kept["constant"]) > 15  # the search finds them
