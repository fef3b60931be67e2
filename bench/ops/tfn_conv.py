"""The convolution alone: edge frames given, from node features and the hidden radial values to messages per edge."""

from __future__ import annotations

import torch

from bench.problem import Problem, leaf
from bench.workloads import build
from se3_fast import EdgeGeometry
from se3_fast.backends.operands import Convolution
from se3_fast.contraction import ContractionOrder, cost, is_less_time_by_source
from se3_fast.ops.tfn_conv import tfn_conv


def problem(name: str, dtype: torch.dtype = torch.float32, order: ContractionOrder = "auto") -> Problem:
    """The convolution to keys and values in a hidden layer of a workload."""
    workload = build(name)
    graph = workload.graph
    convolution = workload.block.to_key_value.to(dtype)
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], convolution.max_degree)
    nodes = {
        str(degree): leaf(graph.num_nodes(), channels, 2 * degree + 1, dtype=dtype) for degree, channels in convolution.fiber_in
    }
    weights = [profile.last_weight for profile in convolution.radial_profiles]
    hidden = [leaf(graph.num_edges(), weight.shape[1], dtype=dtype) for weight in weights]

    def forward() -> list[torch.Tensor]:
        return list(tfn_conv(Convolution(convolution.plan, graph, geometry, nodes, {}, hidden, weights, False, order)).values())

    sizes = (graph.num_nodes(), graph.num_edges(), weights[0].shape[1])
    is_by_source = is_less_time_by_source(convolution.plan, *sizes, dtype)
    costs = cost(convolution.plan, *sizes, dtype, is_by_source, pool=False)
    return Problem(forward, [*nodes.values(), *hidden, *weights], costs, waits=is_by_source)
