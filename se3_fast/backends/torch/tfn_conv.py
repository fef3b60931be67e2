"""TFN convolution in edge-aligned frames, chunked (DESIGN 1.1, 1.3): neither R of all edges nor a basis ever exists.

With x~ = D^T x, for every pair of degrees and order 0 <= m <= min(d_in, d_out)

    y~[+m] += R_even[m] x~[+m] - R_odd[m] x~[-m]
    y~[-m] += R_even[m] x~[-m] + R_odd[m] x~[+m]        (m = 0: R_even only),      out = D y~

with R = W h. Two orders of contraction compute the same function from the same parameters:

by edge      A[e; i, k] = x~[e, i] h[e, k], then y~ = A W: one long matrix product per order m, so that R is not formed either.
             4.7 MFLOP per edge at 4 degrees and 32 channels.
by source    T[j; k, n] = sum_i x[j, i] W[i, k, n] once per source node, U[e; n] = sum_k h[e, k] T[src(e); k, n] as one matrix
             product per node over its edges; then U is rotated and combined. 14 MFLOP per node and 0.5 MFLOP per edge there.

The backward passes recompute every intermediate chunk by chunk; only node features, h and the weights are kept. The gradient with
respect to positions is the torque identity of DESIGN 1.2, free of poles. Sums over chunks are in at least float32 and in a fixed
order. Features are held component-major here, [E, 2d+1, C], so that the channels of a component are contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.autograd.compute_dtype import accumulation_dtype
from se3_fast.backends.operands import Convolution, FrameForm
from se3_fast.backends.torch.operand_convolution import OperandConvolution, orders_here
from se3_fast.backends.torch.order_rates import RATES
from se3_fast.backends.torch.second_derivatives import Setting
from se3_fast.contraction import ConvolutionPlan, Order, RadialGroup, columns_of_input, orders, torque_to_gradient, weight_blocks
from se3_fast.graph import Graph
from se3_fast.so3 import generators

Components = dict[int, Tensor]

CHUNK_BYTES = {"cpu": 12 << 20, "cuda": 512 << 20}
"""Largest intermediate of a chunk: on a CPU what stays in cache, on a GPU what fills it."""

FRAMES: FrameForm = "wigner"
KEEPS_FRAMES = False

SMALLEST_CHUNK = 32
"""Edges of a chunk at least, so that its matrix products are worth a call."""


def tfn_conv(call: Convolution) -> Sequence[Tensor]:
    """See :func:`se3_fast.ops.tfn_conv.tfn_conv`: messages by ascending degree."""
    make, make_backward = (
        partial(Problem, call.plan, call.graph, is_by_source=by_source, is_pooled=call.pool)
        for by_source in orders_here(call, RATES)
    )
    tensors = (*call.node_features.values(), *call.edge_features.values(), *call.hidden, *call.weights)
    dtype = call.hidden[0].dtype
    setting = Setting(call.plan, call.graph, call.geometry.max_degree, call.pool, dtype)
    return OperandConvolution(setting, make, make_backward, None).apply(
        call.geometry.wigner_as(dtype), call.geometry.rel_pos, *tensors
    )


class Operands(NamedTuple):
    """The tensors of a convolution that may need gradients.

    Attributes:
        nodes: ``{d: [N, C, 2d+1]}`` node features.
        edges: ``{d: [E, C, 2d+1]}`` edge features of degree > 0.
        hidden: h of each radial group, [E, K].
        weights: last radial weight of each group, [C_out * C_in * F, K], in the published layout.
        blocks: per radial group the blocks that :func:`weight_blocks` makes of it.
    """

    nodes: Components
    edges: Components
    hidden: list[Tensor]
    weights: list[Tensor]
    blocks: list[list[Tensor]]


@dataclass(frozen=True)
class Problem:
    """What of a convolution carries no gradient.

    Attributes:
        plan: what is coupled.
        graph: its edges.
        wigner: [E, sum of (2d+1)^2] Wigner blocks in the compute dtype; zero for edges without direction.
        is_by_source: the contraction order.
        is_pooled: whether the messages of each node's incoming edges are summed.
    """

    plan: ConvolutionPlan
    graph: Graph
    wigner: Tensor
    is_by_source: bool
    is_pooled: bool

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Messages by ascending output degree: [E, C, 2d+1], or [N, C, 2d+1] summed over incoming edges.

        Args:
            tensors: node features and edge features by degree, h [E, K] and last radial weights [C_out * C_in * F, K] by group.
        """
        return _forward(self, self.operands(tensors))

    def backward(
        self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], rel_pos: Tensor | None, with_weights: bool
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """Gradients of all tensors and of the directions.

        Args:
            tensors: as given to :meth:`forward`.
            gradients: of the messages by ascending output degree.
            rel_pos: [E, 3] if the gradient with respect to it is wanted.
            with_weights: whether the gradients of the weights are wanted; they are None otherwise.

        Returns:
            The gradients of ``tensors``, and that of ``rel_pos`` through the directions or None.
        """
        return _backward(self, self.operands(tensors), gradients, rel_pos, with_weights)

    def operands(self, tensors: Sequence[Tensor]) -> Operands:
        """Operands from their tensors in a row: nodes, edges, hidden, weights."""
        remaining = iter(tensors)
        nodes = {degree: next(remaining) for degree, _ in self.plan.node_channels}
        edges = {degree: next(remaining) for degree, _ in self.plan.edge_channels}
        hidden = [next(remaining) for _ in self.plan.groups]
        weights = [next(remaining) for _ in self.plan.groups]
        blocks = [
            [block.to(self.wigner.dtype) for block in weight_blocks(group, weight, self.is_by_source)]
            for group, weight in zip(self.plan.groups, weights, strict=True)
        ]
        return Operands(nodes, edges, hidden, weights, blocks)

    def blocks(self, degree: int, edges: Tensor | slice) -> Tensor:
        """Wigner blocks of one degree for some edges, [n, 2d+1, 2d+1]."""
        size = 2 * degree + 1
        start = degree * (2 * degree - 1) * size // 3
        return self.wigner[edges, start : start + size * size].unflatten(1, (size, size))


