"""The two hidden layers of the radial profile (DESIGN 1).

h = relu(LN(W2 relu(LN(W1 a + b1)) + b2))      a: [E, e] invariant edge features and the edge length;  h: [E, K]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.backends.dense.layer_norm import layer_norm
from se3_fast.backends.operands import Profiles, RadialLayer, Recipe

LAYER_NORM_EPSILON = 1e-5


def radial(invariants: Tensor, profiles: Profiles) -> list[Tensor]:
    """The hidden layers of every profile: [E, e] to [E, K]."""
    return [_of_profile(invariants, layers) for layers in profiles]


def recipe(invariants: Tensor, profiles: Profiles) -> Recipe | None:
    """None: autograd keeps values of the size of h in any case."""
    return None


def of_groups(num_groups: int, has_norm: bool, operands: Sequence[Tensor]) -> list[Tensor]:
    """h of each group, [E, K], from the invariants and the parameters of all in a row, in the order of :class:`RadialLayer`."""
    invariants, *parameters = operands
    remaining = iter(parameters)

    def layer() -> RadialLayer:
        weight, bias = next(remaining), next(remaining)
        return RadialLayer(weight, bias, next(remaining), next(remaining)) if has_norm else RadialLayer(weight, bias, None, None)

    return [_of_profile(invariants, (layer(), layer())) for _ in range(num_groups)]


def _of_profile(invariants: Tensor, layers: tuple[RadialLayer, RadialLayer]) -> Tensor:
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
