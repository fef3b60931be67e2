"""Features of bfloat16 in the compiled CPU operations: computed with in float32, and rounded once, when they are written.

So what is written is, to the bit, what PyTorch rounds the results of float32 operands of the same values to; what is no feature
(gradients of weights, of positions) is the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3, EdgeGeometry, Fiber
from se3_fast.backends.cpp import library
from tests.models import pooled_model
from tests.ops.test_tfn_conv import CASES, Case
from tests.support import make_convolution, random_graph, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

from se3_fast.backends.cpp.tfn_conv_by_edge import NativeConvolution
from se3_fast.backends.cpp.tfn_conv_by_source import NativeConvolutionBySource

CHANNELS = [1, 3, 16, 33]
SIZES = (1, 3, 5, 7, 9)
"""Components of each degree; those of the last one have no loop of their own."""

NUM_NODES, NUM_EDGES = 11, 37


def values(*shape: int, seed: int = 0) -> Tensor:
    """Exact in bfloat16."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_rounded(operation: Callable[[torch.dtype], Sequence[Tensor]]) -> None:
    """The results of an operation on features of bfloat16 and float32; both make the same calls."""
    found, expected = operation(torch.bfloat16), operation(torch.float32)
    assert any(result.dtype == torch.bfloat16 for result in found)
    for number, (result, wide) in enumerate(zip(found, expected, strict=True)):
        assert wide.dtype == torch.float32 and wide.isfinite().all()
        assert torch.equal(result, wide.to(result.dtype)), number


@pytest.mark.parametrize("channels", CHANNELS)
def test_linear(channels: int) -> None:
    def run(dtype: torch.dtype) -> list[Tensor]:
        parts = [values(NUM_NODES, count, size).to(dtype) for size in SIZES for count in (channels, 2)]
        weights = [values(5, channels + 2).float() for _ in SIZES]
        arguments = (parts, [2] * len(SIZES), weights)
        gradients = [values(NUM_NODES, 5, size, seed=1).to(dtype) for size in SIZES]
        operations = torch.ops.se3_fast_cpp
        return [*operations.linear(*arguments), *operations.linear_backward(gradients, *arguments, True, True)]

    assert_rounded(run)


@pytest.mark.parametrize("channels", CHANNELS)
def test_norm(channels: int) -> None:
    def run(dtype: torch.dtype) -> list[Tensor]:
        features = [values(NUM_NODES, channels, size).to(dtype) for size in SIZES]
        parameters = [values(len(SIZES) * channels, seed=seed).float() for seed in (2, 3)]
        gradients = [values(NUM_NODES, channels, size, seed=1).to(dtype) for size in SIZES]
        operations = torch.ops.se3_fast_cpp
        arguments = (features, *parameters, 1e-5)
        return [*operations.equivariant_norm(*arguments), *operations.equivariant_norm_backward(gradients, *arguments)]

    assert_rounded(run)


@pytest.mark.parametrize("channels", CHANNELS)
def test_attention(channels: int) -> None:
    heads = 2
    edges = random_graph(NUM_NODES, NUM_EDGES).incoming()

    def run(dtype: torch.dtype) -> list[Tensor]:
        messages = [values(NUM_EDGES, 4 * channels, size).to(dtype) for size in SIZES]
        queries = [values(NUM_NODES, 2 * channels, size).to(dtype) for size in SIZES]
        gradients = [values(NUM_NODES, 2 * channels, size, seed=1).to(dtype) for size in SIZES]
        arguments = (messages, queries, *edges, [2 * channels] * len(SIZES), heads)
        operations = torch.ops.se3_fast_cpp
        return [*operations.edge_attention(*arguments), *operations.edge_attention_backward(gradients, *arguments)]

    assert_rounded(run)


@pytest.mark.parametrize("convolution", [NativeConvolution, NativeConvolutionBySource], ids=["by edge", "by source"])
@pytest.mark.parametrize("pool", [False, True], ids=["per edge", "pooled"])
@pytest.mark.parametrize(
    "name", ["full, 4 degrees", "by output, mixed", "pairs, protein fibers", "edge features of degree 1 and 2"]
)
@pytest.mark.parametrize("width", [5, 32])
def test_convolution(name: str, pool: bool, width: int, convolution: type[NativeConvolution]) -> None:
    case = CASES[name]
    if case.fiber_edge and convolution is NativeConvolutionBySource:
        return  # these go by edge
    assert_rounded(lambda dtype: _convolution(case, width, pool, convolution, dtype))


@pytest.mark.parametrize("convolution", [NativeConvolution, NativeConvolutionBySource], ids=["by edge", "by source"])
def test_sums_over_very_many_edges_are_rounded_once(convolution: type[NativeConvolution]) -> None:
    """By edge in several waves, by source in several segments of a node: what is summed up meanwhile is float32."""
    case = Case({0: 2, 1: 2}, {0: 2, 1: 2}, num_nodes=3, num_edges=30_000)
    assert_rounded(lambda dtype: _convolution(case, 8, True, convolution, dtype))


