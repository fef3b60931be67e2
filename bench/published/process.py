"""What a contestant's process does first, before anything is imported that the contestants have different versions of."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def enter(folders: Sequence[str], threads: int) -> None:
    """Import packages from these folders before all others, and compute with so many threads."""
    sys.path[:0] = folders
    os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
