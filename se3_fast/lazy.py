"""Names of a module that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazy_names(
    module: str, homes: Mapping[str, str], body: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a module that has names of others.

    Args:
        module: Its name.
        homes: Names, and the modules that they come from.
        body: Of a package, the module whose import makes sub-modules attributes of it.
    """
    own = vars(sys.modules[module])

    def get(name: str) -> Any:
        if name in homes:
            own[name] = getattr(_imported(homes[name]), name)
        elif body is not None and find_spec(f"{module}.{name}") is not None:
            _imported(body)
        if name not in own:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return own[name]

    return get, lambda: sorted({*own, *homes})


def _imported(module: str) -> ModuleType:
    try:
        return import_module(module)
    except AttributeError as error:
        # Left as it is, who asked would be told that there is no such name.
        raise RuntimeError(f"{module}: its import failed") from error
