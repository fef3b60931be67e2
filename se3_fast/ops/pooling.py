"""Maximum or mean over the nodes of each graph. Formula: :mod:`se3_fast.backends.dense.pooling`."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype
from se3_fast.backends.choice import implementation

Pool = Literal["max", "avg"]


def pooling(feature: Tensor, sizes: Tensor, pool: Pool) -> Tensor:
    """Pool the nodes of each graph, which stand one after the other.

    Args:
        feature: [N, C, 2d+1].
        sizes: [B] int64, nodes of each graph; they add up to N.
        pool: ``max`` (among tied nodes the first has the gradient) or ``avg``.

    Returns:
        [B, C, 2d+1] in the dtype of ``feature``; 0 for a graph without nodes.

    Raises:
        ValueError: if the dtype is none that is computed with.
    """
    check_dtype("feature", feature)
    return implementation("pooling", feature.device).pooling(feature, sizes, pool)
