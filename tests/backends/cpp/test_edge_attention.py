"""Attention of backend ``cpp`` against ``dense`` in float64: output and every gradient, both forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import AttentionSE3, Fiber, Graph
from se3_fast.backends.cpp import library
from se3_fast.ops.edge_attention import message_attention
from tests.support import TOLERANCE, leaves, random_features, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)


HEADS = 2

CASES = {
    "four degrees": ({0: 4, 1: 4, 2: 4, 3: 4}, {0: 4, 1: 4, 2: 4, 3: 4}, 9, 40),
    "fewer keys": ({0: 6, 1: 2, 3: 4}, {1: 10}, 5, 33),
    "one channel a head": ({0: 2}, {0: 2}, 4, 7),
    "one node": ({0: 2, 1: 2}, {0: 2, 1: 2}, 1, 3),
    "many edges of a node": ({0: 2, 1: 2}, {0: 4}, 3, 900),
    "no edges": ({0: 2, 1: 2}, {0: 2, 1: 2}, 4, 0),
}
"""Values, keys, nodes (the last one isolated), edges."""

Case = tuple[dict[int, int], dict[int, int], int, int]


def graph_of(num_nodes: int, num_edges: int) -> Graph:
    dst = torch.randint(max(num_nodes - 1, 1), (num_edges,), generator=torch.Generator().manual_seed(1))
    return Graph(torch.zeros_like(dst), dst, num_nodes)


def run(case: Case, dtype: torch.dtype, by_message: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Results by degree, and gradients of messages and queries. Inputs are exact in bfloat16, so that dtypes can be compared."""
    value_fiber, key_fiber = Fiber(case[0]), Fiber(case[1])
    graph = graph_of(*case[2:])
    messages = random_features(value_fiber + key_fiber, graph.num_edges())
    queries = random_features(key_fiber, graph.num_nodes(), seed=2)
    tensors = leaves(tensor.bfloat16().to(dtype) for tensor in (*messages.values(), *queries.values()))
    message = dict(zip(messages, tensors, strict=False))
    query = dict(zip(queries, tensors[len(messages) :], strict=True))
    if by_message:
        with se3_fast.backend("cpp"):
            results = message_attention(message, query, graph, value_fiber, HEADS)
    else:
        value = {str(degree): message[str(degree)][:, :channels] for degree, channels in value_fiber}
        key = {str(degree): message[str(degree)][:, value_fiber[degree] :] for degree in key_fiber.degrees}
        with se3_fast.backend("dense"):
            results = AttentionSE3(HEADS, key_fiber, value_fiber)(value, key, query, graph)
    outputs = list(results.values())
    cotangents = random_features(value_fiber, graph.num_nodes(), seed=3)
    gradients = torch.autograd.grad(
        outputs, tensors, [cotangents[key].bfloat16().to(dtype) for key in results], materialize_grads=True
    )
    return outputs, list(gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("threads")
def test_messages_equal_dense(case: Case, dtype: torch.dtype) -> None:
    (outputs, gradients), again = (run(case, dtype, by_message=True) for _ in range(2))
    truth = run(case, torch.float64, by_message=False)
    for result, repeated, expected in zip(outputs + gradients, again[0] + again[1], truth[0] + truth[1], strict=True):
        assert result.dtype == dtype
        assert relative_error(result, expected) < TOLERANCE[dtype]
        assert torch.equal(result, repeated)
    assert all((output[-1] == 0).all() for output in outputs if case[2] > 1)


def test_gradcheck_and_second_derivatives() -> None:
    graph = graph_of(3, 5)
    value_fiber = Fiber({0: 2, 1: 2})
    features = (*random_features(Fiber({0: 4, 1: 2}), 5).values(), *random_features(Fiber({0: 2}), 3).values())

    def function(scalars: Tensor, vectors: Tensor, query: Tensor) -> tuple[Tensor, ...]:
        with se3_fast.backend("cpp"):
            return tuple(message_attention({"0": scalars, "1": vectors}, {"0": query}, graph, value_fiber, HEADS).values())

    tensors = leaves(features)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_large_scores_do_not_overflow() -> None:
    messages = {"0": 1e4 * torch.randn(4, 4, 1)}
    with se3_fast.backend("cpp"):
        attended = message_attention(messages, {"0": 1e4 * torch.randn(2, 2, 1)}, graph_of(2, 4), Fiber({0: 2}), HEADS)
    assert attended["0"].isfinite().all()


def test_bad_shapes_are_named() -> None:
    messages, query = {"0": torch.zeros(3, 4, 1)}, {"0": torch.zeros(2, 3, 1)}
    with pytest.raises(ValueError, match=r"query\['0'\]: expected shape \[2, 2, 1\], got \[2, 3, 1\]"):
        message_attention(messages, query, graph_of(2, 3), Fiber({0: 2}), HEADS)
    with pytest.raises(ValueError, match=r"messages\['0'\]: expected shape \[4, 4, 1\], got \[3, 4, 1\]"):
        message_attention(messages, query, graph_of(2, 4), Fiber({0: 2}), HEADS)


def test_shapes_for_the_compiler() -> None:
    """Schema and fake results of both operations agree with what they do."""
    graph = graph_of(3, 5)
    arguments = ([torch.randn(5, 10, 3)], [torch.randn(3, 4, 3)], *graph.incoming(), [6], HEADS)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.se3_fast_cpp.edge_attention.default, arguments, test_utils=checks)
    gradients = [torch.randn(3, 6, 3)]
    torch.library.opcheck(torch.ops.se3_fast_cpp.edge_attention_backward.default, (gradients, *arguments), test_utils=checks)
