"""The formula by which convolutions are differentiated more than once (:mod:`se3_fast.autograd.operation`).

It is the published one, with everything materialised, over chunks of edges: what belongs to edges is cut, what belongs to nodes is
gathered, and results are summed up again. A derivative of it, of any order, goes over the same chunks and keeps nothing of one
when the next begins, so that neither bases nor radial weights of all edges ever exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import at_least_float32
from se3_fast.autograd.operation import Evaluate, Tensors, Vjp, Wanted
from se3_fast.backends.dense import tfn_conv as formula
from se3_fast.backends.dense.basis import basis_of_positions
from se3_fast.backends.dense.edge_frames import wigner_of_angles
from se3_fast.contraction import ConvolutionPlan
from se3_fast.fiber import Features
from se3_fast.graph import Graph

CHUNK_BYTES = 64 << 20
"""Radial weights of a chunk; about ten times as much is alive while a chunk is differentiated twice."""


class Role(NamedTuple):
    """What the entries of a tensor along an axis belong to.

    Attributes:
        owner: ``src`` or ``dst``, the nodes at the ends of the edges; ``edge``; ``place``, edges in the order of a backend's rows;
            None: no entry belongs to anything.
        axis: the axis.
    """

    owner: str | None
    axis: int = 0


SHARED = Role(None)


class Edges(NamedTuple):
    """The edges that a formula goes over.

    Attributes:
        src: [E] int64.
        dst: [E] int64.
        numbers: [E] int64, the numbers that they have in tensors of role ``edge``; None: they stand as they do there.
        num_nodes: N.
    """

    src: Tensor
    dst: Tensor
    numbers: Tensor | None
    num_nodes: int

    @staticmethod
    def of(graph: Graph, numbers: Tensor | None = None) -> Edges:
        """Those of a graph."""
        return Edges(graph.src, graph.dst, numbers, graph.num_nodes())


@dataclass(frozen=True)
class EdgeFormula:
    """A sum over edges, evaluated chunk by chunk.

    Attributes:
        function: results of some edges, in plain PyTorch.
        edges: all of them.
        chunk: how many go together.
        operands: the roles of its operands.
        results: the roles of its results.
    """

    function: Evaluate
    edges: Edges
    chunk: int
    operands: tuple[Role, ...]
    results: tuple[Role, ...]

    def __call__(self, operands: Tensors) -> list[Tensor]:
        """The results."""
        sums: list[Tensor] = []
        dtypes: list[torch.dtype] = []
        num_edges = len(self.edges.src)
        for start in range(0, max(num_edges, 1), self.chunk):
            indices = self._indices(start, min(start + self.chunk, num_edges))
            parts = [
                operand if operand is None or role.owner is None else operand.index_select(role.axis, indices[role.owner])
                for operand, role in zip(operands, self.operands, strict=True)
            ]
            found = self.function(parts)
            if not sums:
                dtypes = [part.dtype for part in found]
                sums = [self._zeros(part, role) for part, role in zip(found, self.results, strict=True)]
            for total, part, role in zip(sums, found, self.results, strict=True):
                wide = part.detach().to(total.dtype)
                if role.owner is None:
                    total += wide
                else:
                    total.index_add_(role.axis, indices[role.owner], wide)
        return [total.to(dtype) for total, dtype in zip(sums, dtypes, strict=True)]

    def vjp(self, wanted: Wanted) -> EdgeFormula:
        """See :class:`~se3_fast.autograd.operation.Formula`: what was gathered is summed up, and what was summed up is gathered."""
        chosen = tuple(role for role, is_wanted in zip(self.operands, wanted, strict=True) if is_wanted)
        return EdgeFormula(Vjp(self.function, wanted), self.edges, self.chunk, self.operands + self.results, chosen)

    def _indices(self, start: int, stop: int) -> dict[str, Tensor]:
        place = torch.arange(start, stop, device=self.edges.src.device)
        numbers = place if self.edges.numbers is None else self.edges.numbers[start:stop]
        return {"src": self.edges.src[start:stop], "dst": self.edges.dst[start:stop], "edge": numbers, "place": place}

    def _zeros(self, part: Tensor, role: Role) -> Tensor:
        """Memory to sum up a result in, in at least float32."""
        shape = list(part.shape)
        if role.owner is not None:
            shape[role.axis] = self.edges.num_nodes if role.owner in ("src", "dst") else len(self.edges.src)
        return torch.zeros(shape, dtype=at_least_float32(part).dtype, device=part.device)


class ConvolutionOperands(NamedTuple):
    """The operands of a convolution for some edges.

    Attributes:
        rel_pos: [n, 3].
        features: node features by degree, gathered at the sources, then edge features by degree, each [n, C, 2d+1].
        hidden: h of each radial group, [n, K].
        weights: last radial weight of each group, [C_out * C_in * F, K], in the published row order.
    """

    rel_pos: Tensor
    features: Sequence[Tensor]
    hidden: Sequence[Tensor]
    weights: Sequence[Tensor]


def messages_by_formula(plan: ConvolutionPlan, max_degree: int, operands: ConvolutionOperands) -> list[Tensor]:
    """The messages of some edges by ascending degree, [n, C, 2d+1] in at least float32; zero for an edge without direction.

    Args:
        plan: what is coupled.
        max_degree: largest degree that the bases are made for.
        operands: of any floating dtypes.
    """
    remaining = iter(operands.features)
    features: Features = {str(degree): at_least_float32(next(remaining)) for degree, _ in plan.node_channels}
    for degree, _ in plan.edge_channels:
        features[str(degree)] = torch.cat([features[str(degree)], at_least_float32(next(remaining))], 1)
    hidden = [at_least_float32(values) for values in operands.hidden]
    weights = [weight.to(hidden[0].dtype) for weight in operands.weights]
    basis = basis_of_positions(operands.rel_pos, max_degree)
    messages = formula.convolution(plan, basis, features, hidden, weights)
    has_direction = (operands.rel_pos != 0).any(-1)[:, None, None]
    return [torch.where(has_direction, messages[str(degree)], 0.0) for degree, _ in plan.channels_out]


def edges_per_chunk(plan: ConvolutionPlan, dtype: torch.dtype) -> int:
    """How many edges a formula takes together; ``dtype`` is that of the operands."""
    per_edge = max(group.num_paths * group.channels_in * group.channels_out for group in plan.groups)
    return max(CHUNK_BYTES // (per_edge * max(dtype.itemsize, 4)), 16)


class Setting(NamedTuple):
    """What a convolution is, apart from its operands.

    Attributes:
        plan: what is coupled.
        graph: the edges.
        max_degree: largest degree of the geometry.
        pool: whether messages are summed over incoming edges.
        dtype: that of the operands.
        keeps_frames: whether messages stay in the edges' frames, as one tensor [rows, E].
    """

    plan: ConvolutionPlan
    graph: Graph
    max_degree: int
    pool: bool
    dtype: torch.dtype
    keeps_frames: bool = False

    @property
    def feature_roles(self) -> tuple[Role, ...]:
        """Of node features and edge features."""
        return (Role("src"),) * len(self.plan.node_channels) + (Role("edge"),) * len(self.plan.edge_channels)

    @property
    def message_roles(self) -> tuple[Role, ...]:
        """Of the messages by degree, or of y~."""
        if self.keeps_frames:
            return (Role("place", 1),)
        return (Role("dst" if self.pool else "edge"),) * len(self.plan.channels_out)

    def with_zeros(self, gradients: Tensors, like: Tensor) -> list[Tensor]:
        """The gradients of the messages by degree, zeros for those that are missing; in the dtype and on the device of ``like``."""
        count = self.graph.num_nodes() if self.pool else self.graph.num_edges()
        return [
            like.new_zeros(count, channels, 2 * degree + 1) if gradient is None else gradient
            for (degree, channels), gradient in zip(self.plan.channels_out, gradients, strict=True)
        ]

    def reached_groups(self, gradients: Tensors) -> list[bool]:
        """Of each radial group whether messages of one of its degrees have a gradient."""
        reached = {degree for (degree, _), one in zip(self.plan.channels_out, gradients, strict=True) if one is not None}
        return [not reached.isdisjoint(group.degrees_out) for group in self.plan.groups]

    def formula(self, evaluate: Callable[[Tensors], ConvolutionOperands], roles: Sequence[Role], edges: Edges) -> EdgeFormula:
        """The formula of the messages.

        Args:
            evaluate: from the operands of some edges, of which the first are the frames, to what the formula takes.
            roles: of the operands.
            edges: all edges.
        """

        def messages(operands: Tensors) -> list[Tensor]:
            found = messages_by_formula(self.plan, self.max_degree, evaluate(operands))
            return [_in_frames(self.plan, found, operands[0])] if self.keeps_frames else found

        chunk = edges_per_chunk(self.plan, self.dtype)
        return EdgeFormula(messages, edges, chunk, tuple(roles), self.message_roles)


def _in_frames(plan: ConvolutionPlan, messages: Sequence[Tensor], angles: Tensor | None) -> Tensor:
    """Rows of y~, [rows, n], from messages and the angles of their edges, [4, n]."""
    assert angles is not None
    blocks = wigner_of_angles(angles, plan.max_degree)
    rows = [
        torch.bmm(message, blocks[degree].to(message.dtype)).permute(2, 1, 0).flatten(0, 1)
        for (degree, _), message in zip(plan.channels_out, messages, strict=True)
    ]
    return torch.cat(rows)
