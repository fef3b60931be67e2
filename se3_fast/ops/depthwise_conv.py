"""The depthwise convolution of force fields. Formula: :mod:`se3_fast.backends.dense.depthwise_conv`."""

from __future__ import annotations

from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype
from se3_fast.backends.choice import implementation
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.graph import Graph


def depthwise_conv(plan: DepthwisePlan, graph: Graph, features: Tensor, harmonics: Tensor, places: Tensor, table: Tensor) -> Tensor:
    """Convolve channel by channel, and sum over each node's incoming edges.

    Args:
        plan: what couples.
        graph: N nodes, E edges.
        features: [N, components, C] of the degrees 0..plan.degree_in.
        harmonics: [E, components] of the degrees 0..plan.max_harmonic.
        places: [E] where each edge's length stands among the knots, whose places are 0..K-1. An edge below the first one or above
            the last one by 2 or more has no effect.
        table: [K, paths * C] of the knots, for the radial weights of an edge; columns ordered (path, channel).

    Returns:
        [N, components, C] of the degrees 0..plan.degree_out, in the dtype of the features. Differentiable in all tensors, any
        number of times.

    Raises:
        ValueError: if a shape or dtype does not fit the others.
    """
    check_dtype("features", features)
    channels, num_knots = features.shape[-1] if features.ndim else 0, table.shape[0] if table.ndim else 0
    expected = {
        "features": (features, (graph.num_nodes(), plan.components_in, channels)),
        "harmonics": (harmonics, (graph.num_edges(), plan.num_harmonics)),
        "places": (places, (graph.num_edges(),)),
        "table": (table, (num_knots, len(plan.paths) * channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != features.dtype:
            raise ValueError(f"{name}: expected {features.dtype} as the features have, got {tensor.dtype}")
    return implementation("depthwise_conv", features.device, plan.num_terms, num_knots).depthwise_conv(
        plan, graph, features, harmonics, places, table
    )