def _weight_blocks_backward(group: RadialGroup, weight: Tensor, is_by_source: bool, block_gradients: list[Tensor]) -> Tensor:
    """Gradient of a group's last radial weight from those of its blocks."""
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_()
        blocks = weight_blocks(group, leaf, is_by_source)
        gradients = [gradient.to(leaf.dtype) for gradient in block_gradients]
        return torch.autograd.grad(blocks, leaf, gradients)[0]


def _forward(problem: Problem, operands: Operands) -> list[Tensor]:
    example = operands.hidden[0]
    rows = problem.graph.num_nodes() if problem.is_pooled else problem.graph.num_edges()
    sums = accumulation_dtype(example.dtype) if problem.is_pooled else example.dtype
    results = {
        degree: torch.zeros(rows, 2 * degree + 1, channels, dtype=sums, device=example.device)
        for degree, channels in problem.plan.channels_out
    }
    for chunk in _chunks(problem, operands):
        for degree, message in _chunk_messages(problem, operands, chunk).items():
            turned = _rotate(problem.blocks(degree, chunk.edges), message)
            if problem.is_pooled:
                results[degree].index_add_(0, problem.graph.dst[chunk.edges], turned.to(sums))
            else:
                results[degree][chunk.edges] = turned
    return [result.to(example.dtype).transpose(1, 2).contiguous() for result in results.values()]


