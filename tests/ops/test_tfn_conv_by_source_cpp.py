"""The C++ convolution by source against ``dense`` in float64: output and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3FuseLevel, EdgeGeometry, Fiber
from se3_fast.native import library
from se3_fast.ops.tfn_conv import tfn_conv
from tests.ops.test_tfn_conv import CASES, FULL, NONE, PARTIAL, Case, assert_equal, operands, run, run_operation, run_width
from tests.support import TOLERANCE, make_convolution, random_features, random_graph, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

from se3_fast.native import tfn_conv_by_source as by_source

WITHOUT_EDGE_FEATURES = {name: case for name, case in CASES.items() if not any(case.fiber_edge)}

CPP_CASES = WITHOUT_EDGE_FEATURES | {
    "full, several slices of channels": Case({0: 33, 1: 33}, {0: 50, 1: 50}, num_edges=45),
    "full, several blocks": Case({0: 5, 1: 5, 2: 5}, {0: 17, 1: 17, 2: 17}, num_nodes=40, num_edges=97),
    "by output, several chunks of a source's edges": Case({0: 3, 1: 3}, {0: 5, 1: 2}, PARTIAL, num_nodes=3, num_edges=150),
    "by output, invariant edge features": Case({0: 4, 1: 4}, {0: 5, 1: 2}, PARTIAL, {0: 3}),
}


@pytest.fixture(autouse=True)
def by_source_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_source, "is_by_source_faster", lambda *arguments: True)


@pytest.mark.parametrize("pool", [False, True], ids=["per edge", "pooled"])
@pytest.mark.parametrize("case", CPP_CASES.values(), ids=CPP_CASES.keys())
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_dense(case: Case, pool: bool) -> None:
    assert_equal(run(case, "cpp", pool=pool), run(case, "dense", pool=pool), TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["full, 4 degrees", "by output, mixed", "by input, mixed", "pairs, protein fibers"])
@pytest.mark.usefixtures("poisoned_memory")
def test_operation_in_each_dtype(name: str, dtype: torch.dtype) -> None:
    result = run_operation(CASES[name], "cpp", dtype)
    assert {value.dtype for value in (result.outputs | result.gradients).values()} == {dtype}
    assert_equal(result, run_operation(CASES[name], "dense", torch.float64), TOLERANCE[dtype])


@pytest.mark.parametrize("width", [1, 5, 33, 70])
def test_radial_widths(width: int) -> None:
    plan = make_convolution(Fiber({0: 5, 1: 5, 2: 5}), Fiber({0: 3, 1: 3, 2: 3})).plan
    assert_equal(*(run_width(plan, width, backend) for backend in ("cpp", "dense")), TOLERANCE[torch.float64])


@pytest.mark.parametrize("pool", [False, True], ids=["per edge", "pooled"])
@pytest.mark.usefixtures("threads")
def test_source_with_very_many_edges(pool: bool) -> None:
    """More than a block holds: such a source is cut up."""
    case = Case({0: 2, 1: 2}, {0: 2, 1: 2}, num_nodes=3, num_edges=5000)
    assert_equal(run(case, "cpp", pool=pool), run(case, "torch", pool=pool), TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ["full, 4 degrees", "by output, mixed"])
def test_low_memory_has_every_gradient(name: str) -> None:
    kept, recomputed = (run(CASES[name], "cpp", low_memory=low_memory) for low_memory in (False, True))
    assert_equal(recomputed, kept, TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ["full, several blocks", "pairs, protein fibers"])
@pytest.mark.usefixtures("threads")
def test_two_runs_are_identical(name: str) -> None:
    first, second = (run(CPP_CASES[name], "cpp", torch.float32, pool=True) for _ in range(2))
    assert_equal(first, run(CPP_CASES[name], "dense", pool=True), TOLERANCE[torch.float32])
    for key, value in (first.outputs | first.gradients).items():
        assert torch.equal(value, (second.outputs | second.gradients)[key]), key


@pytest.mark.parametrize("fuse_level", [FULL, NONE], ids=["full", "pairs"])
def test_gradcheck(fuse_level: ConvSE3FuseLevel) -> None:
    fiber = Fiber({0: 2, 1: 2})
    module = make_convolution(fiber, fiber, fuse_level=fuse_level, pool=True)
    graph = random_graph(4, 6)

    def convolve(rel_pos: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        geometry = EdgeGeometry.from_relative_positions(rel_pos, 1)
        nodes = dict(zip(("0", "1"), features, strict=True))
        with se3_fast.backend("cpp"):
            return tuple(module(nodes, {"0": rel_pos.norm(dim=-1)[:, None, None]}, graph, geometry).values())

    inputs = [graph.edata["rel_pos"], *random_features(fiber, 4).values()]
    assert torch.autograd.gradcheck(convolve, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("pole", [1.0, -1.0])
def test_position_gradient_at_the_poles(pole: float, scale: float) -> None:
    """Of edges of any length: its square may neither vanish nor overflow."""
    fiber = Fiber({0: 3, 1: 3, 2: 3})
    graph, nodes, hidden, weights = operands(make_convolution(fiber, fiber).plan, 3, 2, 32)
    plan = make_convolution(fiber, fiber).plan
    gradients = []
    for backend, unit in (("dense", 1.0), ("cpp", scale)):
        near_pole = [1e-7, 2 * pole, -1e-7]
        rel_pos = (unit * torch.tensor([[0.0, pole, 0.0], near_pole], dtype=torch.float64)).requires_grad_()
        with se3_fast.backend(backend):
            geometry = EdgeGeometry.from_relative_positions(rel_pos, 2)
            outputs = tfn_conv(plan, graph, geometry, nodes, {}, hidden, weights, pool=False)
        total = sum((output * (1 + torch.arange(output.shape[-1]))).sum() for output in outputs.values())
        gradients.append(torch.autograd.grad(total, rel_pos)[0] * unit)
    assert relative_error(gradients[1], gradients[0]) < TOLERANCE[torch.float64]


def test_frozen_weights_have_no_gradient() -> None:
    plan = make_convolution(Fiber({0: 3, 1: 3}), Fiber({0: 2, 1: 2})).plan
    graph, nodes, hidden, weights = operands(plan, 5, 12, 32)
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1)
    gradients = []
    for chosen in (weights, [weight.detach() for weight in weights]):
        with se3_fast.backend("cpp"):
            outputs = tfn_conv(plan, graph, geometry, nodes, {}, hidden, chosen, pool=True)
        gradients.append(torch.autograd.grad(outputs["1"].square().sum(), [*nodes.values(), *hidden]))
    for with_weights, without in zip(*gradients, strict=True):
        assert torch.equal(with_weights, without)


def test_shapes_for_the_compiler() -> None:
    """Schema and fake results of both operations agree with what they do."""
    plan = make_convolution(Fiber({0: 3, 1: 3}), Fiber({0: 2, 1: 2})).plan
    graph, nodes, hidden, weights = operands(plan, 5, 12, 8)
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1)
    convolution = by_source.NativeConvolutionBySource(plan, graph, geometry.wigner, pool=True)
    tensors = [tensor.detach() for tensor in (*nodes.values(), *hidden, *weights)]
    arguments = convolution._arguments(tensors)
    checks = ("test_schema", "test_faketensor")
    operations = torch.ops.se3_fast_cpp
    torch.library.opcheck(operations.tfn_conv_by_source.default, arguments, test_utils=checks)
    gradients = convolution.forward(tensors)
    torch.library.opcheck(operations.tfn_conv_by_source_backward.default, (gradients, *arguments, True, True), test_utils=checks)


def test_order_of_contraction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bond graphs are contracted by edge, complete graphs by source, edge features of degree > 0 by edge."""
    monkeypatch.undo()
    fiber = Fiber.create(4, 32)
    plan, with_edges = (make_convolution(fiber, fiber, edges).plan for edges in (None, Fiber({1: 2})))
    sparse, full = random_graph(100, 200), random_graph(20, 380)
    assert not by_source.is_by_source_faster(plan, sparse, 32)
    assert by_source.is_by_source_faster(plan, full, 32)
    assert not by_source.is_by_source_faster(with_edges, full, 32)
