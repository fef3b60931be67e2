"""Rotations and translations: f(R x + t) = D(R) f(x), for every backend, fuse level and contraction order."""

from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast import ConvSE3, ConvSE3FuseLevel, Fiber, Graph, SE3Transformer, complete_graph
from tests.support import TRITON_DEVICE, random_features, random_rotation, relative_error, rotate_features

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def rotated(graph: Graph, rotation: torch.Tensor, translation: torch.Tensor) -> Graph:
    return complete_graph(graph.ndata["pos"] @ rotation.T + translation)


def check_model(backend: str, fuse_level: ConvSE3FuseLevel, max_degree: int, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(max_degree)
    fiber_in, hidden = Fiber({0: 3, 1: 2} if max_degree else {0: 3}), Fiber.create(max_degree + 1, 4)
    model = SE3Transformer(
        num_layers=1,
        fiber_in=fiber_in,
        fiber_hidden=hidden,
        fiber_out=hidden,
        num_heads=2,
        channels_div=2,
        fiber_edge=Fiber({0: 2}),
        fuse_level=fuse_level,
    ).to(device, dtype)
    graph = complete_graph(torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=dtype))
    nodes = {key: feature.to(dtype) for key, feature in random_features(fiber_in, 6).items()}
    edges = {key: feature.to(device, dtype) for key, feature in random_features(Fiber({0: 2}), 30).items()}
    rotation = random_rotation(max_degree)
    turned = rotated(graph, rotation.to(dtype), torch.tensor([0.5, -2.0, 1.25], dtype=dtype))
    results = []
    with se3_fast.backend(backend), torch.no_grad():
        for placed, features in ((graph, nodes), (turned, rotate_features(nodes, rotation))):
            on_device = {key: feature.to(device) for key, feature in features.items()}
            outputs = model(placed.to(device), on_device, edges)
            results.append({key: output.cpu() for key, output in outputs.items()})
    for key, truth in rotate_features(results[0], rotation).items():
        assert relative_error(results[1][key], truth) < TOLERANCE[dtype], key


@pytest.mark.parametrize("backend", ["dense", "torch by edge", "torch by source"])
@pytest.mark.parametrize("fuse_level", ConvSE3FuseLevel, ids=lambda level: level.name)
@pytest.mark.parametrize("max_degree", range(5))
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_model_is_equivariant(
    backend: str,
    fuse_level: ConvSE3FuseLevel,
    max_degree: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, _, order = backend.partition(" ")
    monkeypatch.setattr(ConvSE3, "contraction_order", order.removeprefix("by ") or "edge")
    check_model(name, fuse_level, max_degree, dtype, torch.device("cpu"))


@pytest.mark.parametrize("fuse_level", ConvSE3FuseLevel, ids=lambda level: level.name)
@pytest.mark.parametrize("max_degree", [1, 4])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_model_by_triton_kernels_is_equivariant(fuse_level: ConvSE3FuseLevel, max_degree: int, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    check_model("triton", fuse_level, max_degree, dtype, TRITON_DEVICE)


@pytest.mark.parametrize("backend", ["dense", "torch"])
def test_forces_rotate_with_the_molecule(backend: str) -> None:
    torch.manual_seed(0)
    model = SE3Transformer(
        num_layers=1,
        fiber_in=Fiber({0: 3}),
        fiber_hidden=Fiber.create(3, 4),
        fiber_out=Fiber({0: 1}),
        num_heads=2,
        channels_div=2,
        return_type=0,
        pooling="avg",
    ).double()
    nodes = random_features(Fiber({0: 3}), 5)
    pos = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotation = random_rotation()

    def forces(positions: torch.Tensor) -> torch.Tensor:
        positions = positions.clone().requires_grad_()
        with se3_fast.backend(backend):
            energy = model(complete_graph(positions), nodes).sum()
        return torch.autograd.grad(energy, positions)[0]

    assert forces(pos).norm() > 0
    assert relative_error(forces(pos @ rotation.T), forces(pos) @ rotation.T) < 1e-11