def _backward(
    problem: Problem, operands: Operands, of_messages: Sequence[Tensor], rel_pos: Tensor | None, with_weights: bool
) -> tuple[list[Tensor | None], Tensor | None]:
    gradients = Operands(
        {degree: _zeros_to_sum(tensor) for degree, tensor in operands.nodes.items()},
        {degree: _zeros_to_sum(tensor) for degree, tensor in operands.edges.items()},
        [_zeros_to_sum(tensor) for tensor in operands.hidden],
        [],
        [[_zeros_to_sum(block) for block in blocks] for blocks in operands.blocks],
    )
    rel_pos_gradient = torch.zeros_like(rel_pos) if rel_pos is not None else None
    for chunk in _chunks(problem, operands):
        incoming = {}
        for (degree, _), grad in zip(problem.plan.channels_out, of_messages, strict=True):
            rows = problem.graph.dst[chunk.edges] if problem.is_pooled else chunk.edges
            incoming[degree] = _align(problem.blocks(degree, chunk.edges), grad[rows])
        torque = _chunk_backward(problem, operands, chunk, incoming, gradients, rel_pos is not None)
        if rel_pos is not None and rel_pos_gradient is not None and torque is not None:
            rel_pos_gradient[chunk.edges] = torque_to_gradient(torque, rel_pos[chunk.edges])
    dtype = problem.wigner.dtype
    summed = [*gradients.nodes.values(), *gradients.edges.values(), *gradients.hidden]
    weight_gradients = [
        _weight_blocks_backward(group, weight, problem.is_by_source, block_gradients) if with_weights else None
        for group, weight, block_gradients in zip(problem.plan.groups, operands.weights, gradients.blocks, strict=True)
    ]
    return [*(gradient.to(dtype) for gradient in summed), *weight_gradients], rel_pos_gradient


class Chunk(NamedTuple):
    """Edges treated together.

    Attributes:
        edges: the edges; by edge a slice, by source their numbers [n].
        sources: by source, the source nodes [J]; else None.
        slots: by source, for each edge its place in the [J, Q] table of sources and their edges, flattened.
        width: by source, Q.
    """

    edges: Tensor | slice
    sources: Tensor | None = None
    slots: Tensor | None = None
    width: int = 0


def _chunks(problem: Problem, operands: Operands) -> Iterator[Chunk]:
    budget = CHUNK_BYTES.get(problem.wigner.device.type, CHUNK_BYTES["cpu"])
    if problem.is_by_source:
        return _source_chunks(problem, operands, budget)
    return _edge_chunks(problem, operands, budget)


