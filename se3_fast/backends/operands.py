"""What operations take and hand to each other, whichever backend runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from se3_fast.autograd.operation import Tensors
from se3_fast.contraction import ContractionOrder, ConvolutionPlan
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.fiber import Features, Fiber
from se3_fast.graph import Graph

FrameForm = Literal["angles", "wigner"]
"""The forms of the edges' frames, see :class:`~se3_fast.geometry.EdgeGeometry`."""


class RadialLayer(NamedTuple):
    """One hidden layer: ``weight`` [K, e], ``bias`` [K]; ``scale`` and ``shift`` [K] of its layer norm, or None without one."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None


Profiles = Sequence[tuple[RadialLayer, RadialLayer]]
"""The parameters of the two hidden layers of each radial profile."""


def profile_parameters(profiles: Profiles) -> list[Tensor]:
    """The parameters of the profiles, one after the other."""
    return [tensor for layers in profiles for layer in layers for tensor in layer if tensor is not None]


class Remake(Protocol):
    """How h is made from the invariants and the parameters of the profiles."""

    def make(self, tensors: Tensors) -> list[Tensor]:
        """h of each group, [E, K]; recorded where gradients are."""


@dataclass(frozen=True)
class ScaledRemake:
    """As another, of h times a factor [groups, E, 1], which is the last of the tensors."""

    how: Remake

    def make(self, tensors: Tensors) -> list[Tensor]:
        """h of each group, [E, K]."""
        *of_hidden, scales = tensors
        assert scales is not None
        return [scaled(values, scale) for values, scale in zip(self.how.make(of_hidden), scales, strict=True)]


class Recipe(NamedTuple):
    """How to make h again, and of what: the invariants, the parameters of the profiles, and a factor if there is one."""

    how: Remake
    tensors: tuple[Tensor, ...]

    def scaled(self, scales: Tensor) -> Recipe:
        """The recipe of h times [groups, E, 1]."""
        return Recipe(ScaledRemake(self.how), (*self.tensors, scales))


def scaled(hidden: Tensor, scales: Tensor) -> Tensor:
    """h times a factor, in the dtype of h."""
    return (hidden * scales).to(hidden.dtype)


class Norm(NamedTuple):
    """How norms are normalised, and what is made of them.

    Attributes:
        scale: [C] weight; of a group normalisation [D * C], channels of all D degrees side by side, degrees ascending.
        shift: bias, of the same shape.
        epsilon: added to the variance.
        nonlinearity: applied to the normalised norms.
    """

    scale: Tensor
    shift: Tensor
    epsilon: float
    nonlinearity: Callable[[Tensor], Tensor]


class LayerParameters(NamedTuple):
    """The parameters of a layer.

    Attributes:
        tensors: in the order of the row.
        parts: P, how many parts their gradient comes in.
    """

    tensors: Sequence[Tensor]
    parts: int


class AlignedWeights(NamedTuple):
    """The aligned weights of a convolution, in a row for all its radial groups.

    Attributes:
        values: [aligned * C_in * K * C_out], as the contraction reads them; differentiable.
        transposed: the same values in the order [aligned, C_out, K, C_in], for the backward pass; None where there will be none.
    """

    values: Tensor
    transposed: Tensor | None


class PreparedRadial(NamedTuple):
    """The radial profiles of a convolution made ready together with those of other layers, for kernels that contract by edge.

    Attributes:
        hidden: h, [S, groups, E, K]: the same values S times over, which take no memory, so that the gradient may come in S parts.
        weights: the aligned weights.
    """

    hidden: Tensor
    weights: AlignedWeights


class Geometry(Protocol):
    """What convolutions read of the edges' directions: :class:`se3_fast.geometry.EdgeGeometry`."""

    rel_pos: Tensor
    num_edges: int
    max_degree: int
    is_given: bool
    factor: Tensor | None
    by_formula: Tensor | None

    @property
    def angles(self) -> Tensor:
        """[4, E]."""

    @property
    def zero_length_edges(self) -> Tensor:
        """[n] int64, the edges that have no direction."""

    @property
    def edges_by_formula(self) -> Tensor:
        """[n] int64, the edges in ``by_formula``."""

    def frames(self, form: FrameForm) -> Tensor:
        """The edges' frames in one of their forms."""

    def angles_by(self, edges: Tensor, dtype: torch.dtype) -> Tensor:
        """The angles with the edges in another order, [n] int64."""

    def wigner_as(self, dtype: torch.dtype) -> Tensor:
        """[E, sum of (2d+1)^2] Wigner D blocks."""

    def basis(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """A published basis, times the factor."""

    def without_factor(self) -> Geometry:
        """The same directions alone."""

    def given_bases_of(self, edge_numbers: Tensor) -> Geometry:
        """The tensors given, of some edges."""


class Convolution(NamedTuple):
    """The arguments of a TFN convolution; backends get them in the compute dtype but for the weights.

    Attributes:
        plan: what is coupled.
        graph: N nodes, E edges.
        geometry: directions of the edges.
        node_features: ``{d: [N, C_d, 2d+1]}`` for the degrees of ``plan.node_channels``.
        edge_features: ``{d: [E, C_d, 2d+1]}`` for the degrees of ``plan.edge_channels`` (others are ignored).
        hidden: h of each group, [E, K], or of all in one tensor, [groups, E, K].
        weights: last radial weight of each group, [C_out * C_in * F, K], in the published row order.
        pool: whether messages are summed over the incoming edges of each node.
        order: of contraction: ``edge``, ``source``, or what is cheaper on the backend at hand.
        make_hidden: how to make ``hidden`` again; a backend that keeps its operands then keeps none of it.
        prepared: h and the weights made ready together with those of other layers; ``hidden`` is then a constant.
    """

    plan: ConvolutionPlan
    graph: Graph
    geometry: Geometry
    node_features: Features
    edge_features: Features
    hidden: Sequence[Tensor] | Tensor
    weights: Sequence[Tensor]
    pool: bool
    order: ContractionOrder = "auto"
    make_hidden: Recipe | None = None
    prepared: PreparedRadial | None = None


class AttentionBlock(NamedTuple):
    """The arguments of an attention block whose parts are one operation; all tensors have one dtype, float32 or float64.

    Attributes:
        plan: of the convolution that makes values and keys.
        graph: N nodes, E edges.
        geometry: directions of the edges.
        node_features: ``{d: [N, C_d, 2d+1]}`` for the degrees of ``plan.node_channels``.
        edge_features: ``{d: [E, C_d, 2d+1]}``: the invariants, the edge length last, and those of ``plan.edge_channels``.
        profiles: the hidden layers of each radial profile.
        weights: last radial weight of each group, [C_out * C_in * F, K].
        query_weights: ``{d: [C_key, C_d]}`` for the degrees that have keys.
        output_weights: ``{d: [C_out, C_value + C_d]}``; the values that were attended to come first, then the features of the node.
        value_fiber: structure of the values.
        num_heads: H; divides all channel counts of values and keys.
        order: of contraction, as for :class:`Convolution`.
    """

    plan: ConvolutionPlan
    graph: Graph
    geometry: Geometry
    node_features: Features
    edge_features: Features
    profiles: Profiles
    weights: Sequence[Tensor]
    query_weights: Features
    output_weights: Features
    value_fiber: Fiber
    num_heads: int
    order: ContractionOrder

    def tensors(self) -> list[Tensor]:
        """All that is not made from the edges."""
        nodes = [self.node_features[str(degree)] for degree, _ in self.plan.node_channels]
        edges = [self.edge_features[degree] for degree in ("0", *(str(degree) for degree, _ in self.plan.edge_channels))]
        maps = [*self.weights, *self.query_weights.values(), *self.output_weights.values()]
        return [*nodes, *edges, *profile_parameters(self.profiles), *maps]


@dataclass(frozen=True)
class AlignedMessages:
    """The messages y~ of a convolution in the frames of their edges; the messages themselves are D y~ (DESIGN 1.1).

    Attributes:
        values: [rows, E]; a row is a (degree, component, channel), degrees ascending. Any strides: the transpose of a contiguous
            [E, rows] is what the attention reads as it is.
        channels: (degree, channels), degrees ascending.
        angles: [4, E], see ``kernels/edge_frames.py``; none of an edge of length zero.
        graph: N nodes, and the E edges in the order that ``values`` and ``angles`` have them.
    """

    values: Tensor
    channels: tuple[tuple[int, int], ...]
    angles: Tensor
    graph: Graph


class InteractionLayer(NamedTuple):
    """A layer of a force field (:class:`se3_fast.layers.interaction.Interaction`), C channels.

    Attributes:
        plan: of its convolution.
        average_neighbours: that sums of messages are divided by the square root of.
        products: for each degree of the features that leave, the pairs of degrees whose products have a part of it.
        before: for each degree of the features that come [C, C].
        table: [K, paths * C] radial weights at the knots.
        after: for each degree of the messages [C, C].
        out: for each degree of the features that leave [parts * C, C]: of what arrived, of its products, of the atom's own features
            for each element.
        gates: for each degree but 0 of the features that leave [parts of degree 0 * C, C].
    """

    plan: DepthwisePlan
    average_neighbours: float
    products: tuple[tuple[tuple[int, int], ...], ...]
    before: Sequence[Tensor]
    table: Tensor
    after: Sequence[Tensor]
    out: Sequence[Tensor]
    gates: Sequence[Tensor]


class ForceNetwork(NamedTuple):
    """What makes the energy of an atom in :class:`se3_fast.forces.ForceField`, less the reference and in units of the scale.

    Attributes:
        max_harmonic: largest degree of the edges' harmonics.
        cutoff: in the unit of the positions; an edge of that length has the place K + 1 among the knots, one of none -1.
        atom_embedding: [elements, C].
        layers: in the order they run in.
        head: weights and biases [H, C], [H], [1, H], [1] of a perceptron with SiLU.
    """

    max_harmonic: int
    cutoff: float
    atom_embedding: Tensor
    layers: Sequence[InteractionLayer]
    head: tuple[Tensor, Tensor, Tensor, Tensor]

    def tensors(self) -> list[Tensor]:
        """All of them, layer by layer."""
        found = [self.atom_embedding]
        for layer in self.layers:
            found += [*layer.before, layer.table, *layer.after, *layer.out, *layer.gates]
        return [*found, *self.head]

    def with_tensors(self, tensors: Sequence[Tensor]) -> ForceNetwork:
        """The same network of other tensors, which stand as those of :meth:`tensors`."""
        given = iter(tensors)

        def take(like: Sequence[Tensor]) -> list[Tensor]:
            return [next(given) for _ in like]

        atom_embedding = next(given)
        layers = [
            layer._replace(
                before=take(layer.before),
                table=next(given),
                after=take(layer.after),
                out=take(layer.out),
                gates=take(layer.gates),
            )
            for layer in self.layers
        ]
        head = (next(given), next(given), next(given), next(given))
        return self._replace(atom_embedding=atom_embedding, layers=layers, head=head)
