"""The layer of a force field: atoms hear of their neighbours, and of what their neighbours are together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from se3_fast.autograd.modes import constant
from se3_fast.backends.operands import InteractionLayer
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.contraction.products import product_coupling
from se3_fast.graph import Graph
from se3_fast.ops.depthwise_conv import depthwise_conv

SILU_SCALE = 1.6765324703310907
"""One over the root mean square of SiLU for normal inputs."""
SIGMOID_SCALE = 1.8467
"""One over the root mean square of the logistic function for normal inputs."""


def largest_harmonic(degree_hidden: int) -> int:
    """Of the edges, for messages of the degrees to ``degree_hidden``: as large as those, and at least 2, which couples vectors with
    vectors; the harmonics above that couple the largest degrees with each other cost more than they give."""
    return max(1, min(2 * degree_hidden, max(degree_hidden, 2)))


class Interaction(nn.Module):
    """A depthwise convolution, products of what arrives with itself, linear maps, and gates.

        a = sum over incoming edges of messages of x V                       depthwise, sqrt(average number of neighbours) taken out
        T = s(s(r W1) W2) W3,   s(z) = 1.6765 silu(z)                        its table: the radial profile at the knots' distances
        b = a U
        f_d = b_d, and all b_d1 x b_d2 that give degree d, and x_d of the atom itself by element
        y_d = f_d W_d;   x'_0 = silu(y_0),   x'_d = sigmoid(gate_d) y_d

    Products of two neighbours' messages tell what three atoms do together (body order, as in the atomic cluster expansion).
    Features stand degree by degree, [N, 2d+1, C]. Maps act on channels alone, so that the layer is equivariant; paths whose degrees
    sum to an odd number are left out, so that it is under reflections too.

    Args:
        degrees: largest degree of the features that come, of what the convolution gives, and of the features that leave.
        num_channels: C.
        num_elements: how many elements atoms may be of.
        radial_widths: radial functions of a distance, and width of the hidden layers of the radial profile.
        average_neighbours: of an atom, in the training set.
    """

    def __init__(
        self,
        degrees: tuple[int, int, int],
        num_channels: int,
        num_elements: int,
        radial_widths: tuple[int, int],
        average_neighbours: float,
    ) -> None:
        super().__init__()
        degree_in, degree_hidden, self.degree_out = degrees
        self.plan = DepthwisePlan(degree_in, degree_hidden, largest_harmonic(degree_hidden))
        self.num_channels, self.average_neighbours = num_channels, average_neighbours
        self.before = _maps([num_channels] * (degree_in + 1), num_channels)
        num_radial, radial_width = radial_widths
        profile = ((num_radial, radial_width), (radial_width, radial_width), (radial_width, len(self.plan.paths) * num_channels))
        self.profile = nn.ParameterList([_normal(*sizes, 1 / math.sqrt(sizes[0])) for sizes in profile])
        self.after = _maps([num_channels] * (degree_hidden + 1), num_channels)
        self.products = tuple(_products(degree, degree_hidden) for degree in range(self.degree_out + 1))
        widths = [
            num_channels * (1 + len(products) + (num_elements if degree <= degree_in else 0))
            for degree, products in enumerate(self.products)
        ]
        self.out = _maps(widths, num_channels)
        self.gates = _maps([widths[0]] * self.degree_out, num_channels)

    def operands(self, radial: Tensor) -> InteractionLayer:
        """What it couples, and its weights; the radial table from the radial functions of the knots [K, B]."""
        before, profile, after, out, gates = map(_weights, (self.before, self.profile, self.after, self.out, self.gates))
        return InteractionLayer(
            self.plan, self.average_neighbours, self.products, before, _table(radial, profile), after, out, gates
        )

    def forward(
        self, features: Sequence[Tensor], graph: Graph, embedding: tuple[Tensor, Tensor], kinds: Tensor, radial: Tensor
    ) -> list[Tensor]:
        """Exchange messages.

        Args:
            features: [N, 2d+1, C] of the degrees that come.
            graph: N atoms, E edges.
            embedding: harmonics [E, .] of the edges and their places [E] among the knots.
            kinds: [N, num_elements], one-hot.
            radial: [K, num_radial] radial functions of the knots' distances.

        Returns:
            [N, 2d+1, C] of the degrees that leave.
        """
        return interact(self.operands(radial), features, graph, embedding, kinds)


def interact(
    layer: InteractionLayer, features: Sequence[Tensor], graph: Graph, embedding: tuple[Tensor, Tensor], kinds: Tensor
) -> list[Tensor]:
    """What :class:`Interaction` computes, with any weights; the other arguments and the result are those of its ``forward``."""
    sent = torch.cat([feature @ weight for feature, weight in zip(features, layer.before, strict=True)], 1)
    arrived = depthwise_conv(layer.plan, graph, sent, *embedding, layer.table)
    arrived = arrived / math.sqrt(layer.average_neighbours)
    sizes = [2 * degree + 1 for degree in range(layer.plan.degree_out + 1)]
    mixed = [part @ weight for part, weight in zip(arrived.split(sizes, 1), layer.after, strict=True)]
    found: list[Tensor] = []
    scalars = features[0]
    for degree, (products, weight) in enumerate(zip(layer.products, layer.out, strict=True)):
        parts = [mixed[degree], *(_product(mixed[first], mixed[second], degree) for first, second in products)]
        if degree < len(features):
            parts.append((features[degree][:, :, None] * kinds[:, None, :, None]).flatten(2))
        stacked = torch.cat(parts, 2)  # [N, 2d+1, .]
        if degree == 0:
            scalars = stacked
            found.append(SILU_SCALE * F.silu(stacked @ weight))
        else:
            gate = SIGMOID_SCALE * torch.sigmoid(scalars @ layer.gates[degree - 1])
            found.append(gate * (stacked @ weight))
    return found


def _normal(inputs: int, outputs: int, deviation: float) -> Tensor:
    return torch.randn(inputs, outputs) * deviation


def _maps(widths: Sequence[int], channels: int) -> nn.ParameterList:
    """A map to the channels for each degree, in variance the same."""
    return nn.ParameterList([_normal(width, channels, 1 / math.sqrt(width)) for width in widths])


def _weights(parameters: nn.ParameterList) -> list[Tensor]:
    """The entries of the list; at a tenth of the time that the list takes, where none is computed from others."""
    found = list(parameters._parameters.values())
    return found if len(found) == len(parameters) else list(parameters)  # type: ignore[return-value]


def _table(radial: Tensor, profile: Sequence[Tensor]) -> Tensor:
    """The radial profile of all knots, [K, paths * C]; without biases, so that it goes to zero where its inputs do."""
    first, second, last = profile
    hidden = radial
    for weight in (first, second):
        hidden = SILU_SCALE * F.silu(hidden @ weight)
    return hidden @ last


def _products(degree: int, max_degree: int) -> tuple[tuple[int, int], ...]:
    """Pairs of degrees whose products have a part of ``degree`` that does not change sign when a mirror does not change it."""
    return tuple(
        (first, second)
        for first, second in combinations_with_replacement(range(max_degree + 1), 2)
        if second - first <= degree <= second + first and (first + second + degree) % 2 == 0
    )


def _product(first: Tensor, second: Tensor, degree: int) -> Tensor:
    """The part of ``degree`` of the product of two features, channel by channel, [N, 2d+1, C]."""
    size = first.shape[1], second.shape[1]
    if size[0] == 1:
        return first * second
    if degree == 0:
        return (first * second).sum(1, keepdim=True) / math.sqrt(size[0])
    coupling = _coupling_on((degree, size[0] // 2, size[1] // 2), first.device, first.dtype)
    pairs = (first[:, :, None] * second[:, None, :]).flatten(1, 2)  # [N, (2d1+1)(2d2+1), C]
    return coupling @ pairs


@constant
def _coupling_on(degrees: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The map from products of two degrees to the third, [2d+1, (2d1+1)(2d2+1)]; copied to a device once, not with every step."""
    return product_coupling(*degrees).to(device, dtype).flatten(1)
