"""Standing in for the published package: code that imports ``se3_transformer`` (and ``dgl``) runs on this one, unchanged.

    import se3_fast.compat
    se3_fast.compat.install()

    from se3_transformer.model import SE3Transformer  # that of se3_fast

Without a change to any source the same is had from the environment: ``PYTHONPATH="$(python -m se3_fast.compat)"`` names a folder
that holds a package ``se3_transformer``, and comes before any that is installed. docs/drop-in.md has the recipes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from se3_fast.compat.graphs import dgl

__all__ = ["dgl", "folders", "install"]

_FOLDER = Path(__file__).parent
_SE3_TRANSFORMER = _FOLDER / "original" / "se3_transformer"
_DGL = _FOLDER / "graphs" / "dgl"


def install(name: str = "se3_transformer", with_dgl: bool = False) -> None:
    """From now on ``import se3_transformer`` and its submodules give this package's.

    Args:
        name: the name that the pipeline imports the published package under; a copy within a package has a longer one, such as
            ``rf2aa.SE3Transformer.se3_transformer``.
        with_dgl: ``import dgl`` gives :mod:`se3_fast.compat.dgl`, for pipelines that only make graphs with it.

    Raises:
        RuntimeError: if another package of that name has been imported before.
        ImportError: if the package that ``name`` lies in is not there.
    """
    _put(name, _SE3_TRANSFORMER)
    if with_dgl:
        _put("dgl", _DGL)


def folders(with_dgl: bool = False) -> list[Path]:
    """The folders that hold the packages ``se3_transformer`` and, if asked for, ``dgl``: what ``PYTHONPATH`` takes."""
    return [package.parent for package in ([_SE3_TRANSFORMER, _DGL] if with_dgl else [_SE3_TRANSFORMER])]


def _put(name: str, folder: Path) -> None:
    file = folder / "__init__.py"
    if name in sys.modules:
        present = getattr(sys.modules[name], "__file__", None)
        if present is not None and Path(present) == file:
            return
        raise RuntimeError(f"install: expected to be called before {name} is imported, but it is there from {present}")
    specification = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(folder)])
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    package, _, last = name.rpartition(".")
    if package:
        setattr(importlib.import_module(package), last, module)  # as the import of a submodule does
