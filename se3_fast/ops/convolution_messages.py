"""The messages of a backend that reads the edges' frames, and of the edges that have none: the formula has their messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from se3_fast.backends import choice
from se3_fast.backends.operands import Convolution, Geometry, scaled
from se3_fast.fiber import Features
from se3_fast.geometry import EdgeGeometry
from se3_fast.graph import Graph


def by_degree(call: Convolution, messages: Sequence[Tensor]) -> Features:
    """Messages by ascending degree as features."""
    return {str(degree): message for (degree, _), message in zip(call.plan.channels_out, messages, strict=True)}


def messages_in_frames(call: Convolution, backend: Any) -> Features:
    """The messages of all edges by a backend that reads frames, those of edges without direction by the formula."""
    result = by_degree(call, backend.tfn_conv(call))
    return _with_zero_length_edges(result, call) if len(call.geometry.zero_length_edges) else result


def with_scaled_hidden(call: Convolution) -> Convolution:
    """A call whose geometry has a factor, with that in h, R = W h, instead of in the bases."""
    factor = call.geometry.factor
    assert factor is not None
    scales = torch.stack([torch.ones_like(factor) if group.is_basis_free else factor for group in call.plan.groups])[..., None]
    if isinstance(call.hidden, Tensor):
        hidden: Sequence[Tensor] | Tensor = scaled(call.hidden, scales)
    else:
        hidden = [scaled(values, scale) for values, scale in zip(call.hidden, scales, strict=True)]
    make_hidden = None if call.make_hidden is None else call.make_hidden.scaled(scales)
    return call._replace(geometry=call.geometry.without_factor(), hidden=hidden, make_hidden=make_hidden)


def with_edges_by_formula(result: Features, call: Convolution) -> Features:
    """Add the messages of the edges of which the tensors given are needed; what has no basis is in ``result`` already."""
    chosen = call.geometry.edges_by_formula
    hidden = [
        torch.zeros_like(values[chosen]) if group.is_basis_free else values[chosen]
        for group, values in zip(call.plan.groups, call.hidden, strict=True)
    ]
    return _with_messages_of(result, call, chosen, call.geometry.given_bases_of(chosen), hidden)


def _with_zero_length_edges(result: Features, call: Convolution) -> Features:
    """Add the messages of edges without direction, which have no frame: only their J = 0 terms, by the dense formula."""
    chosen = call.geometry.zero_length_edges
    geometry = EdgeGeometry(call.geometry.rel_pos[chosen].detach(), call.geometry.max_degree)
    return _with_messages_of(result, call, chosen, geometry, [values[chosen] for values in call.hidden])


def _with_messages_of(
    result: Features, call: Convolution, chosen: Tensor, geometry: Geometry, hidden: Sequence[Tensor]
) -> Features:
    """Add the messages of the chosen edges [n] by the dense formula; ``geometry`` and ``hidden`` are those of these edges."""
    part = call._replace(
        graph=Graph(call.graph.src[chosen], call.graph.dst[chosen], call.graph.num_nodes()),
        geometry=geometry,
        edge_features={key: tensor[chosen] for key, tensor in call.edge_features.items()},
        hidden=hidden,
    )
    messages = by_degree(part, choice.formula("tfn_conv").tfn_conv(part))
    if call.pool:
        return {key: tensor + messages[key] for key, tensor in result.items()}
    return {key: tensor.index_add(0, chosen, messages[key]) for key, tensor in result.items()}