def _convolution(case: Case, width: int, pool: bool, kind: type[NativeConvolution], dtype: torch.dtype) -> list[Tensor]:
    fibers = Fiber(case.fiber_in), Fiber(case.fiber_out), Fiber(case.fiber_edge or {})
    plan = make_convolution(*fibers, fuse_level=case.fuse_level).plan
    graph = random_graph(case.num_nodes, case.num_edges)
    rel_pos = graph.edata["rel_pos"].float()
    features = [values(case.num_nodes, channels, 2 * degree + 1) for degree, channels in plan.node_channels]
    features += [values(case.num_edges, channels, 2 * degree + 1) for degree, channels in plan.edge_channels]
    features += [values(case.num_edges, width) for _ in plan.groups]
    weights = [values(group.channels_out * group.channels_in * group.num_paths, width).float() for group in plan.groups]
    tensors = [*(feature.to(dtype) for feature in features), *weights]
    rows = case.num_nodes if pool else case.num_edges
    gradients = [values(rows, channels, 2 * degree + 1, seed=1).to(dtype) for degree, channels in plan.channels_out]
    problem = kind(plan, graph, EdgeGeometry.from_relative_positions(rel_pos, plan.max_degree).wigner_as(torch.float32), pool)
    found, of_positions = problem.backward(tensors, gradients, rel_pos, True)
    return [*problem.forward(tensors), *(gradient for gradient in (*found, of_positions) if gradient is not None)]


@pytest.mark.parametrize("channels", [1, 20])
def test_rounding(channels: int) -> None:
    """To the nearest, halves to even, infinity where no number is near enough; a NaN stays one. A number is the sum of its upper
    half, which bfloat16 holds, and of the few bits below."""
    bits = torch.cat(
        [
            torch.arange(0x3F7F0000, 0x3F830000, 0x1000),  # around 1: below, at and above all halves
            torch.arange(0x08000000, 0x08030000, 0x4000),  # small ones
            torch.arange(0x7F7E0000, 0x7F7FF000, 0x1000),  # the largest
            torch.tensor([0x7F7FF000, 0x7F800000, 0x7FC00000, 0x7FFF0000]),
        ]
    ).to(torch.int32)
    numbers = torch.cat([bits, bits | -(2**31)]).view(torch.float32)
    upper = (numbers.view(torch.int32) & -(2**16)).view(torch.float32)
    lower = torch.where(numbers.isfinite(), numbers - upper, 0.0)
    features = torch.stack([upper, lower], 1)[..., None].bfloat16()
    assert torch.equal(features.float().sum(1)[:, 0].nan_to_num(), numbers.nan_to_num())
    for size in SIZES:
        parts = features.expand(-1, -1, size).contiguous()
        (result,) = torch.ops.se3_fast_cpp.linear([parts], [1], [torch.ones(channels, 2)])
        expected = numbers.bfloat16()[:, None, None].expand(-1, channels, size)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_arrives(special: float) -> None:
    features = values(3, 20, 5)
    features[1, 17, 2] = special
    (result,) = torch.ops.se3_fast_cpp.linear([features], [1], [torch.eye(20)])
    assert torch.equal(result[:, :, [0, 1, 3, 4]], features[:, :, [0, 1, 3, 4]])
    assert torch.equal(result[[0, 2]], features[[0, 2]])
    assert torch.equal(result[1, 17, 2].nan_to_num(), features[1, 17, 2].nan_to_num())
    assert not result[1, 17, 2].isfinite()


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0x7FC00000], ids=hex)
@pytest.mark.parametrize("channels", [2, 20])
def test_no_number_stays_none(channels: int, bits: int) -> None:
    """Also where only its lower bits say so, or where rounding would carry into its sign."""
    shift = torch.zeros(channels)
    shift.view(torch.int32)[1] = bits
    for size in SIZES:
        (result,) = torch.ops.se3_fast_cpp.equivariant_norm([values(3, channels, size)], torch.ones(channels), shift, 1e-5)
        assert torch.equal(result.isnan(), (torch.arange(channels) == 1)[None, :, None].expand_as(result))


@pytest.mark.parametrize("order", ["edge", "source"])
def test_what_a_model_keeps_for_its_backward_pass(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are kept as bfloat16 under autocast, and no copies of them: clearly less than in float32."""
    monkeypatch.setattr(ConvSE3, "contraction_order", order)
    model = pooled_model(3, 16, 1)
    graph = random_graph(60, 200)
    graph = se3_fast.Graph(graph.src, graph.dst, 60, edata={"rel_pos": graph.edata["rel_pos"].float()})
    nodes, edges = {"0": values(60, 3, 1).float()}, {"0": values(200, 1, 1).float()}
    parameters = {parameter.data_ptr() for parameter in model.parameters()}

    def kept(is_cast: bool) -> tuple[Tensor, int]:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point() and tensor.data_ptr() not in parameters:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with se3_fast.backend("cpp"), saving, torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
            output = model(graph, nodes, edges)
        return output.detach(), sum(storages.values())

    wide, wide_bytes = kept(False)
    narrow, narrow_bytes = kept(True)
    assert relative_error(narrow.double(), wide.double()) < 5e-2
    assert narrow_bytes < 0.75 * wide_bytes
