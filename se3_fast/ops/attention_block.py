"""A whole attention block as one operation, where nothing is differentiated and a backend has it.

What it computes is what its parts compute (:mod:`se3_fast.ops.radial`, :mod:`~se3_fast.ops.tfn_conv`, :mod:`~se3_fast.ops.linear`,
:mod:`~se3_fast.ops.edge_attention`); the formula is theirs.
"""

from __future__ import annotations

import torch

from se3_fast.autograd.transforms import are_alike, is_recording
from se3_fast.backends.choice import own_implementation
from se3_fast.backends.operands import AttentionBlock
from se3_fast.fiber import Features
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import Graph


def may_be_whole(graph: Graph, geometry: EdgeGeometry) -> bool:
    """Whether :func:`attention_block` may serve a block with these edges, as it is called now.

    Args:
        graph: N nodes, E edges.
        geometry: their directions.
    """
    if own_implementation("attention_block", graph.device) is None or is_recording():
        return False
    return geometry.factor is None and geometry.has_constant_frames() and not torch.is_autocast_enabled(graph.device.type)


def attention_block(call: AttentionBlock) -> Features | None:
    """Queries, the convolution for values and keys, attention, and the projection of its result beside the input.

    Args:
        call: its arguments, where :func:`may_be_whole`; the features have been checked.

    Returns:
        ``{d: [N, C_out, 2d+1]}``; None where the parts are to be called instead: they serve more dtypes and larger graphs, and say
        what is wrong with weights that do not fit.
    """
    backend = own_implementation("attention_block", call.graph.device)
    if backend is None or not (are_alike(call.tensors()) and _fit(call) and backend.serves(call)):
        return None
    return backend.attention_block(call)


def _fit(call: AttentionBlock) -> bool:
    """Whether the geometry has all degrees, and the weights the sizes that they were made with; and there are some."""
    inputs, groups = dict(call.plan.node_channels), call.plan.groups
    if call.geometry.max_degree < call.plan.max_degree or len(groups) != len(call.weights):
        return False
    if not call.query_weights or not call.output_weights:
        return False
    width = call.weights[0].shape[-1]
    fit = [
        weight.shape == (group.channels_out * group.channels_in * group.num_paths, width)
        for group, weight in zip(groups, call.weights, strict=True)
    ]
    channels = dict(call.plan.channels_out)
    for degree, weight in call.query_weights.items():
        num_keys = channels[int(degree)] - call.value_fiber[int(degree)]
        fit.append(weight.shape == (num_keys, inputs[int(degree)]))
    for degree, weight in call.output_weights.items():
        fit.append(weight.ndim == 2 and weight.shape[1] == call.value_fiber[int(degree)] + inputs.get(int(degree), 0))
    return all(fit)
