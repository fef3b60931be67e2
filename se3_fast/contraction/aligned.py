"""The contraction in edge-aligned frames (DESIGN 1.1): orders m, rows of aligned features, and where each aligned weight stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import at_least_float32
from se3_fast.autograd.modes import constant
from se3_fast.contraction.plan import ConvolutionPlan, RadialGroup
from se3_fast.so3 import alignment_map


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


@cache
def columns_of_input(group: RadialGroup, degree_in: int) -> list[tuple[Order, slice]]:
    """The orders that an input degree takes part in, with their columns in its weight block."""
    result, start = [], 0
    for order in orders(group):
        if degree_in in order.degrees_in:
            stop = start + order.num_parities * len(order.degrees_out) * group.channels_out
            result.append((order, slice(start, stop)))
            start = stop
    return result


@dataclass(frozen=True)
class FeatureRows:
    """Rows of aligned features, [rows, E]: by degree, component, channel."""

    channels: tuple[tuple[int, int], ...]

    @cached_property
    def starts(self) -> dict[int, int]:
        """First row of each degree."""
        starts, row = {}, 0
        for degree, channels in self.channels:
            starts[degree] = row
            row += (2 * degree + 1) * channels
        return starts

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum((2 * degree + 1) * channels for degree, channels in self.channels)

    def place(self, degree: int, first_channel: int) -> tuple[int, int]:
        """Row of a channel of a degree's first component, and the rows from one component to the next."""
        return self.starts[degree] + first_channel, dict(self.channels)[degree]

    def row(self, degree: int, order: int) -> int:
        """Row of the first channel of the component of order m."""
        return self.starts[degree] + (degree + order) * dict(self.channels)[degree]


@cache
def input_rows(plan: ConvolutionPlan) -> FeatureRows:
    """Rows of x~; the channels of edge features stand behind those of the node features of their degree."""
    appended = dict(plan.edge_channels)
    return FeatureRows(tuple((degree, channels + appended.get(degree, 0)) for degree, channels in plan.node_channels))


@cache
def output_rows(plan: ConvolutionPlan) -> FeatureRows:
    """Rows of y~."""
    return FeatureRows(plan.channels_out)


@dataclass(frozen=True)
class Pair:
    """A pair of degrees at one order, and where its aligned weights begin."""

    group: int
    m: int
    degree_in: int
    degree_out: int
    channels_in: int
    channels_out: int
    even: int
    odd: int


@cache
def pairs_of(plan: ConvolutionPlan, width: int) -> tuple[Pair, ...]:
    """All pairs at all orders, by radial group; ``width`` is that of h."""
    pairs, offset = [], 0
    for index, group in enumerate(plan.groups):
        size = group.channels_in * width * group.channels_out
        for order in orders(group):
            parity_step = len(order.degrees_in) * len(order.degrees_out) * size
            for place, (degree_in, degree_out) in enumerate(product(order.degrees_in, order.degrees_out)):
                even = offset + (order.start + place) * size
                channels = (group.channels_in, group.channels_out)
                pairs.append(Pair(index, order.m, degree_in, degree_out, *channels, even, even + parity_step))
        offset += group.num_paths * size
    return tuple(pairs)


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


def blocks_by_degree(plan: ConvolutionPlan, weights: Sequence[Tensor]) -> list[Tensor]:
    """The aligned weights of each input degree, [C_in, columns of T], from the published weight of each group. Differentiable."""
    by_degree: dict[int, list[Tensor]] = {degree: [] for degree, _ in plan.node_channels}
    for group, weight in zip(plan.groups, weights, strict=True):
        for degree, block in zip(group.degrees_in, weight_blocks(group, weight, is_by_source=True), strict=True):
            by_degree[degree].append(block)
    return [torch.cat(blocks, 1) for blocks in by_degree.values()]


def aligned_weights_of_blocks(plan: ConvolutionPlan, blocks: Sequence[Tensor], width: int) -> list[Tensor]:
    """The aligned weights of each group, [aligned, C_in, K, C_out], from what :func:`blocks_by_degree` made; ``width`` is K."""
    by_group: list[list[Tensor]] = [[] for _ in plan.groups]
    for (degree, _), block in zip(plan.node_channels, blocks, strict=True):
        present = [number for number, group in enumerate(plan.groups) if degree in group.degrees_in]
        counts = [len(rows_of_input(plan.groups[number], degree, block.device)) for number in present]
        widths = [count * width * plan.groups[number].channels_out for number, count in zip(present, counts, strict=True)]
        for number, count, part in zip(present, counts, block.split(widths, 1), strict=True):
            by_group[number].append(part.unflatten(1, (width, count, -1)).permute(2, 0, 1, 3))
    results = []
    for group, parts in zip(plan.groups, by_group, strict=True):
        rows = torch.cat([rows_of_input(group, degree, parts[0].device) for degree in group.degrees_in])
        results.append(torch.cat(parts).index_select(0, rows.argsort()))
    return results


def published_weight(group: RadialGroup, aligned: Tensor) -> Tensor:
    """The inverse of :func:`aligned_weight`, in at least float32."""
    wide = at_least_float32(aligned)
    paths = torch.einsum("fg,giko->oifk", _group_published_on(group, wide.device, wide.dtype), wide)
    return paths.flatten(0, 2)


@constant
def _group_published_on(group: RadialGroup, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.linalg.inv(group_alignment(group)).to(device, dtype)


def torque_to_gradient(torque: Tensor, rel_pos: Tensor) -> Tensor:
    """(tau x r) / |r|^2, [n, 3], from the torque on edges; 0 for an edge without direction (DESIGN 1.2)."""
    largest = rel_pos.abs().amax(-1, keepdim=True)
    scaled = rel_pos / torch.where(largest > 0, largest, 1.0)  # whose square neither overflows nor vanishes
    squared = scaled.square().sum(-1, keepdim=True) * largest
    return torch.linalg.cross(torque.to(rel_pos), scaled) / torch.where(largest > 0, squared, 1.0)
