"""What the layers of a model read of their parameters, made for all of them at once, which saves launches."""

import torch

from se3_fast.backends.triton.aligned_weights import aligned_weights
from se3_fast.backends.triton.parameter_rows import parameter_rows
from se3_fast.backends.triton.radial import radial_of_layers
from se3_fast.backends.triton.tfn_conv import hidden_gradient_parts, is_contracted_by_edge

__all__ = [
    "aligned_weights",
    "gradient_parts",
    "hidden_gradient_parts",
    "is_contracted_by_edge",
    "parameter_rows",
    "radial_of_layers",
]

_PARTS = {"linear": 32, "equivariant_norm": 128, "radial": 64}
"""In how many parts the gradient of an operation's parameters comes: what fills a large GPU with 4 degrees, or 8 radial groups."""


def gradient_parts(operation: str, device: torch.device) -> int:
    """How many programs share nodes or edges: as many as fill a large GPU, whatever there is to share, so that tables depend on the
    model alone and are there before anything is recorded; on the CPU few, as Triton's interpreter runs one after the other."""
    most = _PARTS[operation]
    return most if device.type == "cuda" else min(most, 2)
