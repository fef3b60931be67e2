"""The two hidden layers of the radial profile (DESIGN 1).

h = relu(LN(W2 relu(LN(W1 a + b1)) + b2))      a: [E, e] invariant edge features and the edge length;  h: [E, K]
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.backends.dense.layer_norm import layer_norm


class RadialLayer(NamedTuple):
    """One hidden layer: ``weight`` [K, e], ``bias`` [K]; ``scale`` and ``shift`` [K] of its layer norm, or None without one."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None


LAYER_NORM_EPSILON = 1e-5


def radial(invariants: Tensor, layers: tuple[RadialLayer, RadialLayer]) -> Tensor:
    """The hidden layers of one profile: [E, e] to [E, K]."""
    hidden = invariants
    for layer in layers:
        hidden = F.linear(hidden, layer.weight, layer.bias)
        if layer.scale is not None and torch.compiler.is_compiling():  # differentiated once; a global float would be an input
            hidden = F.layer_norm(hidden, hidden.shape[-1:], layer.scale, layer.shift)
        elif layer.scale is not None:
            hidden = layer_norm(hidden, layer.scale, layer.shift, LAYER_NORM_EPSILON)
        hidden = F.relu(hidden)
    return hidden
