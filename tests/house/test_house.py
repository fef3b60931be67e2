"""Imports run one way: what stands below knows nothing of what stands above. CONTRIBUTING.md has the map."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "se3_fast"

FLOORS = (
    ("kernels",),
    ("autograd",),
    ("fiber", "so3", "edge_orders", "neighbours", "graph", "contraction"),
    ("backends",),
    ("ops", "geometry"),
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
    shared = {"dense", "torch"} | {path.stem for path in (PACKAGE / "backends").glob("*.py")}
    found = {
        (name.split(".")[2], other.split(".")[2])
        for name in MODULES
        if name.startswith("se3_fast.backends.")
        for other in imports(name, with_lazy=True)
        if other.startswith("se3_fast.backends.")
    }
    assert {pair for pair in found if pair[0] != pair[1] and pair[1] not in shared} <= {("cuda", "triton")}


OPTIONAL = {
    "cuda",
    "dgl",
    "dllogger",
    "matplotlib",
    "pyarrow",
    "pynvml",
    "pytorch_optimizer",
    "rdkit",
    "torch_geometric",
    "wandb",
    "yaml",
}
"""Packages that only some users have: imported where they are used."""

LAZY = {
    "se3_fast.compat.original.se3_transformer.model.transformer": "the options of the training, which adds those of the models",
    "se3_fast.data.force_frames": "frames of files that ASE or h5py reads, which need these",
    "se3_fast.data.structures": "structures of LMDB files, which need that",
    "se3_fast.neighbours": "the library that searches for neighbours, which most models do without",
    "se3_fast.so3": "e3nn, whose import takes longer than that of all the package",
    "se3_fast.training.evaluation": "torchmetrics, as slow to import as PyTorch, which most commands do without",
    "se3_fast.training.inference_command": "reports, which need RDKit",
    "se3_fast.training.property_command": "molecules of one's own and reports, which need RDKit",
    "se3_fast.training.property_trainer": "torchmetrics likewise",
    "se3_fast.report.charts": "torchmetrics likewise",
    "se3_fast.kernels.resources": "Triton's compiler, which its interpreter does without",
}
"""Modules that import inside functions, and what. ``backends/registry.py`` imports backends by name, ``lazy.py`` what names stand
for, ``command_line.py`` what a command runs."""

LONG_FILES = {"kernels/tfn_conv.py": "four kernels that share their tiles"}
LARGEST_FILE = 600
MOST_PARAMETERS = 8

PUBLISHED = {
    "se3_fast.model": {"SE3Transformer.__init__", "SE3TransformerPooled.__init__"},
    "se3_fast.layers.convolution": {"ConvSE3.__init__"},
    "se3_fast.layers.attention": {"AttentionBlockSE3.__init__"},
    "se3_fast.parameter_layout": {"convert_on_loading"},  # a hook, called by PyTorch
    "se3_fast.predict.predictor": {"Predictor.__init__"},
    "se3_fast.ase": {"SE3FastCalculator.__init__"},
    "se3_fast.data.force_frames": {"ForceDataModule.__init__"},
    "se3_fast.data.own_molecules": {"OwnMoleculesDataModule.__init__"},
    "se3_fast.data.qm9": {"QM9DataModule.__init__"},
    "se3_fast.forces": {"ForceField.__init__"},
    "se3_fast.training.force_trainer": {"ForceTrainer.__init__"},
    "se3_fast.compat.original.se3_transformer.data_loading.qm9": {"QM9DataModule.__init__"},
    "se3_fast.compat.original.se3_transformer.runtime.training": {"train_epoch"},
    "se3_fast.compat.original.se3_transformer.snippets": {"InteractionModule.__init__"},
}
"""Functions that users call, or whose parameters others have fixed."""


def test_only_the_backends_know_their_names() -> None:
    """``torch`` and ``cuda`` are also names of other things: where a backend is meant, the others stand beside them."""
    names = {"dense", "triton", "cpp"}
    found = {
        f"{name}:{node.lineno}: {node.value!r}"
        for name, path in MODULES.items()
        if not name.startswith(("se3_fast.backends", "se3_fast.kernels"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert not found


def test_nothing_is_imported_late() -> None:
    found = []
    for name, path in MODULES.items():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found += [
                    f"{name}.{function.name}: {ast.unparse(node)}"
                    for node in ast.walk(function)
                    if (isinstance(node, ast.Import) and {alias.name.partition(".")[0] for alias in node.names} - OPTIONAL)
                    or (isinstance(node, ast.ImportFrom) and (node.module or ".").partition(".")[0] not in OPTIONAL)
                ]
    assert not [line for line in found if line.partition(":")[0].rpartition(".")[0] not in LAZY]


def test_files_are_short() -> None:
    lengths = {path.resolve().relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in MODULES.values()}
    assert {name for name, length in lengths.items() if length > LARGEST_FILE} <= LONG_FILES.keys()


def test_functions_have_few_parameters() -> None:
    found = []
    for name, path in MODULES.items():
        for qualified, function in _functions(ast.parse(path.read_text()), ""):
            arguments = function.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            is_kernel = any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)
            if count > MOST_PARAMETERS and not is_kernel and qualified not in PUBLISHED.get(name, set()):
                found.append(f"{name}.{qualified}: {count}")
    assert not found


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{node.name}", node
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        else:
            yield from _functions(node, prefix)
