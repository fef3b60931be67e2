"""What a layer returns has its degrees in ascending order on every backend, for those who join the values of the dict."""

from __future__ import annotations

import pytest

import se3_fast
from se3_fast import ConvSE3FuseLevel, EdgeGeometry, Fiber
from tests.support import device_of, make_convolution, random_features, random_graph


@pytest.mark.parametrize("fuse_level", ConvSE3FuseLevel, ids=lambda level: level.name)
@pytest.mark.parametrize("backend", ["dense", "torch", "cpp", "triton"])
def test_degrees_ascend_where_the_fiber_does_not(backend: str, fuse_level: ConvSE3FuseLevel) -> None:
    device = device_of(backend)
    fiber_in = Fiber({0: 2, 1: 1})
    convolution = make_convolution(fiber_in, Fiber({0: 3, 1: 2, 2: 1}), fuse_level=fuse_level, pool=False).to(device)
    graph = random_graph(3, 4).to(device)
    rel_pos = graph.edata["rel_pos"]
    nodes = {key: tensor.to(device) for key, tensor in random_features(fiber_in, 3).items()}
    geometry = EdgeGeometry.from_relative_positions(rel_pos, 2)
    with se3_fast.backend(backend):
        output = convolution(nodes, {"0": rel_pos.norm(dim=-1)[:, None, None]}, graph, geometry)
    assert list(output) == ["0", "1", "2"]
