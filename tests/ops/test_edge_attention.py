from __future__ import annotations

import math

import pytest
import torch

from se3_fast import Graph
from se3_fast.ops.edge_attention import edge_attention


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


def problem(num_nodes: int, num_edges: int, heads: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(num_edges, heads, 5, generator=generator, dtype=dtype)
    key = torch.randn(num_edges, heads, 3, generator=generator, dtype=dtype)
    query = torch.randn(num_nodes, heads, 3, generator=generator, dtype=dtype)
    return [value, key, query]


@pytest.mark.parametrize(("num_nodes", "num_edges"), [(7, 33), (1, 1), (5, 0), (2, 300)])
def test_forward_and_gradients_equal_loops(num_nodes: int, num_edges: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in problem(num_nodes, num_edges)]
    dst = torch.randint(max(num_nodes - 1, 1), (num_edges,), generator=torch.Generator().manual_seed(1))
    attended, truth = edge_attention(*tensors, incoming(dst, num_nodes)), by_loops(*tensors, dst)
    torch.testing.assert_close(attended, truth, rtol=0, atol=1e-12)
    if num_edges:
        cotangent = torch.randn_like(truth)
        expected = torch.autograd.grad(truth, tensors, cotangent)
        for gradient, correct in zip(torch.autograd.grad(attended, tensors, cotangent), expected, strict=True):
            torch.testing.assert_close(gradient, correct, rtol=0, atol=1e-12)


def test_gradcheck() -> None:
    tensors = [tensor.requires_grad_() for tensor in problem(3, 6)]
    graph = incoming(torch.tensor([0, 0, 1, 1, 1, 0]), 3)
    assert torch.autograd.gradcheck(lambda *inputs: edge_attention(*inputs, graph), tensors)


def test_isolated_nodes_get_zero() -> None:
    value, key, query = problem(4, 3)
    attended = edge_attention(value, key, query, incoming(torch.tensor([0, 0, 2]), 4))
    assert attended[[1, 3]].abs().max() == 0


def test_large_scores_do_not_overflow() -> None:
    value, key, query = problem(2, 4, dtype=torch.float32)
    attended = edge_attention(value, 1e4 * key, 1e4 * query, incoming(torch.tensor([0, 0, 1, 1]), 2))
    assert attended.isfinite().all()


def test_two_runs_are_identical() -> None:
    value, key, query = problem(50, 1000, dtype=torch.float32)
    graph = incoming(torch.randint(50, (1000,), generator=torch.Generator().manual_seed(2)), 50)
    assert torch.equal(edge_attention(value, key, query, graph), edge_attention(value, key, query, graph))


def test_bad_shapes_are_named() -> None:
    value, key, query = problem(4, 3)
    graph = incoming(torch.tensor([0, 0, 2]), 4)
    with pytest.raises(ValueError, match=r"query: expected shape \[4, 2, 3\], got \[3, 2, 3\]"):
        edge_attention(value, key, query[1:], graph)
    with pytest.raises(ValueError, match=r"key: expected shape \[3, 2, 3\], got \[3, 2, 2\]"):
        edge_attention(value, key[..., 1:], query, graph)
    with pytest.raises(ValueError, match=r"value: expected shape \[3, 2, 5\], got \[2, 2, 5\]"):
        edge_attention(value[1:], key, query, graph)
