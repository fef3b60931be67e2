"""Triton's interpreter without two of its costs, which were a third of the time of the kernels' tests.

It replaces the functions of ``triton.language`` by interpreted ones not only when a kernel begins, but in every call of a function
within it, where they are replaced already; and it makes its table of NumPy's dtypes anew for every value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def spare() -> None:
    """Do without, from now on in this process."""
    interpreter._get_np_dtype = _looked_up(interpreter._get_np_dtype)
    replaced: set[int] = set()
    interpreter._patch_lang = _once(interpreter._patch_lang, replaced)
    interpreter.GridExecutor.__call__ = _forgetting(interpreter.GridExecutor.__call__, replaced)


def _looked_up(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    of_numbers = functools.cache(find)

    @functools.wraps(find)
    def looked_up(dtype: Any) -> Any:
        return find(dtype) if isinstance(dtype.scalar, tl.pointer_type) else of_numbers(dtype.scalar)

    return looked_up


def _once(replace: Callable[[Any], Any], replaced: set[int]) -> Callable[[Any], Any]:
    """For each way in which functions see the language: the package, its core, or both."""

    @functools.wraps(replace)
    def once(function: Any) -> Any:
        seen = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if seen <= replaced:
            return interpreter._LangPatchScope()  # nothing to take back
        replaced.update(seen)
        return replace(function)

    return once


def _forgetting(run: Callable[..., None], replaced: set[int]) -> Callable[..., None]:
    """A kernel takes back what it has replaced when it ends."""

    @functools.wraps(run)
    def forgetting(*arguments: Any, **options: Any) -> None:
        before = set(replaced)
        replaced.clear()
        try:
            run(*arguments, **options)
        finally:
            replaced.clear()
            replaced.update(before)

    return forgetting
