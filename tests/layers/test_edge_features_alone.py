"""A degree of which only the edges have features: the nodes' fiber has it without channels."""

from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast import ConvSE3FuseLevel, EdgeGeometry, Fiber
from tests.support import device_of, leaves, make_convolution, random_features, random_graph, relative_error

FIBER_IN, FIBER_EDGE = Fiber({0: 2, 1: 0}), Fiber({1: 3})


def messages_and_gradients(backend: str, fuse_level: ConvSE3FuseLevel) -> list[torch.Tensor]:
    device = device_of(backend)
    convolution = make_convolution(FIBER_IN, Fiber({0: 2, 1: 2}), FIBER_EDGE, fuse_level, pool=False).to(device)
    graph = random_graph(3, 4).to(device)
    rel_pos = graph.edata["rel_pos"]
    vectors = leaves([random_features(FIBER_EDGE, 4)["1"].to(device)])[0]
    nodes = {key: tensor.to(device) for key, tensor in random_features(FIBER_IN, 3).items()}
    edges = {"0": rel_pos.norm(dim=-1)[:, None, None], "1": vectors}
    with se3_fast.backend(backend):
        output = convolution(nodes, edges, graph, EdgeGeometry.from_relative_positions(rel_pos, 1))
    gradient = torch.autograd.grad(output["1"].square().sum(), vectors)[0]
    return [*(tensor.detach() for tensor in output.values()), gradient]


@pytest.mark.parametrize("fuse_level", ConvSE3FuseLevel, ids=lambda level: level.name)
@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_messages_are_those_of_dense(backend: str, fuse_level: ConvSE3FuseLevel) -> None:
    expected = messages_and_gradients("dense", fuse_level)
    assert expected[-1].norm() > 0
    for found, truth in zip(messages_and_gradients(backend, fuse_level), expected, strict=True):
        assert relative_error(found, truth) < 1e-12
