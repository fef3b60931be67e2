"""What only the C++ convolution has, by edge and by source, and what its tiles and threads make of more cases."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3, EdgeGeometry, Fiber, Graph
from se3_fast.backends.cpp import library
from se3_fast.backends.operands import Convolution
from se3_fast.ops.tfn_conv import tfn_conv
from tests.ops import test_tfn_conv as contract
from tests.ops.test_tfn_conv import CASES, FULL, PARTIAL, Case, assert_equal, operands, run, run_width
from tests.support import TOLERANCE, make_convolution, random_features, random_graph, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

from se3_fast.backends.cpp import tfn_conv_by_source as by_source
from se3_fast.backends.cpp.tfn_conv_by_edge import NativeConvolution

FURTHER_CASES = {
    "full, tiles of two vectors and a rest": Case({0: 33, 1: 33}, {0: 50, 1: 50}, num_edges=45),
    "full, several blocks": Case({0: 5, 1: 5, 2: 5}, {0: 17, 1: 17, 2: 17}, num_nodes=40, num_edges=97),
    "by output, edge features": Case({0: 4, 1: 3}, {0: 5, 1: 2}, PARTIAL, {0: 2, 1: 3}),
    "by output, invariant edge features": Case({0: 4, 1: 4}, {0: 5, 1: 2}, PARTIAL, {0: 3}),
    "by output, several chunks of a source's edges": Case({0: 3, 1: 3}, {0: 5, 1: 2}, PARTIAL, num_nodes=3, num_edges=150),
}


@pytest.fixture(autouse=True, params=["by edge", "by source"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The contraction order; edge features of degree > 0 go by edge all the same."""
    monkeypatch.setattr(ConvSE3, "contraction_order", request.param.removeprefix("by "))
    return request.param


in_order = partial(pytest.mark.parametrize, "order", indirect=True)


@pytest.mark.parametrize("pool", [False, True], ids=["per edge", "pooled"])
@pytest.mark.parametrize("case", FURTHER_CASES.values(), ids=FURTHER_CASES.keys())
def test_equals_dense(case: Case, pool: bool) -> None:
    assert_equal(run(case, "cpp", pool=pool), run(case, "dense", pool=pool), TOLERANCE[torch.float64])


@pytest.mark.parametrize("width", [1, 5, 33, 70])
def test_radial_widths(width: int) -> None:
    plan = make_convolution(Fiber({0: 5, 1: 5, 2: 5}), Fiber({0: 3, 1: 3, 2: 3})).plan
    assert_equal(*(run_width(plan, width, backend) for backend in ("cpp", "dense")), TOLERANCE[torch.float64])


@pytest.mark.parametrize("pool", [False, True], ids=["per edge", "pooled"])
def test_many_edges_in_several_waves(pool: bool) -> None:
    case = Case({0: 2, 1: 2}, {0: 2, 1: 2}, num_nodes=300, num_edges=30_000)
    assert_equal(run(case, "cpp", pool=pool), run(case, "torch", pool=pool), TOLERANCE[torch.float64])


@pytest.mark.parametrize("num_nodes", [1, 3])
@pytest.mark.parametrize("pool", [False, True], ids=["per edge", "pooled"])
@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
@pytest.mark.usefixtures("threads")
def test_source_with_very_many_edges(pool: bool, num_nodes: int) -> None:
    """More than a block holds: such a source is cut up, and threads share it."""
    case = Case({0: 2, 1: 2}, {0: 2, 1: 2}, num_nodes=num_nodes, num_edges=5000)
    assert_equal(run(case, "cpp", pool=pool), run(case, "torch", pool=pool), TOLERANCE[torch.float64])


@pytest.mark.parametrize(
    "case",
    [FURTHER_CASES["full, several blocks"], CASES["pairs, protein fibers"]],
    ids=["full, several blocks", "pairs, protein fibers"],
)
@pytest.mark.usefixtures("threads")
def test_two_runs_are_identical(case: Case) -> None:
    first, second = (run(case, "cpp", torch.float32, pool=True) for _ in range(2))
    assert_equal(first, run(case, "dense", pool=True), TOLERANCE[torch.float32])
    for key, value in (first.outputs | first.gradients).items():
        assert torch.equal(value, (second.outputs | second.gradients)[key]), key


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("pole", [1.0, -1.0])
def test_position_gradient_of_edges_of_any_length(pole: float, scale: float) -> None:
    """Their square may neither vanish nor overflow."""
    fiber = Fiber({0: 3, 1: 3, 2: 3})
    graph, nodes, hidden, weights = operands(make_convolution(fiber, fiber).plan, 3, 2, 32)
    plan = make_convolution(fiber, fiber).plan
    gradients = []
    for backend, unit in (("dense", 1.0), ("cpp", scale)):
        near_pole = [1e-7, 2 * pole, -1e-7]
        rel_pos = (unit * torch.tensor([[0.0, pole, 0.0], near_pole], dtype=torch.float64)).requires_grad_()
        with se3_fast.backend(backend):
            geometry = EdgeGeometry.from_relative_positions(rel_pos, 2)
            outputs = tfn_conv(Convolution(plan, graph, geometry, nodes, {}, hidden, weights, False, ConvSE3.contraction_order))
        total = sum((output * (1 + torch.arange(output.shape[-1]))).sum() for output in outputs.values())
        gradients.append(torch.autograd.grad(total, rel_pos)[0] * unit)
    assert relative_error(gradients[1], gradients[0]) < TOLERANCE[torch.float64]


