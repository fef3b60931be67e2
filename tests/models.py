"""Small models that several test files train, save and read."""

from __future__ import annotations

from typing import Any

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
