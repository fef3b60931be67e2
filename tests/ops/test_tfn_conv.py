"""The convolution: what holds on every backend, in both contraction orders; output and every gradient against ``dense`` in float64.

Triton's interpreter is slow: ``tests/backends/triton`` has the comparisons of that backend on smaller graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3FuseLevel, EdgeGeometry, Fiber, Graph
from se3_fast.backends.operands import Convolution
from se3_fast.backends.torch import tfn_conv as aligned
from se3_fast.contraction import ConvolutionPlan
from se3_fast.layers.convolution import ConvSE3
from se3_fast.ops.tfn_conv import tfn_conv
from tests.support import FAST_BACKENDS, TOLERANCE, device_of, make_convolution, random_features, random_graph, relative_error

ON_PROCESSORS = [name for name in FAST_BACKENDS if name != "triton"]
"""The backends that are fast enough for all cases."""

FULL, PARTIAL, NONE = ConvSE3FuseLevel.FULL, ConvSE3FuseLevel.PARTIAL, ConvSE3FuseLevel.NONE


class Case(NamedTuple):
    fiber_in: dict[int, int]
    fiber_out: dict[int, int]
    fuse_level: ConvSE3FuseLevel = FULL
    fiber_edge: dict[int, int] = {}  # noqa: RUF012
    num_nodes: int = 7
    num_edges: int = 33
    zero_length_edges: int = 0


CASES = {
    "full, 4 degrees": Case({0: 4, 1: 4, 2: 4, 3: 4}, {0: 6, 1: 6, 2: 6, 3: 6}),
    "full, 1 channel": Case({0: 1, 1: 1}, {0: 1, 1: 1}),
    "full, 3 to 17 channels": Case({0: 3, 1: 3, 2: 3}, {0: 17, 1: 17, 2: 17}),
    "full, degree 0 only": Case({0: 5}, {0: 3}),
    "by output, mixed": Case({0: 5, 1: 5, 2: 5}, {0: 7, 1: 3, 2: 1}, PARTIAL),
    "by input, mixed": Case({0: 5, 1: 3, 2: 1}, {0: 4, 1: 4, 2: 4}, PARTIAL),
    "pairs, protein fibers": Case({0: 8, 1: 3}, {0: 8, 1: 2}, NONE),
    "pairs, gaps in the degrees": Case({1: 2, 4: 3}, {0: 3, 2: 1, 3: 2}, NONE),
    "edge features of degree 1 and 2": Case({0: 3, 1: 2, 2: 4}, {0: 4, 1: 2, 2: 1}, NONE, {0: 2, 1: 2, 2: 1}),
    "edge features, full": Case({0: 4, 1: 2}, {0: 3, 1: 3}, FULL, {0: 2, 1: 2}),
    "zero-length edges": Case({0: 4, 1: 4, 2: 4}, {0: 4, 1: 4, 2: 4}, zero_length_edges=5),
    "zero-length edges, pairs": Case({0: 4, 1: 2}, {0: 3, 1: 2}, NONE, zero_length_edges=5),
    "only zero-length edges": Case({0: 4, 1: 4}, {0: 4, 1: 4}, num_edges=6, zero_length_edges=6),
    "one edge": Case({0: 4, 1: 4}, {0: 4, 1: 4}, num_edges=1),
    "no edges": Case({0: 4, 1: 4}, {0: 4, 1: 4}, num_edges=0),
    "one node, self-loops": Case({0: 4, 1: 4}, {0: 4, 1: 4}, num_nodes=1, num_edges=3, zero_length_edges=3),
}


class Result(NamedTuple):
    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]


def run(
    case: Case,
    backend: str,
    dtype: torch.dtype = torch.float64,
    pool: bool = False,
    low_memory: bool = False,
    differentiate_directions: bool = True,
) -> Result:
    """Outputs and all gradients of a convolution layer; without ``differentiate_directions`` positions count by lengths only."""
    module = make_convolution(
        Fiber(case.fiber_in), Fiber(case.fiber_out), Fiber(case.fiber_edge), case.fuse_level, pool=pool, low_memory=low_memory
    )
    device = device_of(backend)
    module = module.to(device, dtype)
    graph = random_graph(case.num_nodes, case.num_edges, zero_length_edges=case.zero_length_edges).to(device)
    rel_pos = graph.edata["rel_pos"].to(dtype).requires_grad_()
    length = rel_pos.norm(dim=-1)[:, None, None]
    nodes = leaf_features(Fiber(case.fiber_in), case.num_nodes, dtype, device, seed=1)
    edges = leaf_features(Fiber(case.fiber_edge), case.num_edges, dtype, device, seed=2)
    invariants = torch.cat([edges["0"], length], 1) if "0" in edges else length
    with se3_fast.backend(backend):
        directions = rel_pos if differentiate_directions else rel_pos.detach()
        geometry = EdgeGeometry.from_relative_positions(directions, max(*case.fiber_in, *case.fiber_out))
        outputs = module(nodes, {**edges, "0": invariants}, graph, geometry)
    cotangents = random_features(Fiber(case.fiber_out), len(outputs["0"]), seed=3) if "0" in outputs else {}
    torch.autograd.backward(list(outputs.values()), [cotangents[key].to(device, dtype) for key in outputs])
    gradients = {f"node.{key}": leaf.grad for key, leaf in nodes.items()}
    gradients |= {f"edge.{key}": leaf.grad for key, leaf in edges.items()}
    gradients |= {name: parameter.grad for name, parameter in module.named_parameters()}
    gradients["rel_pos"] = rel_pos.grad
    return Result(outputs, {name: gradient for name, gradient in gradients.items() if gradient is not None})


def leaf_features(fiber: Fiber, count: int, dtype: torch.dtype, device: torch.device, seed: int) -> dict[str, Tensor]:
    return {key: feature.to(device, dtype).requires_grad_() for key, feature in random_features(fiber, count, seed).items()}


def assert_equal(result: Result, truth: Result, tolerance: float) -> None:
    assert result.outputs.keys() == truth.outputs.keys()
    assert result.gradients.keys() == truth.gradients.keys()
    for name, value in (result.outputs | result.gradients).items():
        error = relative_error(value, (truth.outputs | truth.gradients)[name])
        assert error < tolerance, f"{name}: {error:.2e}"


@pytest.fixture(params=["by edge", "by source"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ConvSE3, "contraction_order", request.param.removeprefix("by "))
    return request.param


@pytest.mark.parametrize("backend", ON_PROCESSORS)
@pytest.mark.parametrize("pool", [False, True], ids=["per edge", "pooled"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("order")
def test_equals_dense(case: Case, pool: bool, backend: str) -> None:
    assert_equal(run(case, backend, pool=pool), run(case, "dense", pool=pool), TOLERANCE[torch.float64])


def run_operation(case: Case, backend: str, dtype: torch.dtype) -> Result:
    """The operation alone, with random h and weights; inputs are exact in bfloat16, so that dtypes can be compared."""
    plan = make_convolution(Fiber(case.fiber_in), Fiber(case.fiber_out), fuse_level=case.fuse_level).plan
    device = device_of(backend)
    graph = random_graph(case.num_nodes, case.num_edges).to(device)
    generator = torch.Generator().manual_seed(5)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64).bfloat16()
        return values.to(device, dtype).requires_grad_()

    nodes = {str(degree): leaf(case.num_nodes, channels, 2 * degree + 1) for degree, channels in plan.node_channels}
    hidden = [leaf(case.num_edges, 32) for _ in plan.groups]
    weights = [leaf(group.channels_out * group.channels_in * group.num_paths, 32) for group in plan.groups]
    with se3_fast.backend(backend):
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], plan.max_degree)
        outputs = tfn_conv(Convolution(plan, graph, geometry, nodes, {}, hidden, weights, True, ConvSE3.contraction_order))
    cotangents = random_features(Fiber(case.fiber_out), case.num_nodes, seed=3)
    torch.autograd.backward(list(outputs.values()), [cotangents[key].bfloat16().to(device, dtype) for key in outputs])
    named = {f"hidden.{index}": tensor for index, tensor in enumerate(hidden)}
    named |= {f"weight.{index}": tensor for index, tensor in enumerate(weights)} | nodes
    return Result(outputs, {name: tensor.grad for name, tensor in named.items() if tensor.grad is not None})


def run_width(plan: ConvolutionPlan, width: int, backend: str) -> Result:
    """The operation with a radial width of its own."""
    graph, nodes, hidden, weights = operands(plan, 9, 50, width)
    with se3_fast.backend(backend):
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], plan.max_degree)
        outputs = tfn_conv(Convolution(plan, graph, geometry, nodes, {}, hidden, weights, True, ConvSE3.contraction_order))
    sum((output * (1 + torch.arange(output.shape[-1]))).sum() for output in outputs.values()).backward()
    leaves = {**nodes, "hidden": hidden[0], "weight": weights[0]}
    return Result(outputs, {name: leaf.grad for name, leaf in leaves.items()})


def operands(
    plan: ConvolutionPlan, num_nodes: int, num_edges: int, width: int
) -> tuple[Graph, dict[str, Tensor], list[Tensor], list[Tensor]]:
    """A random graph, and float64 leaves: node features, h and the last radial weights."""
    generator = torch.Generator().manual_seed(5)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    nodes = {str(degree): leaf(num_nodes, channels, 2 * degree + 1) for degree, channels in plan.node_channels}
    hidden = [leaf(num_edges, width) for _ in plan.groups]
    weights = [leaf(group.channels_out * group.channels_in * group.num_paths, width) for group in plan.groups]
    return random_graph(num_nodes, num_edges), nodes, hidden, weights


@pytest.mark.parametrize("backend", ON_PROCESSORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["full, 4 degrees", "by output, mixed", "by input, mixed", "pairs, protein fibers"])
@pytest.mark.usefixtures("order")
def test_operation_in_each_dtype(name: str, dtype: torch.dtype, backend: str) -> None:
    result = run_operation(CASES[name], backend, dtype)
    assert {value.dtype for value in (result.outputs | result.gradients).values()} == {dtype}
    assert_equal(result, run_operation(CASES[name], "dense", torch.float64), TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["full, 4 degrees", "pairs, gaps in the degrees", "edge features of degree 1 and 2"])
@pytest.mark.usefixtures("order")
def test_small_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = run(CASES[name], "torch", pool=True)
    monkeypatch.setitem(aligned.CHUNK_BYTES, "cpu", 1)
    monkeypatch.setattr(aligned, "SMALLEST_CHUNK", 7)
    assert_equal(run(CASES[name], "torch", pool=True), truth, TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", ["dense", *ON_PROCESSORS])
@pytest.mark.parametrize("name", ["full, 4 degrees", "by output, mixed", "edge features of degree 1 and 2"])
@pytest.mark.usefixtures("order")
def test_low_memory_has_every_gradient(name: str, backend: str) -> None:
    kept, recomputed = (run(CASES[name], backend, low_memory=low_memory) for low_memory in (False, True))
    assert_equal(recomputed, kept, TOLERANCE[torch.float64])


@pytest.mark.usefixtures("order")
def test_two_runs_are_identical() -> None:
    first, second = (run(CASES["full, 4 degrees"], "torch", torch.float32, pool=True) for _ in range(2))
    for name, value in (first.outputs | first.gradients).items():
        assert torch.equal(value, (second.outputs | second.gradients)[name]), name


@pytest.mark.parametrize("backend", ON_PROCESSORS)
@pytest.mark.parametrize("fuse_level", [FULL, NONE], ids=["full", "pairs"])
@pytest.mark.usefixtures("order")
def test_gradcheck(fuse_level: ConvSE3FuseLevel, backend: str) -> None:
    fiber = Fiber({0: 2, 1: 2})
    module = make_convolution(fiber, fiber, fuse_level=fuse_level, pool=True)
    graph = random_graph(4, 6)

    def convolve(rel_pos: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        geometry = EdgeGeometry.from_relative_positions(rel_pos, 1)
        length = rel_pos.norm(dim=-1)[:, None, None]
        nodes = dict(zip(("0", "1"), features, strict=True))
        with se3_fast.backend(backend):
            return tuple(module(nodes, {"0": length}, graph, geometry).values())

    inputs = [graph.edata["rel_pos"], *random_features(fiber, 4).values()]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(convolve, inputs, fast_mode=backend == "torch")  # every entry takes it long


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("pole", [1.0, -1.0])
@pytest.mark.usefixtures("order")
def test_position_gradient_at_the_poles(pole: float, backend: str) -> None:
    """On the axis, beside it, and at no distance at all."""
    fiber, device = Fiber({0: 2, 1: 2, 2: 2}), device_of(backend)
    module = make_convolution(fiber, fiber, pool=False).to(device)
    graph = random_graph(3, 3).to(device)
    nodes = {key: value.to(device) for key, value in random_features(fiber, 3).items()}
    gradients = []
    for name in ("dense", backend):
        places = [[0.0, pole, 0.0], [1e-7, 2 * pole, -1e-7], [0.0, 0.0, 0.0]]
        rel_pos = torch.tensor(places, dtype=torch.float64, device=device, requires_grad=True)
        with se3_fast.backend(name):
            length = rel_pos.detach().norm(dim=-1)[:, None, None]
            outputs = module(nodes, {"0": length}, graph, EdgeGeometry.from_relative_positions(rel_pos, 2))
        weighted = [(output * (1 + torch.arange(output.shape[-1], device=device))).sum() for output in outputs.values()]
        gradients.append(torch.autograd.grad(torch.stack(weighted).sum(), rel_pos)[0])
    assert relative_error(gradients[1][:2], gradients[0][:2]) < TOLERANCE[torch.float64]
    assert not gradients[1][2].any()


@pytest.mark.parametrize("low_memory", [False, True])
def test_bytes_kept_per_edge(low_memory: bool) -> None:
    """The torch backend keeps h (32 values per edge) and no radial weights; with low_memory nothing per edge but its inputs."""
    fiber = Fiber.create(4, 8)
    module = make_convolution(fiber, fiber, pool=True, low_memory=low_memory).float()
    graph = random_graph(20, 500)
    rel_pos = graph.edata["rel_pos"].float()
    nodes = {key: value.float().requires_grad_() for key, value in random_features(fiber, 20).items()}
    invariants = rel_pos.norm(dim=-1)[:, None, None]
    geometry = EdgeGeometry.from_relative_positions(rel_pos, 3)
    inputs = {tensor.data_ptr() for tensor in (invariants, rel_pos, *nodes.values(), *module.parameters())}
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in inputs:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with se3_fast.backend("torch"), torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        module(nodes, {"0": invariants}, graph, geometry)
    per_edge = sum(kept.values()) / graph.num_edges()
    assert per_edge < (100 if low_memory else 1200)


def wrong_geometry(module: ConvSE3) -> None:
    graph = random_graph(4, 5)
    nodes = random_features(Fiber({0: 2, 1: 2}), 4)
    module(nodes, {"0": torch.zeros(5, 1, 1).double()}, graph, EdgeGeometry(graph.edata["rel_pos"], 0))


def wrong_channels(module: ConvSE3) -> None:
    graph = random_graph(4, 5)
    nodes = random_features(Fiber({0: 2, 1: 3}), 4)
    module(nodes, {"0": torch.zeros(5, 1, 1).double()}, graph, EdgeGeometry(graph.edata["rel_pos"], 1))


def missing_degree(module: ConvSE3) -> None:
    graph = random_graph(4, 5)
    nodes = random_features(Fiber({0: 2}), 4)
    module(nodes, {"0": torch.zeros(5, 1, 1).double()}, graph, EdgeGeometry(graph.edata["rel_pos"], 1))


def wrong_edges(module: ConvSE3) -> None:
    graph = random_graph(4, 5)
    nodes = random_features(Fiber({0: 2, 1: 2}), 4)
    module(nodes, {"0": torch.zeros(6, 1, 1).double()}, graph, EdgeGeometry(graph.edata["rel_pos"], 1))


def missing_length(module: ConvSE3) -> None:
    graph = random_graph(4, 5)
    nodes = random_features(Fiber({0: 2, 1: 2}), 4)
    module(nodes, {}, graph, EdgeGeometry(graph.edata["rel_pos"], 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (wrong_geometry, "geometry: expected one for degrees up to 1, got one for degrees up to 0"),
        (wrong_channels, r"node_feats\['1'\]: expected shape \[4, 2, 3\], got \[4, 3, 3\]"),
        (missing_degree, r"node_feats: expected features of degrees \[0, 1\].*'1' of shape \[4, 2, 3\] is missing"),
        (wrong_edges, "edge_feats: expected features of the graph's 5 edges, got 6"),
        (missing_length, r"edge_feats: expected features of degrees \[0\]"),
    ],
)
def test_errors(call: Callable[[ConvSE3], None], message: str) -> None:
    fiber = Fiber({0: 2, 1: 2})
    with pytest.raises(ValueError, match=message):
        call(make_convolution(fiber, fiber))
