"""The convolution alone, forward and backward, at the shapes of the workloads' hidden layers; backends and contraction orders."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import se3_fast
from bench.workloads import BACKENDS, DEVICE, build
from se3_fast import ConvSE3, EdgeGeometry, Fiber
from se3_fast.aligned import tfn_conv as aligned

LAYERS = {
    "qm9": (Fiber.create(4, 32), Fiber.create(4, 32)),
    "qm9_complete": (Fiber.create(4, 32), Fiber.create(4, 32)),
    "protein_full": (Fiber({0: 8, 1: 3}), Fiber.create(2, 16)),
    "protein_wide": (Fiber({0: 64, 1: 2}), Fiber.create(2, 64)),
}


VARIANTS = [variant for variant in ("dense", "torch by edge", "torch by source", "triton") if variant.split()[0] in BACKENDS]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", LAYERS)
def test_tfn_conv(benchmark: BenchmarkFixture, name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _, edge_features = build(name).inputs
    fiber_in, fiber_out = LAYERS[name]
    fiber_edge = Fiber({0: edge_features["0"].shape[1]})
    module = ConvSE3(fiber_in, fiber_out, fiber_edge, pool=False, max_degree=max(fiber_in.degrees)).to(DEVICE)
    nodes = {
        str(degree): torch.randn(graph.num_nodes(), channels, 2 * degree + 1, device=DEVICE, requires_grad=True)
        for degree, channels in fiber_in
    }
    invariants = torch.cat([edge_features["0"], graph.edata["rel_pos"].norm(dim=-1)[:, None, None]], 1)
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], module.max_degree)
    backend, _, order = variant.partition(" ")
    monkeypatch.setattr(aligned, "is_by_source_faster", lambda *sizes: order == "by source")

    def step() -> None:
        outputs = module(nodes, {"0": invariants}, graph, geometry)
        sum(output.sum() for output in outputs.values()).backward()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"tfn_conv {name}, forward+backward"
    benchmark.extra_info["backend"] = variant
    with se3_fast.backend(backend):
        benchmark.pedantic(step, warmup_rounds=1, rounds=5)
