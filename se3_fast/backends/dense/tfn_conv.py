"""TFN convolution as published: radial weights of all edges and dense bases materialised (DESIGN 1).

    out[e, o, k] = sum_{i, l, f} R[e, o, i, f] B[e, l, f, k] x[e, i, l],      R[e] = W3 h[e]

Per radial group, with all its degrees side by side on the axes l, f and k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.backends.operands import Convolution
from se3_fast.contraction import ConvolutionPlan, RadialGroup
from se3_fast.fiber import Features

FRAMES = None
KEEPS_FRAMES = False

BasisOf = Callable[[str], Tensor]
Contraction = Callable[[Tensor, Tensor | None], Tensor]


def tfn_conv(call: Convolution) -> Sequence[Tensor]:
    """See :func:`se3_fast.ops.tfn_conv.tfn_conv`: messages by ascending degree."""
    features = gather_features(call.node_features, call.edge_features, call.graph.src)
    dtype = call.hidden[0].dtype
    weights = [weight.to(dtype) for weight in call.weights]
    messages = convolution(call.plan, partial(call.geometry.basis, dtype=dtype), features, list(call.hidden), weights)
    found = sum_over_incoming(messages, call.graph.dst, call.graph.num_nodes()) if call.pool else messages
    return list(found.values())


def convolution(
    plan: ConvolutionPlan,
    basis: BasisOf,
    features: Features,
    hidden: Sequence[Tensor],
    weights: Sequence[Tensor],
) -> Features:
    """Messages of all edges.

    Args:
        plan: what is coupled.
        basis: returns the published basis of a key, [E, ...].
        features: ``{d: [E, C_d, 2d+1]}`` source features of each edge, edge-feature channels appended.
        hidden: h of each group, [E, K].
        weights: last radial weight of each group, [C_out * C_in * F, K].

    Returns:
        ``{d: [E, C_d, 2d+1]}``, degrees ascending.
    """
    contractions = [
        partial(_contract_hidden, group, group_hidden, weight)
        for group, group_hidden, weight in zip(plan.groups, hidden, weights, strict=True)
    ]
    return messages(plan, basis, features, contractions)


def messages(plan: ConvolutionPlan, basis: BasisOf, features: Features, contractions: Sequence[Contraction]) -> Features:
    """Messages of all edges, those of each group by a function of its features and its basis.

    Args:
        plan: what is coupled.
        basis: returns the published basis of a key, [E, ...].
        features: ``{d: [E, C_d, 2d+1]}`` source features of each edge, edge-feature channels appended.
        contractions: of each group, from its features [E, C_in, l] and its basis [E, l, F, k], padded or not, or None, to its
            messages [E, C_out, k].

    Returns:
        ``{d: [E, C_d, 2d+1]}``, degrees ascending.
    """
    result: Features = {}
    for group, contract in zip(plan.groups, contractions, strict=True):
        inputs = torch.cat([features[str(degree)] for degree in group.degrees_in], -1)  # [E, C_in, sum of 2d_in+1]
        key = basis_key(group)
        message = contract(inputs, None if key is None else basis(key).to(inputs.dtype))
        widths = [2 * degree + 1 for degree in group.degrees_out]
        for degree, part in zip(group.degrees_out, message[..., : sum(widths)].split(widths, -1), strict=True):
            place = str(degree)
            result[place] = result[place] + part if place in result else part
    return {str(degree): result[str(degree)] for degree, _ in plan.channels_out}


def contract(features: Tensor, basis: Tensor | None, radial_weights: Tensor) -> Tensor:
    """One group's messages [E, C_out, k] from features [E, C_in, l], basis [E, l, F, k] and R [E, C_out, C_in * F].

    Without a basis l = F = k = 1.
    """
    if basis is None:
        return radial_weights @ features
    coupled = features @ basis.flatten(2)  # [E, C_in, F * k]
    return radial_weights @ coupled.view(len(features), radial_weights.shape[-1], basis.shape[-1])


def _contract_hidden(group: RadialGroup, hidden: Tensor, weight: Tensor, features: Tensor, basis: Tensor | None) -> Tensor:
    radial_weights = F.linear(hidden, weight).view(len(hidden), group.channels_out, group.channels_in * group.num_paths)
    return contract(features, basis, radial_weights)


def gather_features(node_features: Features, edge_features: Features, src: Tensor) -> Features:
    """Source features of each edge, with the edge features of the same degree appended on the channel axis."""
    gathered = {}
    for key, tensor in node_features.items():
        parts = [tensor.index_select(0, src)]
        if key in edge_features:
            parts.append(edge_features[key].to(tensor.dtype))
        gathered[key] = torch.cat(parts, 1)  # [E, C, 2d+1]
    return gathered


def sum_over_incoming(messages: Features, dst: Tensor, num_nodes: int) -> Features:
    """Sum the messages of each node's incoming edges: [E, C, 2d+1] to [N, C, 2d+1]."""
    return {key: message.new_zeros(num_nodes, *message.shape[1:]).index_add_(0, dst, message) for key, message in messages.items()}


def basis_key(group: RadialGroup) -> str | None:
    """The published basis that a group is contracted with, or None where it has none."""
    if group.is_basis_free:
        return None
    if len(group.pairs) == 1:
        return f"{group.degrees_in[0]},{group.degrees_out[0]}"
    if len(group.degrees_out) == 1:
        return f"out{group.degrees_out[0]}_fused"
    if len(group.degrees_in) == 1:
        return f"in{group.degrees_in[0]}_fused"
    return "fully_fused"
