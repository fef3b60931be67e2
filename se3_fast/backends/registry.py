"""(operation, backend) -> module: ``se3_fast/backends/<backend>/<operation>.py``, imported when it is first asked for.

The only place of the package that imports while it runs: what a backend needs (Triton, the libraries of ``csrc/``) need not be
there.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from se3_fast.backends.protocol import PROTOCOLS, Support


@cache
def implementation(operation: str, backend: str) -> ModuleType | None:
    """The module of an operation in the folder of a backend; None where there is none.

    Raises:
        TypeError: if it offers less than :mod:`se3_fast.backends.protocol` asks for.
    """
    name = f"se3_fast.backends.{backend}.{operation}"
    if find_spec(name) is None:
        return None
    module = import_module(name)
    _check(module, PROTOCOLS[operation])
    return module


def support(module: ModuleType, is_compiled: bool, details: tuple[Hashable, ...]) -> Support:
    """What an implementation says of a call; everything is supported by one that says nothing."""
    ask: Any = getattr(module, "support", None)
    return Support() if ask is None else ask(is_compiled, *details)


@cache
def availability(backend: str) -> Support:
    """Whether what a backend needs is there: what ``available`` of its folder says."""
    return import_module(f"se3_fast.backends.{backend}").available()


def _check(module: ModuleType, protocol: type) -> None:
    """That a module has the constants of a protocol, and its functions with the parameters named there."""
    missing = [name for name in vars(protocol).get("__annotations__", {}) if not hasattr(module, name)]
    if missing:
        raise TypeError(f"{module.__name__}: expected {missing[0]} as {protocol.__name__} has, got none")
    for name, expected in vars(protocol).items():
        if name.startswith("_") or not inspect.isfunction(expected):
            continue
        found = getattr(module, name, None)
        if found is None:
            raise TypeError(f"{module.__name__}: expected a function {name} as {protocol.__name__} has, got none")
        wanted = list(inspect.signature(expected).parameters)[1:]
        given = list(inspect.signature(found).parameters)
        if given != wanted:
            raise TypeError(f"{module.__name__}.{name}: expected the parameters {wanted}, got {given}")