def test_frozen_weights_have_no_gradient() -> None:
    """The gradient of the weights is the most expensive one; it is not made where nobody asks."""
    plan = make_convolution(Fiber({0: 3, 1: 3}), Fiber({0: 2, 1: 2})).plan
    graph, nodes, hidden, weights = operands(plan, 5, 12, 32)
    frozen = [weight.detach() for weight in weights]
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1)
    gradients = []
    for chosen in (weights, frozen):
        with se3_fast.backend("cpp"):
            outputs = tfn_conv(Convolution(plan, graph, geometry, nodes, {}, hidden, chosen, True, ConvSE3.contraction_order))
        gradients.append(torch.autograd.grad(outputs["1"].square().sum(), [*nodes.values(), *hidden]))
    for with_weights, without in zip(*gradients, strict=True):
        assert torch.equal(with_weights, without)


def test_hidden_values_are_not_kept() -> None:
    """h, by far the largest operand, is made again for the backward pass."""
    num_edges, width = 700, 32
    convolution = make_convolution(Fiber({0: 1}), Fiber({0: 2}), fuse_level=FULL)
    graph = random_graph(10, num_edges)
    node_features, edge_features = random_features(Fiber({0: 1}), 10), random_features(Fiber({0: 1}), num_edges)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with se3_fast.backend("cpp"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        convolution(node_features, edge_features, graph, EdgeGeometry(graph.edata["rel_pos"], 0))
    assert 0 < max(kept) < num_edges * width


@in_order(["by edge"])
def test_node_order_does_not_matter() -> None:
    """Edges sorted by destination and edges in any order: the same sums, in the order of the edges."""
    case = FURTHER_CASES["full, several blocks"]
    plan = make_convolution(Fiber(case.fiber_in), Fiber(case.fiber_out)).plan
    graph, nodes, hidden, weights = operands(plan, 40, 97, 32)
    order = graph.dst.argsort(stable=True)
    sorted_graph = Graph(graph.src[order], graph.dst[order], 40)
    results = []
    for one, rel_pos, values in (
        (graph, graph.edata["rel_pos"], hidden[0]),
        (sorted_graph, graph.edata["rel_pos"][order], hidden[0][order]),
    ):
        with se3_fast.backend("cpp"), torch.no_grad():
            geometry = EdgeGeometry.from_relative_positions(rel_pos, 2)
            results.append(
                tfn_conv(Convolution(plan, one, geometry, nodes, {}, [values], weights, True, ConvSE3.contraction_order))
            )
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key])


@in_order(["by edge"])
def test_shapes_for_the_compiler() -> None:
    """Schema and fake results of both operations agree with what they do."""
    plan = make_convolution(Fiber({0: 3, 1: 3}), Fiber({0: 2, 1: 2})).plan
    graph, nodes, hidden, weights = operands(plan, 5, 12, 8)
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1)
    convolution = NativeConvolution(plan, graph, geometry.wigner, pool=True)
    tensors = [tensor.detach() for tensor in (*nodes.values(), *hidden, *weights)]
    arguments = [*convolution._split(tensors), geometry.wigner, graph.src, graph.dst]
    description = convolution._description(tensors)
    checks = ("test_schema", "test_faketensor")
    operations = torch.ops.se3_fast_cpp
    torch.library.opcheck(operations.tfn_conv.default, (*arguments, *graph.incoming(), *description, True), test_utils=checks)
    grads = convolution.forward(tensors)
    torch.library.opcheck(
        operations.tfn_conv_backward.default,
        (grads, *arguments, *graph.outgoing(), graph.edata["rel_pos"], *description, True, True, True),
        test_utils=checks,
    )


@in_order(["by source"])
def test_shapes_for_the_compiler_by_source() -> None:
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


@in_order(["by edge"])
@pytest.mark.skipif(torch.ops.se3_fast_cpp.instruction_set() != "avx512", reason="this is a lesser processor itself")
@pytest.mark.parametrize("instructions", ["baseline", "avx2"])
def test_on_lesser_processors(instructions: str) -> None:
    """Some comparisons with ``dense`` once more in a process that takes the processor for an older one."""
    chosen = "test_radial_widths or (test_operation_in_each_dtype and mixed and cpp) or (test_equals_dense and (several or tiles))"
    command = [sys.executable, "-m", "pytest", "-q", __file__, contract.__file__, "-k", chosen]
    environment = os.environ | {"SE3_FAST_INSTRUCTIONS": instructions}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout
    ask = "import torch, se3_fast.backends.cpp.library as l; l.is_available(); print(torch.ops.se3_fast_cpp.instruction_set())"
    answer = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == instructions
