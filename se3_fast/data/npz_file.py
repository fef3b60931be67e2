"""Writing ``.npz`` archives whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from se3_fast.files import atomic_file


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` that other processes only ever see complete.

    NumPy gives every member the same time stamp, so equal arrays make equal bytes.

    Args:
        path: Final name of the file; its directory is made if it is missing.
        arrays: Named arrays of numbers or fixed-length strings.

    Raises:
        TypeError: An array holds Python objects, which could only be stored by pickling.
    """
    target = Path(path)
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"arrays[{name!r}] must hold numbers or fixed-length strings, got dtype {array.dtype}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as stream:
        # The stubs take every keyword for `allow_pickle`.
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
