"""The depthwise convolution of force fields. Formula: :mod:`se3_fast.backends.dense.depthwise_conv`."""

from __future__ import annotations

from torch import Tensor

from se3_fast.autograd.compute_dtype import check_dtype
from se3_fast.backends.choice import implementation
from se3_fast.backends.operands import DepthwiseProfile
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.graph import Graph


def depthwise_conv(
    plan: DepthwisePlan, graph: Graph, features: Tensor, harmonics: Tensor, radial: Tensor, profile: DepthwiseProfile
) -> Tensor:
    """Convolve channel by channel, and sum over each node's incoming edges.

    Args:
        plan: what couples.
        graph: N nodes, E edges.
        features: [N, components, C] of the degrees 0..plan.degree_in.
        harmonics: [E, components] of the degrees 0..plan.max_harmonic.
        radial: [E, B] functions of the edges' lengths, zero where an edge has no effect.
        profile: weights of the radial profile.

    Returns:
        [N, components, C] of the degrees 0..plan.degree_out, in the dtype of the features. Differentiable in all tensors, any
        number of times.

    Raises:
        ValueError: if a shape or dtype does not fit the others.
    """
    check_dtype("features", features)
    channels, inputs, width = (tensor.shape[-1] if tensor.ndim else 0 for tensor in (features, radial, profile.second))
    expected = {
        "features": (features, (graph.num_nodes(), plan.components_in, channels)),
        "harmonics": (harmonics, (graph.num_edges(), plan.num_harmonics)),
        "radial": (radial, (graph.num_edges(), inputs)),
        "profile.first": (profile.first, (inputs, width)),
        "profile.second": (profile.second, (width, width)),
        "profile.last": (profile.last, (width, len(plan.paths) * channels)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != features.dtype:
            raise ValueError(f"{name}: expected {features.dtype} as the features have, got {tensor.dtype}")
    return implementation("depthwise_conv", features.device, plan.num_terms).depthwise_conv(
        plan, graph, features, harmonics, radial, profile
    )
