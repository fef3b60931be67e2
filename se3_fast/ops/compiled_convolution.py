"""The convolution as one node of a compiled graph, on the backend chosen while it is traced."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from se3_fast.autograd.modes import known_when_compiled
from se3_fast.autograd.opaque import OpaqueOperation
from se3_fast.backends import choice
from se3_fast.backends.operands import Convolution, FrameForm
from se3_fast.contraction import ContractionOrder, ConvolutionPlan
from se3_fast.fiber import Features
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import EdgeOrder, Graph
from se3_fast.ops.convolution_messages import by_degree, messages_in_frames


def messages_of_node(call: Convolution, form: FrameForm) -> Features:
    """The messages of a call, whose backend reads frames in this form."""
    backend_name = choice.selected_backend(call.hidden[0].device)
    description = _description(call.plan, call.pool, backend_name, call.geometry.max_degree, call.order)
    operands = [
        call.graph.src,
        call.graph.dst,
        *call.graph.incoming(),
        *call.graph.outgoing(),
        call.geometry.rel_pos,
        call.geometry.frames(form),
        *call.node_features.values(),
        *call.edge_features.values(),
        *call.hidden,
        *call.weights,
    ]
    return by_degree(call, _node(description, operands))


@known_when_compiled
def _description(plan: ConvolutionPlan, pool: bool, backend_name: str, max_degree: int, order: ContractionOrder) -> str:
    return json.dumps([plan.to_json(), pool, backend_name, max_degree, order])


def _run(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The messages by ascending degree, from what :func:`messages_of_node` packed."""
    plan_json, pool, backend_name, max_degree, *order = json.loads(description)
    plan = ConvolutionPlan.from_json(plan_json)
    src, dst, in_order, in_offsets, out_order, out_offsets, rel_pos, frames, *rest = operands
    graph = Graph.from_orders(src, dst, EdgeOrder(in_order, in_offsets), EdgeOrder(out_order, out_offsets))
    hidden = rest[-2 * len(plan.groups)]
    with choice.backend(backend_name), torch.autocast(src.device.type, enabled=False):
        backend = choice.implementation("tfn_conv", src.device, hidden.dtype, hidden.shape[-1])
        geometry = EdgeGeometry.with_made_frames(rel_pos, max_degree, backend.FRAMES, frames)
        remaining = iter(rest)
        call = Convolution(
            plan,
            graph,
            geometry,
            {str(degree): next(remaining) for degree, _ in plan.node_channels},
            {str(degree): next(remaining) for degree, _ in plan.edge_channels},
            [next(remaining) for _ in plan.groups],
            [next(remaining) for _ in plan.groups],
            pool,
            order=order[0] if order else "auto",  # programs that were exported by older versions have none
        )
        return list(messages_in_frames(call, backend).values())


def _shapes(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    plan_json, pool, *_ = json.loads(description)
    plan = ConvolutionPlan.from_json(plan_json)
    src, in_offsets, hidden = operands[0], operands[3], operands[-2 * len(plan.groups)]
    count = in_offsets.shape[0] - 1 if pool else src.shape[0]
    return [hidden.new_empty(count, channels, 2 * degree + 1) for degree, channels in plan.channels_out]


_node = OpaqueOperation("tfn_conv", _run, _shapes)
