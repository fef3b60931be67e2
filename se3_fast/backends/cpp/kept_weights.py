"""What the compiled convolutions by source keep from call to call: last radial weights in the layouts that they read.

Nothing has to be done for it: what is kept is found by the contents of the parameters, so it is never out of date
(``csrc/kept_weights.h``). This is for those who want to know how much memory it takes, or to have it back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from se3_fast.backends.cpp import library


class KeptWeights(NamedTuple):
    """What is kept.

    Attributes:
        num_weights: how many.
        num_bytes: in how many bytes.
        budget: in how many bytes at most.
        hits: how many look-ups found theirs, since the library was loaded.
        misses: how many did not.
    """

    num_weights: int
    num_bytes: int
    budget: int
    hits: int
    misses: int


def kept_weights() -> KeptWeights:
    """What is kept now.

    Raises:
        RuntimeError: the compiled operations are not there.
    """
    _require_library()
    return KeptWeights(*torch.ops.se3_fast_cpp.kept_weights())


def keep_weights(num_bytes: int) -> None:
    """Keep as many bytes from now on, and drop what is kept beyond: with 0 everything, and no look-ups are made any more.

    At first it is 256 MiB, or what the environment variable ``SE3_FAST_KEPT_WEIGHTS`` says in MiB.

    Raises:
        RuntimeError: a negative number, or the compiled operations are not there.
    """
    _require_library()
    torch.ops.se3_fast_cpp.keep_weights(num_bytes)


def _require_library() -> None:
    if not library.is_available():
        raise RuntimeError(f"expected the compiled operations, {library.reason()}")
