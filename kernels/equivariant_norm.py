"""Norm-based nonlinearity: all degrees of a layer in one launch, forward and backward.

    n = max(|x|, 2^-24),   z = (n - mean n) / sqrt(var n + epsilon),   p = relu(scale z + shift),   out = x p / n

Features of a degree are [N, C, 2d+1]; mean and variance are over the C channels of one node and degree, which is both the group
normalisation with one group per degree and the layer normalisation of a degree on its own.

Backward, from x alone (everything else is made again), with g the gradient of the output, y = x / n and s = <g, y> over components:

    dv = [p > 0] s,   dscale = sum dv z,   dshift = sum dv,   dz = scale dv
    dn = (dz - mean dz - z mean(z dz)) / sqrt(var n + epsilon)
    dx = (g - s y) p / n + dn y,   without the terms in y where |x| < 2^-24

(g - s y is the part of g across x, exactly zero for degree 0. Were g p / n and s y p / n summed apart, their rounding errors would
be left, which are huge near the clamp.)

Sums over nodes: a program walks over its share of the nodes and writes its partial sums, which are then added in a fixed order.

Cost per node and value: forward about 4 FLOP, one value read and one written; backward about 10 FLOP, two read and one written.
Bound by memory: 2 KB per node forward and 3 KB backward at 4 degrees, 32 channels, half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .cost import Cost
from .launching import launch
from .precision import DTYPES, ROUNDINGS, sum_dtype, sum_type
from .resources import ArgumentType, CompileCase, signature

_FORWARD_VALUES = 1024  # a program's share of the largest degree, by 4 warps: 8 values a thread
_BACKWARD_VALUES = 512  # features and gradients, and twice as much that follows from them: 4 of each a thread

_MAX_PARTIAL_SUMS = 256  # programs that share the nodes of a degree in the backward pass: with 2 degrees or more they fill a GPU


@triton.jit
def _tile(block, num_nodes, CHANNELS: tl.constexpr, COMPONENTS: tl.constexpr, NODES: tl.constexpr, CHANNEL_TILE: tl.constexpr):
    """Where a block of nodes begins, offsets from there [NODES, CHANNEL_TILE, padded components], and which of them are values.

    The offsets are 32 bits wide: as 64-bit ones they would fill a third of the registers.
    """
    PADDED: tl.constexpr = triton.next_power_of_2(COMPONENTS)
    first = tl.cast(block, tl.int64) * NODES
    node = tl.arange(0, NODES)[:, None, None]
    channel = tl.arange(0, CHANNEL_TILE)[None, :, None]
    component = tl.arange(0, PADDED)[None, None, :]
    offsets = (node * CHANNELS + channel) * COMPONENTS + component
    is_value = (first + node < num_nodes) & (channel < CHANNELS) & (component < COMPONENTS)
    return first * (CHANNELS * COMPONENTS), offsets, is_value


@triton.jit
def _normalised_norms(values, COMPONENTS: tl.constexpr, CHANNELS: tl.constexpr, CHANNEL_TILE: tl.constexpr, EPSILON: tl.constexpr):
    """|x|, n, z [NODES, CHANNEL_TILE] and 1 / sqrt(var + epsilon) [NODES, 1]; z is 0 beyond the last channel."""
    is_channel = (tl.arange(0, CHANNEL_TILE) < CHANNELS)[None]
    length = tl.sum(tl.abs(values), 2) if COMPONENTS == 1 else tl.sqrt(tl.sum(values * values, 2))
    norm = tl.where(length < 2.0**-24, 2.0**-24, length)  # lets a NaN through, as PyTorch's clamp does
    mean = tl.sum(tl.where(is_channel, norm, 0.0), 1)[:, None] / CHANNELS
    centred = tl.where(is_channel, norm - mean, 0.0)
    inverse_deviation = 1.0 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / CHANNELS + EPSILON)
    return length, norm, centred * inverse_deviation, inverse_deviation


@triton.jit
def _direction(values, length, norm, COMPONENTS: tl.constexpr):
    """y. Of degree 0 it is 1 or -1 where n = |x|, which a GPU's quotient need not be: g - s y is exactly zero then."""
    direction = values / norm[:, :, None]
    if COMPONENTS == 1:
        direction = tl.where((length == norm)[:, :, None], tl.where(values < 0, -1.0, 1.0), direction)
    return direction


