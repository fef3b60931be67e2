"""Attention with the heads' features side by side: what holds on every backend, against loops and against ``dense`` in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Fiber, Graph
from se3_fast.layers.attention import AttentionSE3
from se3_fast.ops.edge_attention import edge_attention
from tests.support import (
    BACKENDS,
    FAST_BACKENDS,
    TOLERANCE,
    device_of,
    leaves,
    random_features,
    random_graph,
    relative_error,
)


def by_loops(value: torch.Tensor, key: torch.Tensor, query: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    result = torch.zeros(query.shape[0], *value.shape[1:], dtype=value.dtype)
    scale = math.sqrt(query.shape[1] * query.shape[2])
    for node in range(len(query)):
        edges = (dst == node).nonzero().squeeze(1)
        if len(edges):
            scores = torch.einsum("ehk,hk->eh", key[edges], query[node]) / scale
            result[node] = torch.einsum("eh,ehv->hv", scores.softmax(0), value[edges])
    return result


def incoming(dst: torch.Tensor, num_nodes: int) -> Graph:
    """A graph with these destinations; sources do not matter here."""
    return Graph(torch.zeros_like(dst), dst, num_nodes)


def problem(num_nodes: int, num_edges: int, backend: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_edges, 2, 5), (num_edges, 2, 3), (num_nodes, 2, 3))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device_of(backend)) for shape in shapes]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_nodes", "num_edges"), [(7, 33), (1, 1), (5, 0), (2, 300)])
def test_forward_and_gradients_equal_loops(num_nodes: int, num_edges: int, backend: str) -> None:
    tensors = leaves(problem(num_nodes, num_edges, backend))
    dst = torch.randint(max(num_nodes - 1, 1), (num_edges,), generator=torch.Generator().manual_seed(1)).to(tensors[0].device)
    with se3_fast.backend(backend):
        attended, truth = edge_attention(*tensors, incoming(dst, num_nodes)), by_loops(*tensors, dst)
    torch.testing.assert_close(attended, truth, rtol=0, atol=1e-12)
    if num_edges:
        cotangent = torch.randn_like(truth)
        expected = torch.autograd.grad(truth, tensors, cotangent)
        for gradient, correct in zip(torch.autograd.grad(attended, tensors, cotangent), expected, strict=True):
            torch.testing.assert_close(gradient, correct, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    tensors = leaves(problem(3, 6, backend))
    graph = incoming(torch.tensor([0, 0, 1, 1, 1, 0]), 3).to(device_of(backend))

    def attend(*inputs: Tensor) -> Tensor:
        with se3_fast.backend(backend):
            return edge_attention(*inputs, graph)

    assert torch.autograd.gradcheck(attend, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_isolated_nodes_get_zero(backend: str) -> None:
    graph = incoming(torch.tensor([0, 0, 2]), 4).to(device_of(backend))
    with se3_fast.backend(backend):
        attended = edge_attention(*problem(4, 3, backend), graph)
    assert attended[[1, 3]].abs().max() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_shapes_are_named(backend: str) -> None:
    value, key, query = problem(4, 3, backend)
    graph = incoming(torch.tensor([0, 0, 2]), 4).to(value.device)
    with se3_fast.backend(backend):
        with pytest.raises(ValueError, match=r"query: expected shape \[4, 2, 3\], got \[3, 2, 3\]"):
            edge_attention(value, key, query[1:], graph)
        with pytest.raises(ValueError, match=r"key: expected shape \[3, 2, 3\], got \[3, 2, 2\]"):
            edge_attention(value, key[..., 1:], query, graph)
        with pytest.raises(ValueError, match=r"value: expected shape \[3, 2, 5\], got \[2, 2, 5\]"):
            edge_attention(value[1:], key, query, graph)


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


def tensors_of(case: Case, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
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
    return [tensor.to(dtype).to(device) for tensor in tensors]


def run(backend: str, tensors: list[Tensor], graph: Graph) -> dict[str, Tensor]:
    *operands, cotangent = tensors
    operands = leaves(operands)
    with se3_fast.backend(backend):
        output = edge_attention(*operands, graph)
    return dict(zip(NAMES, (output, *torch.autograd.grad(output, operands, cotangent)), strict=True))


def assert_equals_dense(backend: str, tensors: list[Tensor], graph: Graph, smallest_tolerance: float = 0.0) -> None:
    dtype = tensors[0].dtype
    tolerance = max(TOLERANCE[dtype], smallest_tolerance if dtype == torch.float32 else 0.0)
    results = run(backend, tensors, graph)
    truths = run("dense", [tensor.double() for tensor in tensors], graph)
    for name, truth in truths.items():
        assert results[name].dtype == dtype, name
        assert relative_error(results[name], truth) < tolerance, name


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name: str, dtype: torch.dtype, backend: str) -> None:
    case, device = CASES[name], device_of(backend)
    assert_equals_dense(backend, tensors_of(case, dtype, device), random_graph(case.nodes, case.edges).to(device))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_hundreds_of_edges_a_node(dtype: torch.dtype, backend: str) -> None:
    """The gradient of a query is a sum of differences; a GPU's exponentials are off by two units in the last place."""
    device = device_of(backend)
    tensors, graph = tensors_of(Case(2, 300, 3, 5, 1), dtype, device), random_graph(2, 300).to(device)
    assert_equals_dense(backend, tensors, graph, smallest_tolerance=4e-6)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_nodes_with_one_edge_and_with_ten_thousand(backend: str) -> None:
    device = device_of(backend)
    case = Case(nodes=3, edges=10001, heads=1, value_width=3, key_width=2)
    dst = torch.zeros(case.edges, dtype=torch.int64)
    dst[5000] = 2
    graph = Graph(dst, dst, case.nodes).to(device)
    for dtype in (torch.float64, torch.float16):
        assert_equals_dense(backend, tensors_of(case, dtype, device), graph)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_the_only_edge_of_a_node_gets_no_gradient_through_its_score(backend: str) -> None:
    device = device_of(backend)
    graph = Graph(torch.tensor([0, 0]), torch.tensor([1, 0]), 2).to(device)
    results = run(backend, tensors_of(Case(2, 2, 2, 5, 3), torch.float16, device), graph)
    assert results["gradient of key"].abs().max() == 0
    assert results["gradient of query"].abs().max() == 0


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_scores_do_not_overflow(dtype: torch.dtype, backend: str) -> None:
    device = device_of(backend)
    value, key, query, cotangent = tensors_of(Case(4, 40, 2, 5, 3), dtype, device)
    results = run(backend, [value, 1e4 * key, 1e4 * query, cotangent], random_graph(4, 40).to(device))
    for name, result in results.items():
        assert result.isfinite().all(), name


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_operands_of_different_dtypes_and_strides(backend: str) -> None:
    """As a query in float32 beside keys in half precision, and slices of larger tensors."""
    device = device_of(backend)
    value, key, query, cotangent = tensors_of(Case(4, 9, 2, 6, 6), torch.float32, device)
    value, key = value.to(torch.float16)[..., :5], key.to(torch.float16)[..., 1:4]
    query, cotangent = query[..., ::2], cotangent.to(torch.float16).transpose(0, 1).contiguous().transpose(0, 1)[..., :5]
    graph = random_graph(4, 9).to(device)
    results = run(backend, [value, key, query, cotangent], graph)
    truths = run("dense", [tensor.double() for tensor in (value, key, query, cotangent)], graph)
    for name, truth in truths.items():
        assert relative_error(results[name], truth) < TOLERANCE[torch.float16], name
    assert results["gradient of query"].dtype == torch.float32


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_two_runs_are_identical(backend: str) -> None:
    device = device_of(backend)
    case = Case(5, 60, 3, 5, 17)
    tensors, graph = tensors_of(case, torch.float32, device), random_graph(case.nodes, case.edges).to(device)
    first, second = run(backend, tensors, graph), run(backend, tensors, graph)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_layer_equals_dense(backend: str) -> None:
    """Values of degrees that the keys do not have."""
    device = device_of(backend)
    value_fiber, key_fiber = Fiber({0: 4, 1: 2, 2: 6}), Fiber({0: 2, 1: 4})
    graph = random_graph(6, 20)
    layer = AttentionSE3(2, key_fiber, value_fiber)
    inputs = (random_features(value_fiber, 20, 1), random_features(key_fiber, 20, 2), random_features(key_fiber, 6, 3))
    inputs = tuple({degree: feature.to(device) for degree, feature in features.items()} for features in inputs)
    outputs = []
    for name in (backend, "dense"):
        with se3_fast.backend(name):
            outputs.append(layer(*inputs, graph.to(device)))
    for degree, truth in outputs[1].items():
        assert relative_error(outputs[0][degree], truth) < TOLERANCE[torch.float64], degree
