"""A geometry whose positions are changed in place, as in a simulation, is that of the new positions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from se3_fast import EdgeGeometry, Fiber, backend
from tests.support import make_convolution, random_features, random_graph, relative_error

FIBER = Fiber({0: 2, 1: 2})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["dense", "torch", "cpp", "triton"])
def test_geometry_follows_its_positions(name: str, mode: Callable[[], AbstractContextManager[object]]) -> None:
    """Also where they were made in inference mode, and PyTorch counts no changes."""
    with mode():
        check_that_it_follows(name)


def check_that_it_follows(name: str) -> None:
    graph = random_graph(5, 9, zero_length_edges=1)
    rel_pos = graph.edata["rel_pos"]
    convolution, nodes = make_convolution(FIBER, FIBER), random_features(FIBER, 5)
    geometry = EdgeGeometry.from_relative_positions(rel_pos, 1)

    def messages(of: EdgeGeometry) -> torch.Tensor:
        return convolution(nodes, {"0": rel_pos.norm(dim=-1)[:, None, None]}, graph, of)["1"]

    with backend(name):
        before = messages(geometry)
        rel_pos.copy_(rel_pos.roll(1, 1) - 0.5)  # the edge without length has one now
        found = messages(geometry)
    with backend("dense"):
        truth = messages(EdgeGeometry.from_relative_positions(rel_pos.clone(), 1))
    assert relative_error(before, truth) > 0.1
    assert relative_error(found, truth) < 1e-10