@triton.jit
def _parameters(scale, shift, NUMBER: tl.constexpr, CHANNELS: tl.constexpr, CHANNEL_TILE: tl.constexpr, SUM: tl.constexpr):
    """Scale and shift of a degree, [1, CHANNEL_TILE]."""
    channel = tl.arange(0, CHANNEL_TILE)
    place = NUMBER * CHANNELS + channel
    is_channel = channel < CHANNELS
    scales = tl.load(scale + place, mask=is_channel, other=0.0).to(SUM)
    shifts = tl.load(shift + place, mask=is_channel, other=0.0).to(SUM)
    return scales[None], shifts[None]


@triton.jit
def _normalise_degree(
    feature, output, scale, shift, num_nodes, NUMBER: tl.constexpr, COMPONENTS: tl.constexpr,
    CHANNELS: tl.constexpr, NODES: tl.constexpr, CHANNEL_TILE: tl.constexpr, EPSILON: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    start, offsets, is_value = _tile(tl.program_id(0), num_nodes, CHANNELS, COMPONENTS, NODES, CHANNEL_TILE)
    values = tl.load(feature + start + offsets, mask=is_value, other=0.0).to(SUM)
    scales, shifts = _parameters(scale, shift, NUMBER, CHANNELS, CHANNEL_TILE, SUM)
    _, norm, normalised, _ = _normalised_norms(values, COMPONENTS, CHANNELS, CHANNEL_TILE, EPSILON)
    shifted = scales * normalised + shifts
    rectified = tl.where(shifted <= 0, 0.0, shifted)
    result = values * (rectified / norm)[:, :, None]
    tl.store(output + start + offsets, result.to(output.dtype.element_ty), mask=is_value)


@triton.jit
def _differentiate_degree(
    feature, gradient, result, scale, shift, partial_sums, num_nodes, parameters, NUMBER: tl.constexpr, COMPONENTS: tl.constexpr,
    CHANNELS: tl.constexpr, NODES: tl.constexpr, CHANNEL_TILE: tl.constexpr, EPSILON: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    scales, shifts = _parameters(scale, shift, NUMBER, CHANNELS, CHANNEL_TILE, SUM)
    scale_sum = tl.zeros((CHANNEL_TILE,), SUM)
    shift_sum = tl.zeros((CHANNEL_TILE,), SUM)
    for block in range(tl.program_id(0), tl.cdiv(num_nodes, NODES), tl.num_programs(0)):
        start, offsets, is_value = _tile(block, num_nodes, CHANNELS, COMPONENTS, NODES, CHANNEL_TILE)
        values = tl.load(feature + start + offsets, mask=is_value, other=0.0).to(SUM)
        cotangent = tl.load(gradient + start + offsets, mask=is_value, other=0.0).to(SUM)
        length, norm, normalised, inverse_deviation = _normalised_norms(values, COMPONENTS, CHANNELS, CHANNEL_TILE, EPSILON)
        shifted = scales * normalised + shifts
        ratio = tl.where(shifted <= 0, 0.0, shifted) / norm
        direction = _direction(values, length, norm, COMPONENTS)
        of_rectified = tl.sum(cotangent * direction, 2)
        of_shifted = tl.where(shifted <= 0, 0.0, of_rectified)
        scale_sum += tl.sum(of_shifted * normalised, 0)
        shift_sum += tl.sum(of_shifted, 0)
        of_normalised = of_shifted * scales
        mean = tl.sum(of_normalised, 1)[:, None] / CHANNELS
        along = tl.sum(of_normalised * normalised, 1)[:, None] / CHANNELS
        of_norm = inverse_deviation * (of_normalised - mean - normalised * along)
        # Where the clamp holds, n is a constant: nothing flows back through it.
        is_clamped = (length < 2.0**-24)[:, :, None]
        across = cotangent - tl.where(is_clamped, 0.0, of_rectified[:, :, None] * direction)
        of_values = ratio[:, :, None] * across + tl.where(is_clamped, 0.0, of_norm[:, :, None] * direction)
        tl.store(result + start + offsets, of_values.to(result.dtype.element_ty), mask=is_value)
    channel = tl.arange(0, CHANNEL_TILE)
    row = partial_sums + tl.program_id(0) * 2 * parameters + NUMBER * CHANNELS + channel
    tl.store(row, scale_sum, mask=channel < CHANNELS)
    tl.store(row + parameters, shift_sum, mask=channel < CHANNELS)


@triton.jit(do_not_specialize=["num_nodes"])
def _forward_kernel(
    features, outputs, scale, shift, num_nodes, COMPONENTS: tl.constexpr,
    CHANNELS: tl.constexpr, NODES: tl.constexpr, CHANNEL_TILE: tl.constexpr, EPSILON: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(1)
    for n in tl.static_range(len(COMPONENTS)):
        if number == n:
            _normalise_degree(
                features[n], outputs[n], scale, shift, num_nodes, n, COMPONENTS[n], CHANNELS, NODES, CHANNEL_TILE, EPSILON, SUM
            )  # fmt: skip


@triton.jit(do_not_specialize=["num_nodes"])
def _backward_kernel(
    features, gradients, results, scale, shift, partial_sums, num_nodes, parameters, COMPONENTS: tl.constexpr,
    CHANNELS: tl.constexpr, NODES: tl.constexpr, CHANNEL_TILE: tl.constexpr, EPSILON: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(1)
    for n in tl.static_range(len(COMPONENTS)):
        if number == n:
            _differentiate_degree(
                features[n], gradients[n], results[n], scale, shift, partial_sums, num_nodes, parameters, n, COMPONENTS[n],
                CHANNELS, NODES, CHANNEL_TILE, EPSILON, SUM,
            )  # fmt: skip


def forward(features: Sequence[Tensor], scale: Tensor, shift: Tensor, epsilon: float) -> list[Tensor]:
    """Normalise and rectify the norms of features.

    Args:
        features: of every degree [N, C, 2d+1], contiguous, of one C.
        scale: [len(features) * C] weights, the channels of one degree after those of another.
        shift: the same for the bias.
        epsilon: added to the variance.

    Returns:
        Tensors like ``features``.
    """
    outputs = [torch.empty_like(feature) for feature in features]
    num_nodes, channels, _ = features[0].shape
    if num_nodes > 0 and channels > 0:
        tile = _choose_tile(channels, _components(features), _FORWARD_VALUES)
        grid = (triton.cdiv(num_nodes, tile.nodes), len(features))
        launch(_forward_kernel, grid,
            tuple(features), tuple(outputs), scale, shift, num_nodes,
            **_constants(channels, _components(features), tile, epsilon, _widest(features)), num_warps=tile.warps,
        )  # fmt: skip
    return outputs


def backward(
    features: Sequence[Tensor],
    gradients: Sequence[Tensor],
    scale: Tensor,
    shift: Tensor,
    epsilon: float,
    programs: int | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of everything.

    Args:
        features: as in :func:`forward`.
        gradients: of the outputs, contiguous.
        scale: as in :func:`forward`.
        shift: as in :func:`forward`.
        epsilon: as in :func:`forward`.
        programs: how many share the nodes of a degree; None: as many as fill a large GPU.

    Returns:
        Gradients of the features; and of ``scale`` and ``shift``, [programs, 2, len(scale)], to be summed over the programs.
    """
    results = [torch.empty_like(feature) for feature in features]
    num_nodes, channels, _ = features[0].shape
    if channels == 0:
        return results, scale.new_zeros(programs or 1, 2, len(scale))
    tile = _choose_tile(channels, _components(features), _BACKWARD_VALUES)
    if programs is None:
        programs = max(1, min(triton.cdiv(num_nodes, tile.nodes), _MAX_PARTIAL_SUMS))
    partial_sums = torch.empty(programs, 2, len(scale), dtype=sum_dtype(_widest(features)), device=scale.device)
    launch(_backward_kernel, (programs, len(features)),
        tuple(features), tuple(gradients), tuple(results), scale, shift, partial_sums, num_nodes, len(scale),
        **_constants(channels, _components(features), tile, epsilon, _widest(features)), num_warps=tile.warps,
    )  # fmt: skip
    return results, partial_sums


class Tile(NamedTuple):
    """What one program holds: ``nodes`` nodes by ``channels`` channels (a power of two) by the components of a degree."""

    nodes: int
    channels: int
    warps: int


def _choose_tile(channels: int, components: Sequence[int], values: int) -> Tile:
    """``values`` values of the largest degree by 4 warps, so that all that is made of them stays in registers.

    A node's channels are not split: where they are more than that, more warps hold them. Less than 64 nodes: with one channel there
    would be one program.
    """
    channel_tile = triton.next_power_of_2(channels)
    node_values = channel_tile * triton.next_power_of_2(max(components))
    return Tile(max(1, min(64, values // node_values)), channel_tile, min(32, max(4, 4 * node_values // values)))


def _widest(features: Sequence[Tensor]) -> torch.dtype:
    """The dtype that none of the degrees loses digits in."""
    return max((feature.dtype for feature in features), key=lambda dtype: dtype.itemsize)


def _components(features: Sequence[Tensor]) -> list[int]:
    return [feature.shape[2] for feature in features]


def _constants(channels: int, components: Sequence[int], tile: Tile, epsilon: float, dtype: torch.dtype) -> dict[str, object]:
    return {
        "COMPONENTS": tuple(components),
        "CHANNELS": channels,
        "NODES": tile.nodes,
        "CHANNEL_TILE": tile.channels,
        "EPSILON": epsilon,
        "SUM": sum_type(dtype),
    }


def cost(num_nodes: int, channels: int, degrees: Sequence[int], itemsize: int) -> tuple[Cost, Cost]:
    """The work of a launch, forward and backward, without the parameters, which are few.

    Args:
        num_nodes: N.
        channels: C of every degree.
        degrees: those of the features.
        itemsize: bytes of a value.
    """
    values = num_nodes * channels * sum(2 * degree + 1 for degree in degrees)
    return Cost(0, 4 * values, 2 * values * itemsize), Cost(0, 10 * values, 3 * values * itemsize)


def compile_cases() -> list[CompileCase]:
    """Both kernels at the hidden fibers of the workloads, by dtype of the features; parameters are float32, float64 with them."""
    cases = []
    launches = (("forward", _forward_kernel, _FORWARD_VALUES), ("backward", _backward_kernel, _BACKWARD_VALUES))
    for workload, channels, components in (("qm9", 32, (1, 3, 5, 7)), ("protein_full", 32, (1, 3)), ("protein_wide", 128, (1, 3))):
        for name, kernel, values in launches:
            tile = _choose_tile(channels, components, values)
            for value_type, dtype in DTYPES.items():
                constants = _constants(channels, components, tile, 1e-5, dtype)
                by_degree: tuple[ArgumentType, ...] = (f"*{value_type}",) * len(components)
                types: dict[str, ArgumentType] = dict.fromkeys(("features", "outputs", "gradients", "results"), by_degree)
                types |= {"num_nodes": "i32", "parameters": "i32"}
                types = signature(kernel, constants, types, f"*{ROUNDINGS[value_type].sum_name}")
                cases.append(CompileCase(f"{name} {workload} {value_type}", kernel, types, constants, tile.warps, num_stages=1))
    return cases
