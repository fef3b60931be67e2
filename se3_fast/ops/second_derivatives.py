"""Second derivatives: what a loss on forces needs.

The backends differentiate once, by hand. Where positions require grad, the convolution is wrapped in
:class:`TwiceDifferentiable`: its first derivatives are the backend's, and where those are to be differentiated again
(``create_graph=True``) they are computed by the published formula instead, which autograd can follow. That runs over chunks of
edges, and keeps of each only its operands, so that neither bases nor radial weights of all edges ever exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from se3_fast.graph import Graph
from se3_fast.ops.backend import backend
from se3_fast.ops.edge_frames import EdgeGeometry
from se3_fast.plan import ConvolutionPlan
from se3_fast.reference import tfn_conv as reference

CHUNK_BYTES = 64 << 20
"""Radial weights of a chunk; about ten times as much is alive while a chunk is differentiated twice."""

Evaluate = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Differentiate = Callable[[Sequence[Tensor], Sequence[bool], Sequence[Tensor]], list[Tensor]]


class TwiceDifferentiable(torch.autograd.Function):
    """A function that can be differentiated once, made differentiable twice by another way to its first derivatives."""

    @staticmethod
    def forward(ctx: Any, evaluate: Evaluate, differentiate: Differentiate, *operands: Tensor) -> tuple[Tensor, ...]:
        """The results of ``evaluate``.

        Args:
            ctx: autograd's context.
            evaluate: the function, from its operands.
            differentiate: its gradients as a differentiable function of the operands, which of them are wanted, and the
                gradients of the results.
            *operands: tensors.
        """
        wanted = ctx.needs_input_grad[2:]
        with torch.enable_grad():
            leaves = [operand.detach().requires_grad_(is_wanted) for operand, is_wanted in zip(operands, wanted, strict=True)]
            results = evaluate(leaves)
        ctx.differentiate, ctx.wanted, ctx.inner = differentiate, wanted, (leaves, results)
        ctx.save_for_backward(*operands)
        return tuple(result.detach() for result in results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the operands."""
        if torch.is_grad_enabled():
            found = iter(ctx.differentiate(ctx.saved_tensors, ctx.wanted, gradients))
        else:
            leaves, results = ctx.inner
            chosen = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(results, chosen, gradients, retain_graph=True, materialize_grads=True))
        return None, None, *(next(found) if is_wanted else None for is_wanted in ctx.wanted)


def differentiable_gradients(
    function: Evaluate, operands: Sequence[Tensor], wanted: Sequence[bool], gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of a function as autograd finds them, themselves differentiable; None for operands that are not wanted.

    Args:
        function: in plain PyTorch.
        operands: its arguments.
        wanted: with respect to which of them.
        gradients: of its results.
    """
    chosen = [operand for operand, is_wanted in zip(operands, wanted, strict=True) if is_wanted]
    with torch.enable_grad():
        results = function(operands)
    found = iter(torch.autograd.grad(results, chosen, gradients, create_graph=True, allow_unused=True, materialize_grads=True))
    return [next(found) if is_wanted else None for is_wanted in wanted]


def convolution_gradients(
    plan: ConvolutionPlan, graph: Graph, max_degree: int, pool: bool, operands: Sequence[Tensor], wanted: Sequence[bool],
    gradients: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Gradients of the convolution as a differentiable function.

    Args:
        plan: what is coupled.
        graph: N nodes, E edges.
        max_degree: largest degree that the bases are made for.
        pool: whether messages were summed over incoming edges.
        operands: relative positions [E, 3]; node features [N, C_d, 2d+1] and edge features [E, C_d, 2d+1] by degree; h [E, K] and
            the last radial weight of every group.
        wanted: which of them.
        gradients: of the messages, by degree, [N or E, C_d, 2d+1].

    Returns:
        Those of the operands that are wanted, in their order.
    """
    num_edges, last_of_nodes = graph.num_edges(), len(plan.node_channels)
    num_not_weights = len(operands) - len(plan.groups)
    is_of_node = [0 < place <= last_of_nodes for place in range(len(operands))]
    is_of_edge = [place < num_not_weights and not is_of_node[place] for place in range(len(operands))]
    per_edge: list[list[Tensor]] = [[] for _ in operands]
    totals: list[Tensor | None] = [None for _ in operands]
    for edges in torch.arange(num_edges, device=graph.device).split(_edges_per_chunk(plan, operands[0].element_size())):
        src, dst = graph.src[edges], graph.dst[edges]
        chunk = [
            operand.index_select(0, src) if of_node else operand.index_select(0, edges) if of_edge else operand
            for operand, of_node, of_edge in zip(operands, is_of_node, is_of_edge, strict=True)
        ]
        chunk_gradients = [gradient.index_select(0, dst if pool else edges) for gradient in gradients]
        with set_checkpoint_early_stop(False):
            found = checkpoint(_chunk_gradients, plan, max_degree, wanted, chunk, chunk_gradients, use_reentrant=False)
        for place, gradient in zip((place for place, is_wanted in enumerate(wanted) if is_wanted), found, strict=True):
            if is_of_edge[place]:
                per_edge[place].append(gradient)
                continue
            if is_of_node[place]:
                gradient = torch.zeros_like(operands[place]).index_add(0, src, gradient)
            totals[place] = gradient if totals[place] is None else totals[place] + gradient
    return [
        _whole(operand, parts, total)
        for operand, is_wanted, parts, total in zip(operands, wanted, per_edge, totals, strict=True)
        if is_wanted
    ]


def _whole(operand: Tensor, parts: list[Tensor], total: Tensor | None) -> Tensor:
    if parts:
        return torch.cat(parts)
    return torch.zeros_like(operand) if total is None else total


def _chunk_gradients(
    plan: ConvolutionPlan, max_degree: int, wanted: Sequence[bool], operands: list[Tensor], gradients: list[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of the messages of some edges with respect to the wanted operands, differentiable."""
    remaining = iter(operands)
    rel_pos = next(remaining)
    features = {str(degree): next(remaining) for degree, _ in plan.node_channels}
    for degree, _ in plan.edge_channels:
        features[str(degree)] = torch.cat([features[str(degree)], next(remaining)], 1)
    hidden = [next(remaining) for _ in plan.groups]
    weights = [next(remaining).to(hidden[0].dtype) for _ in plan.groups]
    geometry = EdgeGeometry(rel_pos, max_degree)
    with backend("dense"):  # bases that autograd can follow any number of times
        messages = reference.tfn_conv(plan, geometry.basis, features, hidden, weights)
    chosen = [operand for operand, is_wanted in zip(operands, wanted, strict=True) if is_wanted]
    outputs = [messages[str(degree)] for degree, _ in plan.channels_out]
    return torch.autograd.grad(outputs, chosen, gradients, create_graph=True, materialize_grads=True)


def _edges_per_chunk(plan: ConvolutionPlan, itemsize: int) -> int:
    per_edge = max(group.num_paths * group.channels_in * group.channels_out for group in plan.groups)
    return max(CHUNK_BYTES // (per_edge * itemsize), 16)
