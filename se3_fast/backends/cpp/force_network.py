"""The network of a force field and its gradient by one compiled CPU operation (``csrc/force_network.cpp``), and the gradients of
its weights by another one (``csrc/force_network_along.cpp``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from se3_fast.autograd.operation import Operation, PlainFormula, Tensors, Wanted
from se3_fast.backends.cpp.depthwise_conv import MOST_KNOTS, couplings
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
    lanes = _CACHE_LINE // network.atom_embedding.element_size()
    is_small = elements <= _MOST_ELEMENTS and len(network.layers[0].table) <= MOST_KNOTS
    return is_small and not any(size % lanes for size in (channels, network.head[0].shape[0]))


def force_network(network: ForceNetwork, graph: Graph, rel_pos: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`se3_fast.ops.force_network.force_network`."""
    energies, gradient = torch.ops.se3_fast_cpp.force_network(*arguments(network, graph, rel_pos, kinds), False)
    return energies, gradient


def trained_force_network(
    network: ForceNetwork, graph: Graph, rel_pos: Tensor, kinds: Tensor, by_parts: Callable[[Sequence[Tensor]], list[Tensor]]
) -> tuple[Tensor, Tensor]:
    """See :func:`se3_fast.ops.force_network.trained_force_network`."""
    operation = CppForceNetwork(
        graph, (rel_pos.contiguous(), kinds), (*_description_of(network), network.cutoff), len(network.layers), by_parts
    )
    energies, gradient = operation.apply(*network.tensors())
    return energies, gradient


def arguments(network: ForceNetwork, graph: Graph, rel_pos: Tensor, kinds: Tensor) -> tuple[Any, ...]:
    """As the compiled operation takes them, up to whether it keeps what the gradients of the weights take."""
    tensors = [tensor.contiguous() for tensor in network.tensors()]
    return rel_pos.contiguous(), kinds, tensors, *_edges(graph), *_description_of(network), network.cutoff


def _edges(graph: Graph) -> tuple[Tensor, ...]:
    return graph.src, graph.dst, *graph.incoming()


_KEPT_OF_EDGES, _KEPT_OF_LAYER = 3, 9
"""How many tensors ``csrc/force_network.cpp`` keeps beside the layers, and of each."""


@dataclass(frozen=True, eq=False)
class CppForceNetwork(Operation):
    """Energies of atoms [N] and the gradient of their sum by the relative positions [E, 3], from all weights in a row.

    Attributes:
        graph: its edges.
        inputs: relative positions [E, 3] and kinds of the atoms [N], which are not differentiated by.
        description: of the network, for the compiled operations.
        num_layers: of it.
        by_parts: the formula, from the weights.
    """

    graph: Graph
    inputs: tuple[Tensor, Tensor]
    description: tuple[list[int], list[float], float]
    num_layers: int
    by_parts: Callable[[Sequence[Tensor]], list[Tensor]]

    @property
    def num_kept(self) -> int:  # type: ignore[override]
        """Values of the passes forward and back."""
        return _KEPT_OF_EDGES + self.num_layers * _KEPT_OF_LAYER

    @property
    def constants(self) -> Sequence[Tensor]:
        """Edges and inputs."""
        return self.graph.src, self.graph.dst, *self.inputs

    def _arguments(self, weights: Any) -> tuple[Any, ...]:
        return *self.inputs, [tensor.contiguous() for tensor in weights]

    def evaluate(self, operands: Any) -> Sequence[Tensor]:
        """The results, and what is kept."""
        found: list[Tensor] = torch.ops.se3_fast_cpp.force_network(
            *self._arguments(operands), *_edges(self.graph), *self.description, True
        )
        return found

    def gradients(self, operands: Any, kept: Any, gradients: Any, wanted: Wanted) -> Tensors:
        """Of all weights."""
        of_energies, of_gradient = (gradient.contiguous() for gradient in gradients)
        found: list[Tensor] = torch.ops.se3_fast_cpp.force_network_along(
            of_energies, of_gradient, *self._arguments(operands), list(kept), *_edges(self.graph), *self.description
        )
        return found

    @property
    def formula(self) -> PlainFormula:
        """By parts."""
        return PlainFormula(self.by_parts)


def _description_of(network: ForceNetwork) -> tuple[list[int], list[float]]:
    return _description(
        (*network.atom_embedding.shape, len(network.layers[0].table), network.max_harmonic, network.head[0].shape[0]),
        tuple((layer.plan, layer.average_neighbours, layer.products) for layer in network.layers),
    )


@cache
def _description(sizes: tuple[int, ...], layers: tuple[Layer, ...]) -> tuple[list[int], list[float]]:
    """The network as ``csrc/force_network.cpp`` reads it, each list with its length first.

    Args:
        sizes: elements, channels, knots, largest degree of the harmonics, units of the energy.
        layers: in the order they run in.
    """
    numbers, coefficients = _harmonics(sizes[3])
    numbers = [*sizes, len(coefficients), *numbers, len(layers)]
    for plan, average_neighbours, by_degree in layers:
        of_plan, coefficients_of_plan = couplings(plan)
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
