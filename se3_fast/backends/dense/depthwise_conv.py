"""The depthwise convolution: messages whose channels do not mix, summed over each node's incoming edges.

    R[p, c] = sum over knots k of  B(t - k) T[k, p, c]            radial weights of an edge at the place t among the knots
    m[k, c] = sum over paths p = (d_in, J, d_out), M, l of  R[p, c] w3j(J, d_in, d_out)[M, l, k] Y_J^M x[l, c]

B is the cubic B-spline, which has two continuous derivatives and is zero from 2 on: four rows of the table T count for an edge,
and one that leaves the knots by 2 or more has no effect. Components of all degrees stand side by side, d^2 .. (d + 1)^2 - 1 for
degree d, with the channels last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.graph import Graph


def depthwise_conv(plan: DepthwisePlan, graph: Graph, features: Tensor, harmonics: Tensor, places: Tensor, table: Tensor) -> Tensor:
    """See :func:`se3_fast.ops.depthwise_conv.depthwise_conv`."""
    (sums,) = of_operands(plan, graph, [features, harmonics, places, table])
    return sums


def of_operands(plan: DepthwisePlan, graph: Graph, operands: Sequence[Tensor]) -> list[Tensor]:
    """The sums [N, components, C], in a list, from features, harmonics, places and the table in a row."""
    features, harmonics, places, table = operands
    return of_shares(plan, graph, [features, harmonics, knot_shares(places, table.shape[0]), table])


def knot_shares(places: Tensor, num_knots: int) -> Tensor:
    """B(t - k) of all edges and knots, [E, K], from t [E]; any number of derivatives of it where it has them.

    The pieces of the spline are polynomials of the distance u to the knot on the left: summed up from truncated powers, as B is
    written too, they would lose digits. In half precision numbers of knots themselves are rounded: float32 it is then.
    """
    if places.dtype.itemsize < torch.float32.itemsize:
        return knot_shares(places.float(), num_knots).to(places.dtype)
    inside = places.clamp(-2, num_knots + 1)  # of infinite places powers are no numbers; B is zero at all knots already
    left = inside.detach().nan_to_num(0.0).floor()
    u = (inside - left)[:, None]
    v = 1 - u
    pieces = torch.cat([v**3, u**2 * (3 * u - 6) + 4, v**2 * (3 * v - 6) + 4, u**3], 1) / 6  # [E, 4]
    columns = left.long()[:, None] + torch.arange(2, 6, device=places.device)  # of -3 .. K + 3
    return pieces.new_zeros(places.shape[0], num_knots + 7).scatter(1, columns, pieces)[:, 3 : num_knots + 3]


def of_shares(plan: DepthwisePlan, graph: Graph, operands: Sequence[Tensor]) -> list[Tensor]:
    """The sums from features, harmonics, what the knots count for each edge [E, K], and the table; linear in each of them."""
    features, harmonics, shares, table = operands
    channels = features.shape[2]
    weights = (shares @ table).unflatten(1, (len(plan.paths), channels))  # [E, paths, C]
    of_source = features.index_select(0, graph.src)  # [E, components, C]
    messages = [torch.zeros_like(of_source[:, :1]).expand(-1, 2 * degree + 1, -1) for degree in range(plan.degree_out + 1)]
    for number, path in enumerate(plan.paths):
        of_edge = harmonics[:, path.harmonic**2 : (path.harmonic + 1) ** 2]  # [E, 2J+1]
        of_degree = of_source[:, path.degree_in**2 : (path.degree_in + 1) ** 2]  # [E, 2d_in+1, C]
        elements = torch.einsum("em,mlk->ekl", of_edge, plan.coupling(path).to(of_edge))
        messages[path.degree_out] = messages[path.degree_out] + (elements @ of_degree) * weights[:, number, None]
    message = torch.cat(messages, 1)  # [E, components, C]
    return [message.new_zeros(graph.num_nodes(), *message.shape[1:]).index_add(0, graph.dst, message)]
