"""What of a convolution couples with what, where each weight stands, and how a turn of the edges changes it: written once.

A :class:`ConvolutionPlan` says which degrees and channels are coupled, and which radial profile serves which pair. It is what the
layers hand to the operation and the operation to its backends: a description without tensors. The maps from published weights to
those of edge-aligned frames follow from it (DESIGN 1.1).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.modes import constant
from se3_fast.so3 import alignment_map, num_paths


class DegreePair(NamedTuple):
    """A pair of degrees within a radial group, with its place on the group's path axis.

    Attributes:
        degree_in: degree of the source features.
        degree_out: degree of the messages.
        start: first of the pair's 2 min(d_in, d_out) + 1 paths on the group's path axis.
    """

    degree_in: int
    degree_out: int
    start: int

    @property
    def stop(self) -> int:
        """One past the pair's last path."""
        return self.start + num_paths(self.degree_in, self.degree_out)


@dataclass(frozen=True)
class RadialGroup:
    """The pairs of degrees served by one radial profile: every input degree with every output degree.

    All input degrees of a group have the same number of channels, and so have all output degrees. The rows of the
    profile's last weight are ordered (output channel, input channel, path), paths by output degree, then input degree,
    then J (DESIGN 1).

    Attributes:
        degrees_in: input degrees, ascending.
        degrees_out: output degrees, ascending.
        channels_in: channels of every input degree, edge-feature channels included.
        channels_out: channels of every output degree.
        is_basis_free: the group is the single pair (0, 0) whose basis is 1 instead of the spherical harmonic Y_0; so it is in
            the published implementation where pairs are not fused.
    """

    degrees_in: tuple[int, ...]
    degrees_out: tuple[int, ...]
    channels_in: int
    channels_out: int
    is_basis_free: bool = False

    @cached_property
    def pairs(self) -> tuple[DegreePair, ...]:
        """All pairs in path order."""
        pairs, start = [], 0
        for degree_out in self.degrees_out:
            for degree_in in self.degrees_in:
                pairs.append(DegreePair(degree_in, degree_out, start))
                start = pairs[-1].stop
        return tuple(pairs)

    @property
    def num_paths(self) -> int:
        """Length of the path axis."""
        return self.pairs[-1].stop

    @property
    def max_order(self) -> int:
        """The largest order |m| that any pair of the group couples."""
        return min(max(self.degrees_in), max(self.degrees_out))


@dataclass(frozen=True)
class ConvolutionPlan:
    """What a TFN convolution couples.

    Attributes:
        node_channels: (degree, channels) of the source-node features, degrees ascending.
        edge_channels: (degree, channels) of the edge features of degree > 0 appended to them, degrees ascending.
        channels_out: (degree, channels) of the messages, degrees ascending.
        groups: the radial groups; together they hold every pair of input and output degree once.
    """

    node_channels: tuple[tuple[int, int], ...]
    edge_channels: tuple[tuple[int, int], ...]
    channels_out: tuple[tuple[int, int], ...]
    groups: tuple[RadialGroup, ...]

    @property
    def max_degree(self) -> int:
        """The largest degree on either side."""
        return max(degree for degree, _ in self.node_channels + self.channels_out)

    def to_json(self) -> str:
        """This plan as text, for graphs that are compiled or exported."""
        return json.dumps(asdict(self))

    @staticmethod
    @cache
    def from_json(text: str) -> ConvolutionPlan:
        """The plan that :meth:`to_json` wrote."""
        fields = json.loads(text)
        groups = [
            RadialGroup(**group | {name: tuple(group[name]) for name in ("degrees_in", "degrees_out")})
            for group in fields.pop("groups")
        ]
        return ConvolutionPlan(**{name: tuple(map(tuple, value)) for name, value in fields.items()}, groups=tuple(groups))


class Order(NamedTuple):
    """The degrees of a radial group that couple at order m, and their place among the group's aligned weights.

    Aligned weights are ordered (m, parity, d_in, d_out): even before odd, and no odd ones at m = 0.
    """

    m: int
    start: int
    num_parities: int
    degrees_in: tuple[int, ...]
    degrees_out: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past the order's last aligned weight."""
        return self.start + self.num_parities * len(self.degrees_in) * len(self.degrees_out)

    def components(self, degree: int) -> slice:
        """Where the components -m, +m of a degree stand (m = 0: the one component)."""
        return slice(degree - self.m, degree + self.m + 1, max(2 * self.m, 1))