def _edge_chunks(problem: Problem, operands: Operands, budget: int) -> Iterator[Chunk]:
    row = max(block.shape[0] for group in operands.blocks for block in group)
    size = max(SMALLEST_CHUNK, budget // (2 * row * problem.wigner.element_size()))
    num_edges = problem.graph.num_edges()
    for start in range(0, num_edges, size):
        yield Chunk(slice(start, min(start + size, num_edges)))


def _source_chunks(problem: Problem, operands: Operands, budget: int) -> Iterator[Chunk]:
    """Sources by descending number of outgoing edges, so that the table of a chunk has little padding."""
    order, offsets = problem.graph.outgoing()
    sources, out_degrees = problem.graph.sources_by_out_degree()
    per_source = per_edge = 1
    for group, blocks in zip(problem.plan.groups, operands.blocks, strict=True):
        for degree, block in zip(group.degrees_in, blocks, strict=True):
            width = operands.hidden[0].shape[1]
            per_source = max(per_source, (2 * degree + 1) * block.shape[1])
            per_edge = max(per_edge, (2 * degree + 1) * block.shape[1] // max(width, 1))
    start = 0
    while start < len(out_degrees):
        width = out_degrees[start]
        bytes_per_source = (per_source + width * per_edge) * problem.wigner.element_size()
        stop = min(len(out_degrees), start + max(1, budget // bytes_per_source))
        chosen = sources[start:stop]
        places = torch.arange(width, device=chosen.device)
        is_edge = places < (offsets[chosen + 1] - offsets[chosen])[:, None]  # [J, Q]
        edges = order[(offsets[chosen][:, None] + places)[is_edge]]
        yield Chunk(edges, chosen, is_edge.flatten().nonzero().squeeze(1), width)
        start = stop


def _chunk_messages(problem: Problem, operands: Operands, chunk: Chunk) -> Components:
    """Aligned messages y~ of a chunk, ``{d: [n, 2d+1, C]}``."""
    example = operands.hidden[0]
    count = len(example[chunk.edges])
    messages = {degree: example.new_zeros(count, 2 * degree + 1, channels) for degree, channels in problem.plan.channels_out}
    if problem.is_by_source:
        _add_messages_by_source(problem, operands, chunk, messages)
    else:
        _add_messages_by_edge(problem, operands, chunk, messages)
    return messages


def _chunk_backward(
    problem: Problem, operands: Operands, chunk: Chunk, incoming: Components, gradients: Operands, with_torque: bool
) -> Tensor | None:
    """Add a chunk's gradients to ``gradients``; return the torque on its edges, [n, 3], where it is wanted."""
    run = _backward_by_source if problem.is_by_source else _backward_by_edge
    with_torque = with_torque and problem.plan.max_degree > 0
    feature_torque = run(problem, operands, chunk, incoming, gradients, with_torque)
    if feature_torque is None:
        return None
    messages = _chunk_messages(problem, operands, chunk)
    return _turn(problem.blocks(1, chunk.edges), _generator_product(incoming, messages)) - feature_torque


# By edge ------------------------------------------------------------------------------------------------------------


def _add_messages_by_edge(problem: Problem, operands: Operands, chunk: Chunk, messages: Components) -> None:
    features = _aligned_features(problem, operands, chunk)
    for group, hidden, blocks in zip(problem.plan.groups, operands.hidden, operands.blocks, strict=True):
        for order, block in zip(orders(group), blocks, strict=True):
            operand = _order_operand(features, order)  # [n, sign, parity * I]
            products = _outer(operand, hidden[chunk.edges]) @ block
            _scatter_order(messages, order, order.degrees_out, products.unflatten(0, (-1, operand.shape[1])))


def _backward_by_edge(
    problem: Problem, operands: Operands, chunk: Chunk, incoming: Components, gradients: Operands, with_torque: bool
) -> Tensor | None:
    features = _aligned_features(problem, operands, chunk)
    feature_gradients = {degree: torch.zeros_like(feature) for degree, feature in features.items()}
    for index, (group, hidden) in enumerate(zip(problem.plan.groups, operands.hidden, strict=True)):
        chunk_hidden = hidden[chunk.edges]
        for order, block, block_gradient in zip(orders(group), operands.blocks[index], gradients.blocks[index], strict=True):
            operand = _order_operand(features, order)
            output_gradient = _gather_order(incoming, order, order.degrees_out).flatten(0, 1)
            block_gradient += _outer(operand, chunk_hidden).T @ output_gradient
            outer_gradient = (output_gradient @ block.T).view(len(operand), -1, hidden.shape[1])
            gradients.hidden[index][chunk.edges] += (operand.flatten(1)[:, None] @ outer_gradient).squeeze(1)
            operand_gradient = (outer_gradient @ chunk_hidden[..., None]).view(operand.shape)
            _scatter_order(feature_gradients, order, order.degrees_in, _operand_backward(operand_gradient, order))
    _scatter_features(problem, operands, chunk, feature_gradients, gradients)
    if not with_torque:
        return None
    return _turn(problem.blocks(1, chunk.edges), _generator_product(feature_gradients, features))


def _aligned_features(problem: Problem, operands: Operands, chunk: Chunk) -> Components:
    """x~ of a chunk: source features and edge features in the edges' frames, ``{d: [n, 2d+1, C]}``."""
    src = problem.graph.src[chunk.edges]
    features = {}
    for degree, nodes in operands.nodes.items():
        gathered = nodes[src]
        if degree in operands.edges:
            gathered = torch.cat([gathered, operands.edges[degree][chunk.edges]], 1)
        features[degree] = _align(problem.blocks(degree, chunk.edges), gathered)
    return features


def _scatter_features(
    problem: Problem, operands: Operands, chunk: Chunk, feature_gradients: Components, gradients: Operands
) -> None:
    src = problem.graph.src[chunk.edges]
    for degree, aligned in feature_gradients.items():
        gradient = _rotate(problem.blocks(degree, chunk.edges), aligned).transpose(1, 2)  # [n, C, 2d+1]
        num_channels = operands.nodes[degree].shape[1]
        into_nodes = gradients.nodes[degree]
        into_nodes.index_add_(0, src, gradient[:, :num_channels].to(into_nodes.dtype))
        if degree in gradients.edges:
            gradients.edges[degree][chunk.edges] = gradient[:, num_channels:].to(gradients.edges[degree].dtype)


def _order_operand(features: Components, order: Order) -> Tensor:
    """What R_even and R_odd of an order multiply, [n, sign, parity * I], sign -m before +m."""
    even = _gather_order(features, order, order.degrees_in)  # [n, sign, I]
    if order.m == 0:
        return even
    odd = torch.stack([even[:, 1], -even[:, 0]], 1)
    return torch.cat([even, odd], -1)


def _operand_backward(operand_gradient: Tensor, order: Order) -> Tensor:
    """Gradient of the gathered features from that of :func:`_order_operand`."""
    if order.m == 0:
        return operand_gradient
    even, odd = operand_gradient.chunk(2, -1)
    return even + torch.stack([-odd[:, 1], odd[:, 0]], 1)


def _outer(operand: Tensor, hidden: Tensor) -> Tensor:
    """A, the outer product with h: [n, sign, I] and [n, K] to [n * sign, I * K]."""
    return (operand[..., None] * hidden[:, None, None]).flatten(0, 1).flatten(1)


# By source ----------------------------------------------------------------------------------------------------------


class _SourceTerm(NamedTuple):
    """The part of a chunk that one input degree of one group contributes."""

    group: RadialGroup
    group_index: int
    input_index: int
    degree: int
    hidden: Tensor  # [J, Q, K]; zero in empty slots
    features: Tensor  # [J * (2d+1), C]
    node_products: Tensor  # T, [J, K, (2d+1) * n]
    block: Tensor  # [C, K * n]

    def edge_products(self, chunk: Chunk) -> Tensor:
        """U of the chunk's edges, [edges, 2d+1, n]."""
        products = torch.bmm(self.hidden, self.node_products).flatten(0, 1)
        return _pick(products, chunk).unflatten(1, (2 * self.degree + 1, -1))


def _source_terms(problem: Problem, operands: Operands, chunk: Chunk) -> Iterator[_SourceTerm]:
    assert chunk.sources is not None
    count = len(chunk.sources)
    features = {degree: nodes[chunk.sources].transpose(1, 2).flatten(0, 1) for degree, nodes in operands.nodes.items()}
    for index, (group, blocks) in enumerate(zip(problem.plan.groups, operands.blocks, strict=True)):
        hidden = _spread(operands.hidden[index][chunk.edges], chunk).unflatten(0, (count, chunk.width))
        for input_index, (degree, block) in enumerate(zip(group.degrees_in, blocks, strict=True)):
            products = (features[degree] @ block).view(count, 2 * degree + 1, hidden.shape[-1], -1)
            node_products = products.transpose(1, 2).flatten(2)  # [J, K, (2d+1) * n]
            yield _SourceTerm(group, index, input_index, degree, hidden, features[degree], node_products, block)


def _add_messages_by_source(problem: Problem, operands: Operands, chunk: Chunk, messages: Components) -> None:
    for term in _source_terms(problem, operands, chunk):
        edge_products = term.edge_products(chunk)
        frames = problem.blocks(term.degree, chunk.edges)
        for order, columns in columns_of_input(term.group, term.degree):
            into_frame = frames[:, :, order.components(term.degree)].transpose(1, 2)  # [n, sign, 2d+1]
            turned = torch.bmm(into_frame, edge_products[:, :, columns])
            _scatter_order(messages, order, order.degrees_out, _combine_parities(turned, order))


def _backward_by_source(
    problem: Problem, operands: Operands, chunk: Chunk, incoming: Components, gradients: Operands, with_torque: bool
) -> Tensor | None:
    assert chunk.sources is not None and isinstance(chunk.edges, Tensor)
    torque = problem.wigner.new_zeros(len(chunk.edges), 3) if with_torque else None
    for term in _source_terms(problem, operands, chunk):
        edge_gradient = _edge_products_backward(problem, term, chunk, incoming)  # [n, 2d+1, columns]
        if torque is not None:
            torque += _generator_product({term.degree: edge_gradient}, {term.degree: term.edge_products(chunk)})
        table = _spread(edge_gradient.flatten(1), chunk).unflatten(0, term.hidden.shape[:2])  # [J, Q, (2d+1) * n]
        hidden_gradient = torch.bmm(table, term.node_products.transpose(1, 2)).flatten(0, 1)
        gradients.hidden[term.group_index][chunk.edges] += _pick(hidden_gradient, chunk)
        node_gradient = torch.bmm(term.hidden.transpose(1, 2), table)  # [J, K, (2d+1) * n]
        node_gradient = node_gradient.unflatten(2, (2 * term.degree + 1, -1)).transpose(1, 2).flatten(0, 1).flatten(1)
        gradients.blocks[term.group_index][term.input_index].add_(term.features.T @ node_gradient)
        feature_gradient = (node_gradient @ term.block.T).unflatten(0, (len(chunk.sources), -1)).transpose(1, 2)
        into_nodes = gradients.nodes[term.degree]
        into_nodes.index_add_(0, chunk.sources, feature_gradient.to(into_nodes.dtype))
    return torque


def _edge_products_backward(problem: Problem, term: _SourceTerm, chunk: Chunk, incoming: Components) -> Tensor:
    """Gradient of U of one input degree, [n, 2d+1, columns]."""
    frames = problem.blocks(term.degree, chunk.edges)
    parts = []
    for order, _ in columns_of_input(term.group, term.degree):
        output_gradient = _gather_order(incoming, order, order.degrees_out)  # [n, sign, d_out * C]
        turned_gradient = _split_parities(output_gradient, order)
        parts.append(torch.bmm(frames[:, :, order.components(term.degree)], turned_gradient))
    return torch.cat(parts, -1)


def _combine_parities(turned: Tensor, order: Order) -> Tensor:
    """[n, sign, parity * columns] to [n, sign, columns]: the sum over even and odd terms, with their signs."""
    if order.m == 0:
        return turned
    even, odd = turned.chunk(2, -1)
    return even + torch.stack([odd[:, 1], -odd[:, 0]], 1)


def _split_parities(gradient: Tensor, order: Order) -> Tensor:
    """The transpose of :func:`_combine_parities`."""
    if order.m == 0:
        return gradient
    odd = torch.stack([-gradient[:, 1], gradient[:, 0]], 1)
    return torch.cat([gradient, odd], -1)


def _spread(values: Tensor, chunk: Chunk) -> Tensor:
    """Values of the chunk's edges to its table of sources and edges, zero in empty slots."""
    assert chunk.sources is not None and chunk.slots is not None
    size = len(chunk.sources) * chunk.width
    if len(values) == size:
        return values
    return values.new_zeros(size, *values.shape[1:]).index_copy_(0, chunk.slots, values)


def _pick(table: Tensor, chunk: Chunk) -> Tensor:
    """The inverse of :func:`_spread`."""
    assert chunk.slots is not None
    return table if len(chunk.slots) == len(table) else table[chunk.slots]


# Rotations and orders -----------------------------------------------------------------------------------------------


def _align(frames: Tensor, features: Tensor) -> Tensor:
    """D^T x: [n, C, 2d+1] to component-major [n, 2d+1, C]."""
    return torch.bmm(frames.transpose(1, 2), features.transpose(1, 2))


def _rotate(frames: Tensor, aligned: Tensor) -> Tensor:
    """D x~, component-major."""
    return torch.bmm(frames, aligned)


def _turn(frames: Tensor, vectors: Tensor) -> Tensor:
    return torch.bmm(frames, vectors[..., None]).squeeze(-1)


def _gather_order(features: Components, order: Order, degrees: tuple[int, ...]) -> Tensor:
    """Components -m, +m of several degrees side by side: [n, sign, sum of C]."""
    return torch.cat([features[degree][:, order.components(degree)] for degree in degrees], -1)


def _scatter_order(into: Components, order: Order, degrees: tuple[int, ...], values: Tensor) -> None:
    """Add what :func:`_gather_order` would gather."""
    parts = values.chunk(len(degrees), -1)
    for degree, part in zip(degrees, parts, strict=True):
        into[degree][:, order.components(degree)] += part


def _generator_product(left: Components, right: Components) -> Tensor:
    """The sum over degrees and channels of <left, G_a right>, [n, 3]."""
    example = next(iter(left.values()))
    total = example.new_zeros(len(example), 3)
    for degree, values in left.items():
        if degree > 0:
            overlap = torch.bmm(values, right[degree].transpose(1, 2))  # [n, 2d+1, 2d+1]
            total += overlap.flatten(1) @ generators(degree).to(overlap).flatten(1).T
    return total


def _zeros_to_sum(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=accumulation_dtype(tensor.dtype))
