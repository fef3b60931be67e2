"""Small models that several test files train, save and read."""

from __future__ import annotations

from typing import Any

import torch

from se3_fast import Fiber, SE3TransformerPooled

SMALL_CONFIG: dict[str, Any] = {
    "fiber_in": {0: 6},
    "fiber_edge": {0: 4},
    "fiber_out": {0: 8},
    "output_dim": 1,
    "num_degrees": 2,
    "num_channels": 4,
    "num_layers": 1,
    "num_heads": 2,
    "channels_div": 2,
    "pooling": "max",
    "norm": True,
    "use_layer_norm": True,
    "tensor_cores": True,
    "low_memory": False,
}
"""As a checkpoint describes the pooled model for molecules of the sample: six node features, four of edges."""


def pooled_model(num_in: int, num_pooled: int, num_edge: int, **changes: Any) -> SE3TransformerPooled:
    """A pooled model with reproducible weights and two heads.

    Args:
        num_in: invariant features of nodes.
        num_pooled: features that are pooled.
        num_edge: invariant features of edges, the length left out.
        **changes: of the other arguments.
    """
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "num_layers": 1,
        "num_degrees": 2,
        "num_channels": 4,
        "output_dim": 1,
        "num_heads": 2,
        "channels_div": 2,
    }
    fibers = (Fiber({0: num_in}), Fiber({0: num_pooled}), Fiber({0: num_edge} if num_edge else {}))
    return SE3TransformerPooled(*fibers, **arguments | changes)
