"""The network of a force field and its gradient by one compiled CPU operation (``csrc/force_network.cpp``)."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from se3_fast.backends.cpp.depthwise_conv import table
from se3_fast.backends.operands import ForceNetwork
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.contraction.products import product_terms
from se3_fast.graph import Graph
from se3_fast.so3 import next_harmonic

_CACHE_LINE = 64
_MOST_ELEMENTS = 256

Layer = tuple[DepthwisePlan, float, tuple[tuple[tuple[int, int], ...], ...]]
"""A layer's plan, average number of neighbours, and its products by degree."""


def serves(network: ForceNetwork) -> bool:
    """Where rows of channels and of hidden units fill cache lines."""
    elements, channels = network.atom_embedding.shape
    widths = [layer.profile.second.shape[0] for layer in network.layers]
    lanes = _CACHE_LINE // network.atom_embedding.element_size()
    alike = len(set(widths)) == 1 and elements <= _MOST_ELEMENTS
    return alike and not any(size % lanes for size in (channels, widths[0], network.head[0].shape[0]))


def force_network(network: ForceNetwork, graph: Graph, rel_pos: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`se3_fast.ops.force_network.force_network`."""
    energies, gradient = torch.ops.se3_fast_cpp.force_network(*arguments(network, graph, rel_pos, kinds))
    return energies, gradient


def arguments(network: ForceNetwork, graph: Graph, rel_pos: Tensor, kinds: Tensor) -> tuple[Any, ...]:
    """As the compiled operation takes them."""
    return (
        rel_pos.contiguous(),
        kinds,
        [tensor.contiguous() for tensor in network.tensors()],
        *(graph.src, graph.dst, *graph.incoming()),
        *_description(
            (len(network.atom_embedding), network.atom_embedding.shape[1], len(network.frequencies)),
            (network.layers[0].profile.second.shape[0], network.max_harmonic, network.power, network.head[0].shape[0]),
            tuple((layer.plan, layer.average_neighbours, layer.products) for layer in network.layers),
        ),
        network.cutoff,
    )


@cache
def _description(sizes: tuple[int, ...], more_sizes: tuple[int, ...], layers: tuple[Layer, ...]) -> tuple[list[int], list[float]]:
    """The network as ``csrc/force_network.cpp`` reads it, each list with its length first.

    Args:
        sizes: elements, channels, radial functions.
        more_sizes: units of the radial profiles, largest degree of the harmonics, power, units of the energy.
        layers: in the order they run in.
    """
    numbers, coefficients = _harmonics(more_sizes[1])
    numbers = [*sizes, *more_sizes, len(coefficients), *numbers, len(layers)]
    for plan, average_neighbours, by_degree in layers:
        of_plan, coefficients_of_plan = table(plan)
        numbers += [plan.degree_out, len(by_degree) - 1, len(of_plan), *of_plan, len(coefficients_of_plan)]
        coefficients += [1 / math.sqrt(average_neighbours), *coefficients_of_plan]
        numbers.append(sum(map(len, by_degree)))
        for degree, products in enumerate(by_degree):
            for first, second in products:
                terms = product_terms(degree, first, second)
                numbers += [degree, first, second, len(terms)]
                for term in terms:
                    numbers += [term.first, term.second, term.out]
                    coefficients.append(term.coefficient)
    return numbers, coefficients


def _harmonics(max_harmonic: int) -> tuple[list[int], list[float]]:
    """How each harmonic from degree 2 on is made of those of the degree before and the direction: terms, and their coefficients."""
    numbers: list[int] = []
    coefficients: list[float] = []
    for degree in range(2, max_harmonic + 1):
        matrix = next_harmonic(degree)  # [(2d-1) * 3, 2d+1]
        for pair, out in matrix.abs().gt(1e-12).nonzero().tolist():
            numbers += [(degree - 1) ** 2 + pair // 3, pair % 3, degree**2 + out]
            coefficients.append(float(matrix[pair, out]))
    return numbers, coefficients
