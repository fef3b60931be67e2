"""The Triton attention against ``dense`` in float64: output and every gradient. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Fiber, Graph
from se3_fast.layers.attention import AttentionSE3
from se3_fast.ops.edge_attention import edge_attention
from tests.support import TOLERANCE, TRITON_DEVICE, leaves, random_features, random_graph, relative_error

pytest.importorskip("triton")

NAMES = ("output", "gradient of value", "gradient of key", "gradient of query")


class Case(NamedTuple):
    """A problem; the last node has no incoming edges."""

    nodes: int
    edges: int
    heads: int
    value_width: int
    key_width: int


CASES = {
    "one of each": Case(1, 1, 1, 1, 1),
    "no edges": Case(5, 0, 2, 3, 5),
    "no nodes": Case(0, 0, 2, 3, 5),
    "about one edge a node": Case(34, 33, 3, 5, 17),
    "wide values": Case(7, 33, 1, 17, 3),
    "several groups of heads": Case(3, 40, 17, 32, 32),
    "protein_full": Case(6, 90, 4, 8, 8),
    "a few hundred features": Case(3, 9, 2, 300, 200),
}


def tensors_of(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Value, key, query and the gradient of the output, rounded to ``dtype``. Keys and queries make the softmax uneven."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (case.edges, case.heads, case.value_width),
        (case.edges, case.heads, case.key_width),
        (case.nodes, case.heads, case.key_width),
        (case.nodes, case.heads, case.value_width),
    )
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[1] *= 3.0
    return [tensor.to(dtype).to(TRITON_DEVICE) for tensor in tensors]


def run(backend: str, tensors: list[Tensor], graph: Graph) -> dict[str, Tensor]:
    *operands, cotangent = tensors
    operands = leaves(operands)
    with se3_fast.backend(backend):
        output = edge_attention(*operands, graph)
    return dict(zip(NAMES, (output, *torch.autograd.grad(output, operands, cotangent)), strict=True))


def assert_equals_dense(tensors: list[Tensor], graph: Graph) -> None:
    dtype = tensors[0].dtype
    results = run("triton", tensors, graph)
    truths = run("dense", [tensor.double() for tensor in tensors], graph)
    for name, truth in truths.items():
        assert results[name].dtype == dtype, name
        assert relative_error(results[name], truth) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    assert_equals_dense(tensors_of(case, dtype), random_graph(case.nodes, case.edges).to(TRITON_DEVICE))


def test_nodes_with_one_edge_and_with_ten_thousand() -> None:
    case = Case(nodes=3, edges=10001, heads=1, value_width=3, key_width=2)
    dst = torch.zeros(case.edges, dtype=torch.int64)
    dst[5000] = 2
    graph = Graph(dst, dst, case.nodes).to(TRITON_DEVICE)
    assert_equals_dense(tensors_of(case, torch.float64), graph)
    assert_equals_dense(tensors_of(case, torch.float16), graph)


def test_the_only_edge_of_a_node_gets_no_gradient_through_its_score() -> None:
    graph = Graph(torch.tensor([0, 0]), torch.tensor([1, 0]), 2).to(TRITON_DEVICE)
    results = run("triton", tensors_of(Case(2, 2, 2, 5, 3), torch.float16), graph)
    assert results["gradient of key"].abs().max() == 0
    assert results["gradient of query"].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores_do_not_overflow(dtype: torch.dtype) -> None:
    value, key, query, cotangent = tensors_of(Case(4, 40, 2, 5, 3), dtype)
    results = run("triton", [value, 1e4 * key, 1e4 * query, cotangent], random_graph(4, 40).to(TRITON_DEVICE))
    for name, result in results.items():
        assert result.isfinite().all(), name


def test_operands_of_different_dtypes_and_strides() -> None:
    """As a query in float32 beside keys in half precision, and slices of larger tensors."""
    value, key, query, cotangent = tensors_of(Case(4, 9, 2, 6, 6), torch.float32)
    value, key = value.to(torch.float16)[..., :5], key.to(torch.float16)[..., 1:4]
    query, cotangent = query[..., ::2], cotangent.to(torch.float16).transpose(0, 1).contiguous().transpose(0, 1)[..., :5]
    graph = random_graph(4, 9).to(TRITON_DEVICE)
    results = run("triton", [value, key, query, cotangent], graph)
    truths = run("dense", [tensor.double() for tensor in (value, key, query, cotangent)], graph)
    for name, truth in truths.items():
        assert relative_error(results[name], truth) < TOLERANCE[torch.float16], name
    assert results["gradient of query"].dtype == torch.float32


def test_two_runs_are_identical() -> None:
    case = Case(5, 60, 3, 5, 17)
    tensors, graph = tensors_of(case, torch.float32), random_graph(case.nodes, case.edges).to(TRITON_DEVICE)
    first, second = run("triton", tensors, graph), run("triton", tensors, graph)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_rows_beyond_32_bit_offsets() -> None:
    """On the CPU the untouched rows take no memory."""
    from se3_fast.kernels.edge_attention import attend, attend_backward

    width, used = 512, 4
    edges = 2**31 // width + used
    value, key, query, cotangent = tensors_of(Case(1, used, 1, width, 1), torch.float16)
    far_value = torch.empty(edges, 1, width, dtype=value.dtype, device=TRITON_DEVICE)
    far_key = torch.empty(edges, 1, 1, dtype=key.dtype, device=TRITON_DEVICE)
    far_value[-used:], far_key[-used:] = value, key
    order, offsets = torch.arange(edges - used, edges, device=TRITON_DEVICE), torch.tensor([0, used], device=TRITON_DEVICE)
    near, far = (value, key, query, order - order[0], offsets), (far_value, far_key, query, order, offsets)
    assert torch.equal(attend(*far), attend(*near))
    for result, expected in zip(attend_backward(*far, cotangent), attend_backward(*near, cotangent), strict=True):
        assert torch.equal(result[-used:], expected)


def test_layer_equals_dense() -> None:
    """Values of degrees that the keys do not have."""
    value_fiber, key_fiber = Fiber({0: 4, 1: 2, 2: 6}), Fiber({0: 2, 1: 4})
    graph = random_graph(6, 20)
    layer = AttentionSE3(2, key_fiber, value_fiber)
    inputs = (random_features(value_fiber, 20, 1), random_features(key_fiber, 20, 2), random_features(key_fiber, 6, 3))
    inputs = tuple({degree: feature.to(TRITON_DEVICE) for degree, feature in features.items()} for features in inputs)
    outputs = []
    for name in ("triton", "dense"):
        with se3_fast.backend(name):
            outputs.append(layer(*inputs, graph.to(TRITON_DEVICE)))
    for degree, truth in outputs[1].items():
        assert relative_error(outputs[0][degree], truth) < TOLERANCE[torch.float64], degree
