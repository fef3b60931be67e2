"""An attention block by one compiled CPU operation (``csrc/attention_block.cpp``).

It computes what the operations of its parts compute one after the other, to the last bit. What it saves is the time between them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from se3_fast.backends.cpp.order_rates import RATES
from se3_fast.backends.cpp.tfn_conv_by_edge import description
from se3_fast.backends.dense.radial import LAYER_NORM_EPSILON
from se3_fast.backends.operands import AttentionBlock, profile_parameters
from se3_fast.backends.protocol import Support
from se3_fast.backends.torch.operand_convolution import orders_here
from se3_fast.fiber import Features


def support(is_compiled: bool) -> Support:
    """Not in compiled graphs, which have a node for each part."""
    return Support.no("compiled graphs have the parts") if is_compiled else Support()


def serves(call: AttentionBlock) -> bool:
    """Where the convolution is contracted by edge, the only order that the operation has."""
    return not orders_here(call, RATES)[0]


def attention_block(call: AttentionBlock) -> Features:
    """See :func:`se3_fast.ops.attention_block.attention_block`."""
    results = torch.ops.se3_fast_cpp.attention_block(*_arguments(call))
    return dict(zip(call.output_weights, results, strict=True))


def _arguments(call: AttentionBlock) -> list[Any]:
    """As the compiled operation takes them."""
    first, _ = call.profiles[0]
    degrees = tuple(str(degree) for degree, _ in call.plan.node_channels)
    of_values = tuple(map(str, call.value_fiber.degrees))
    query_nodes, output_parts = _routes(degrees, of_values, tuple(call.query_weights), tuple(call.output_weights))
    return [
        _contiguous(call.node_features[degree] for degree in degrees),
        _contiguous(call.edge_features[str(degree)] for degree, _ in call.plan.edge_channels),
        call.edge_features["0"].squeeze(-1).contiguous(),
        _contiguous(profile_parameters(call.profiles)),
        _contiguous(call.weights),
        _contiguous(call.query_weights.values()),
        _contiguous(call.output_weights.values()),
        call.geometry.wigner_as(call.weights[0].dtype),
        *(call.graph.src, call.graph.dst, *call.graph.incoming()),
        *description(call.plan, call.weights[0].shape[1]),
        *(call.value_fiber.channels, query_nodes, output_parts),
        *(call.num_heads, first.scale is not None, LAYER_NORM_EPSILON),
    ]


def _contiguous(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.contiguous() for tensor in tensors]


@cache
def _routes(
    nodes: tuple[str, ...], values: tuple[str, ...], queries: tuple[str, ...], outputs: tuple[str, ...]
) -> tuple[list[int], list[int]]:
    """Which features the linear maps of a block read, by their numbers, from the degrees of all features.

    Returns:
        Of each degree of the queries, the number of its node features; of each degree of the result the number of its values, then
        that of its node features, -1 where there are none.
    """
    parts = [side.index(degree) if degree in side else -1 for degree in outputs for side in (values, nodes)]
    return [nodes.index(degree) for degree in queries], parts
