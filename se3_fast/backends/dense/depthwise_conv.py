"""The depthwise convolution: messages whose channels do not mix, summed over each node's incoming edges.

    h = s(s(a W1) W2),   R = h W3                               radial profile of an edge, without biases
    m[k, c] = sum over paths p = (d_in, J, d_out), M, l of  R[p, c] w3j(J, d_in, d_out)[M, l, k] Y_J^M x[l, c]
    s(z) = 1.6765 z / (1 + exp(-z))                             second moment 1 for normal z

Components of all degrees stand side by side, d^2 .. (d + 1)^2 - 1 for degree d, with the channels last. Since there are no biases,
a profile whose inputs a go to zero smoothly, as at a cutoff, does so too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.backends.operands import DepthwiseProfile
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.graph import Graph

SILU_SCALE = 1.6765324703310907
"""One over the root mean square of SiLU for normal inputs."""


def depthwise_conv(
    plan: DepthwisePlan, graph: Graph, features: Tensor, harmonics: Tensor, radial: Tensor, profile: DepthwiseProfile
) -> Tensor:
    """See :func:`se3_fast.ops.depthwise_conv.depthwise_conv`."""
    (sums,) = of_operands(plan, graph, [features, harmonics, radial, *profile])
    return sums


def of_operands(plan: DepthwisePlan, graph: Graph, operands: Sequence[Tensor]) -> list[Tensor]:
    """The sums [N, components, C], in a list, from features, harmonics, radial functions and weights in a row."""
    features, harmonics, radial, *weights = operands
    profile = DepthwiseProfile(*weights)
    return of_hidden(plan, graph, [features, harmonics, hidden_layers(radial, profile), profile.last])


def hidden_layers(radial: Tensor, profile: DepthwiseProfile) -> Tensor:
    """h of the profile, [E, K], from the radial functions [E, B]."""
    hidden = radial
    for weight in (profile.first, profile.second):
        hidden = SILU_SCALE * F.silu(hidden @ weight)
    return hidden


def of_hidden(plan: DepthwisePlan, graph: Graph, operands: Sequence[Tensor]) -> list[Tensor]:
    """The sums from features, harmonics, h and the last weight; linear in each of them."""
    features, harmonics, hidden, last = operands
    channels = features.shape[2]
    weights = (hidden @ last).unflatten(1, (len(plan.paths), channels))  # [E, paths, C]
    of_source = features.index_select(0, graph.src)  # [E, components, C]
    messages = [torch.zeros_like(of_source[:, :1]).expand(-1, 2 * degree + 1, -1) for degree in range(plan.degree_out + 1)]
    for number, path in enumerate(plan.paths):
        of_edge = harmonics[:, path.harmonic**2 : (path.harmonic + 1) ** 2]  # [E, 2J+1]
        of_degree = of_source[:, path.degree_in**2 : (path.degree_in + 1) ** 2]  # [E, 2d_in+1, C]
        elements = torch.einsum("em,mlk->ekl", of_edge, plan.coupling(path).to(of_edge))
        messages[path.degree_out] = messages[path.degree_out] + (elements @ of_degree) * weights[:, number, None]
    message = torch.cat(messages, 1)  # [E, components, C]
    return [message.new_zeros(graph.num_nodes(), *message.shape[1:]).index_add(0, graph.dst, message)]