@cache
def orders(group: RadialGroup) -> tuple[Order, ...]:
    """The orders m of a group."""
    result: list[Order] = []
    for m in range(group.max_order + 1):
        degrees_in = tuple(degree for degree in group.degrees_in if degree >= m)
        degrees_out = tuple(degree for degree in group.degrees_out if degree >= m)
        start = result[-1].stop if result else 0
        result.append(Order(m, start, 1 if m == 0 else 2, degrees_in, degrees_out))
    return tuple(result)


@constant
def group_alignment(group: RadialGroup) -> Tensor:
    """The map from a group's paths to its aligned weights, [aligned, paths] float64."""
    matrix = torch.zeros(group.num_paths, group.num_paths, dtype=torch.float64)
    pairs = {(pair.degree_in, pair.degree_out): pair for pair in group.pairs}
    for order in orders(group):
        combinations = product(range(order.num_parities), order.degrees_in, order.degrees_out)
        for row, (parity, degree_in, degree_out) in enumerate(combinations, start=order.start):
            pair = pairs[degree_in, degree_out]
            mapped = alignment_map(degree_in, degree_out)
            matrix[row, pair.start : pair.stop] = mapped[order.m + parity * min(degree_in, degree_out)]
    return torch.ones_like(matrix) if group.is_basis_free else matrix


@constant
def group_alignment_on(group: RadialGroup, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The map from a group's paths to its aligned weights, [aligned, paths], kept on a device: copied once, for recorded work."""
    return group_alignment(group).to(device, dtype)


@constant
def rows_of_input(group: RadialGroup, degree_in: int, device: torch.device) -> Tensor:
    """Where the aligned weights of one input degree stand, in the order (m, parity, d_out): int64, on a device."""
    rows = [
        order.start + (parity * len(order.degrees_in) + order.degrees_in.index(degree_in)) * len(order.degrees_out) + column
        for order in orders(group)
        if degree_in in order.degrees_in
        for parity in range(order.num_parities)
        for column in range(len(order.degrees_out))
    ]
    return torch.tensor(rows, device=device)


def aligned_weight(group: RadialGroup, weight: Tensor) -> Tensor:
    """The last radial weight of a group, [C_out * C_in * F, K], mapped to the aligned ones, [aligned, C_in, K, C_out]."""
    paths = weight.unflatten(0, (group.channels_out, group.channels_in, group.num_paths))
    return torch.einsum("gf,oifk->giko", group_alignment_on(group, weight.device, weight.dtype), paths)


def weight_blocks(group: RadialGroup, weight: Tensor, is_by_source: bool) -> list[Tensor]:
    """The last radial weight of a group, aligned and laid out for a contraction order. Differentiable.

    Args:
        group: the group.
        weight: [C_out * C_in * F, K] in the published layout.
        is_by_source: the contraction order.

    Returns:
        By edge: per order m, [(parity, d_in, C_in, K), (d_out, C_out)].
        By source: per input degree, [C_in, (K, (m, parity, d_out), C_out)].
    """
    aligned = aligned_weight(group, weight)
    if is_by_source:
        rows = [aligned[rows_of_input(group, degree, weight.device)] for degree in group.degrees_in]
        return [row.permute(1, 2, 0, 3).flatten(1) for row in rows]
    blocks = []
    for order in orders(group):
        block = aligned[order.start : order.stop]
        block = block.unflatten(0, (order.num_parities, len(order.degrees_in), len(order.degrees_out)))
        blocks.append(block.permute(0, 1, 3, 4, 2, 5).flatten(4).flatten(0, 3))
    return blocks


def torque_to_gradient(torque: Tensor, rel_pos: Tensor) -> Tensor:
    """(tau x r) / |r|^2, [n, 3], from the torque on edges; 0 for an edge without direction (DESIGN 1.2)."""
    largest = rel_pos.abs().amax(-1, keepdim=True)
    scaled = rel_pos / torch.where(largest > 0, largest, 1.0)  # whose square neither overflows nor vanishes
    squared = scaled.square().sum(-1, keepdim=True) * largest
    return torch.linalg.cross(torque.to(rel_pos), scaled) / torch.where(largest > 0, squared, 1.0)
