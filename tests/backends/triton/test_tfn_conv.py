"""The Triton convolution contracted by edge against ``dense`` in float64: output and every gradient.

In Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3, EdgeGeometry, Fiber
from se3_fast.backends.operands import Convolution
from tests.ops.test_tfn_conv import CASES, FULL, NONE, PARTIAL, Case, assert_equal, run, run_operation
from tests.support import TOLERANCE, TRITON_DEVICE, make_convolution, random_features, random_graph

pytest.importorskip("triton")

from se3_fast.contraction import cost


@pytest.fixture(autouse=True)
def contracted_by_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConvSE3, "contraction_order", "edge")


@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name: str) -> None:
    """Half the cases pooled, half per edge, with fewer edges (17 are more than a tile has): the interpreter is slow."""
    pool = list(CASES).index(name) % 2 == 0
    case = CASES[name]._replace(num_edges=min(CASES[name].num_edges, 17 if pool else 9))
    assert_equal(*(run(case, backend, pool=pool) for backend in ("triton", "dense")), TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["by output, mixed", "pairs, protein fibers"])
def test_operation_in_each_dtype(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]._replace(num_nodes=5, num_edges=12)
    result = run_operation(case, "triton", dtype)
    assert {value.dtype for value in (result.outputs | result.gradients).values()} == {dtype}
    assert_equal(result, run_operation(case, "dense", torch.float64), TOLERANCE[dtype])


def test_two_runs_are_identical() -> None:
    case = CASES["by output, mixed"]._replace(num_nodes=5, num_edges=12)
    first, second = (run(case, "triton", torch.float32, pool=True) for _ in range(2))
    for name, value in (first.outputs | first.gradients).items():
        assert torch.equal(value, (second.outputs | second.gradients)[name]), name


def frames_of(geometry: EdgeGeometry) -> list[Tensor]:
    """The angles, and those by source if a layer has asked for them."""
    return [geometry.angles, *(geometry._ordered or ())]


@pytest.mark.parametrize("order", ["by edge", "by source"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_bytes_kept_per_edge(low_memory: bool, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By edge x~ and h are kept, by source h alone; with low_memory nothing per edge but the inputs."""
    monkeypatch.setattr(ConvSE3, "contraction_order", order.removeprefix("by "))
    fiber = Fiber.create(3, 3)
    module = make_convolution(fiber, fiber, pool=True, low_memory=low_memory).float().to(TRITON_DEVICE)
    graph = random_graph(3, 100).to(TRITON_DEVICE)
    rel_pos = graph.edata["rel_pos"].float()
    nodes = {key: value.float().to(TRITON_DEVICE).requires_grad_() for key, value in random_features(fiber, 3).items()}
    invariants = rel_pos.norm(dim=-1)[:, None, None]
    geometry = EdgeGeometry.from_relative_positions(rel_pos, 2)
    inputs = {tensor.data_ptr() for tensor in (invariants, rel_pos, *nodes.values(), *module.parameters())}
    of_edges: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in inputs and graph.num_edges() in tensor.shape:
            of_edges[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with se3_fast.backend("triton"):
        with torch.no_grad():
            module(nodes, {"0": invariants}, graph, geometry)
        inputs |= {tensor.data_ptr() for tensor in (graph.src, graph.dst, *frames_of(geometry))}  # of all layers together
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            module(nodes, {"0": invariants}, graph, geometry)
    per_edge = sum(of_edges.values()) / graph.num_edges()
    hidden, aligned_features = 32 * 4, 9 * 3 * 4
    assert per_edge <= (0 if low_memory else hidden if order == "by source" else hidden + aligned_features)


def test_hidden_of_all_groups_is_not_copied() -> None:
    """What the radial kernel wrote is what the convolution keeps."""
    plan = make_convolution(Fiber({0: 2, 1: 1}), Fiber({0: 2}), fuse_level=NONE).plan
    graph = random_graph(3, 4).to(TRITON_DEVICE)
    hidden = torch.randn(len(plan.groups), 4, 32, device=TRITON_DEVICE, requires_grad=True)
    weights = [
        torch.randn(group.channels_out * group.channels_in * group.num_paths, 32, device=TRITON_DEVICE) for group in plan.groups
    ]
    nodes = {str(degree): torch.randn(3, channels, 2 * degree + 1, device=TRITON_DEVICE) for degree, channels in plan.node_channels}
    kept: list[int] = []

    def remember(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with se3_fast.backend("triton"), torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"].float(), 1)
        call = Convolution(plan, graph, geometry, nodes, {}, hidden, weights, True, ConvSE3.contraction_order)
        se3_fast.ops.tfn_conv.tfn_conv(call)
    assert hidden.data_ptr() in kept


@pytest.mark.parametrize(
    ("case", "values"),
    [
        (Case({0: 32, 1: 32, 2: 32, 3: 32}, {0: 32, 1: 32, 2: 32, 3: 32}, FULL), 45_056),  # the table of DESIGN 5
        (Case({0: 8, 1: 8}, {0: 8, 1: 2}, PARTIAL), 8 * (8 + 8 + 2 + 3 * 2)),
    ],
    ids=["full", "by output"],
)
def test_cost_counts_radial_weights(case: Case, values: int) -> None:
    plan = make_convolution(Fiber(case.fiber_in), Fiber(case.fiber_out), fuse_level=case.fuse_level).plan
    forward, backward = cost(plan, num_nodes=10, num_edges=100, width=32, dtype=torch.float16, is_by_source=False)
    assert forward.matrix_flop == 100 * 2 * 32 * values
    assert backward.matrix_flop == 3 * forward.matrix_flop


def test_cost_grows_with_edges_and_the_size_of_values() -> None:
    plan = make_convolution(Fiber.create(4, 32), Fiber.create(4, 32)).plan
    for is_by_source in (False, True):
        small = cost(plan, 10, 100, 32, torch.float16, is_by_source)
        large = cost(plan, 10, 1000, 32, torch.float16, is_by_source)
        double = cost(plan, 10, 100, 32, torch.float32, is_by_source)
        per_edge = cost(plan, 10, 100, 32, torch.float16, is_by_source, pool=False)
        for one, more, wide, apart in zip(small, large, double, per_edge, strict=True):
            assert all(few < many for few, many in zip(one, more, strict=True))
            assert (one.matrix_flop, one.vector_flop) == (wide.matrix_flop, wide.vector_flop) and one.bytes < wide.bytes
            assert one.bytes <= apart.bytes
