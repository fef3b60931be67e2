"""TFN convolution as published: radial weights of all edges and dense bases materialised (DESIGN 1).

    out[e, o, k] = sum_{i, l, f} R[e, o, i, f] B[e, l, f, k] x[e, i, l],      R[e] = W3 h[e]

Per radial group, with all its degrees side by side on the axes l, f and k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.fiber import Features
from se3_fast.plan import ConvolutionPlan, RadialGroup

BasisOf = Callable[[str], Tensor]


def tfn_conv(
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
    messages: Features = {}
    for group, group_hidden, weight in zip(plan.groups, hidden, weights, strict=True):
        message = _group_messages(group, basis, features, F.linear(group_hidden, weight))
        widths = [2 * degree + 1 for degree in group.degrees_out]
        for degree, part in zip(group.degrees_out, message.split(widths, -1), strict=True):
            key = str(degree)
            messages[key] = messages[key] + part if key in messages else part
    return {str(degree): messages[str(degree)] for degree, _ in plan.channels_out}


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


def _group_messages(group: RadialGroup, basis: BasisOf, features: Features, radial_weights: Tensor) -> Tensor:
    """Messages of one group, output degrees side by side: [E, C_out, sum of 2d_out+1]."""
    num_edges = len(radial_weights)
    inputs = torch.cat([features[str(degree)] for degree in group.degrees_in], -1)  # [E, C_in, sum of 2d_in+1]
    matrices = radial_weights.view(num_edges, group.channels_out, group.channels_in * group.num_paths)
    key = basis_key(group)
    if key is None:
        return matrices @ inputs
    width = sum(2 * degree + 1 for degree in group.degrees_out)
    group_basis = basis(key).to(inputs.dtype)  # [E, l, f, k]
    coupled = inputs @ group_basis.flatten(2)  # [E, C_in, f * k]
    coupled = coupled.view(num_edges, group.channels_in * group.num_paths, group_basis.shape[-1])
    return (matrices @ coupled)[..., :width]


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
