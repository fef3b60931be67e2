from __future__ import annotations

import pytest
import torch

from se3_fast import (
    AttentionBlockSE3,
    AttentionSE3,
    ConvSE3FuseLevel,
    EdgeGeometry,
    Fiber,
    GPooling,
    Graph,
    LinearSE3,
    SE3Transformer,
)
from tests.support import make_convolution, random_features, random_graph, relative_error

FULL, PARTIAL, NONE = ConvSE3FuseLevel.FULL, ConvSE3FuseLevel.PARTIAL, ConvSE3FuseLevel.NONE


@pytest.mark.parametrize(
    ("asked", "fiber_in", "fiber_out", "max_degree", "used"),
    [
        (FULL, {0: 4, 1: 4}, {0: 3, 1: 3}, 1, FULL),
        (FULL, {0: 4, 1: 4}, {0: 3, 1: 3}, 2, NONE),
        (FULL, {0: 4, 1: 4}, {0: 3, 1: 2}, 1, PARTIAL),
        (FULL, {0: 4, 1: 2}, {0: 3, 1: 3}, 1, PARTIAL),
        (PARTIAL, {0: 4, 1: 4}, {0: 3, 1: 3}, 1, PARTIAL),
        (PARTIAL, {0: 4}, {1: 3}, 1, NONE),
        (NONE, {0: 4, 1: 4}, {0: 3, 1: 3}, 1, NONE),
    ],
)
def test_fuse_level_that_the_fibers_allow(
    asked: ConvSE3FuseLevel,
    fiber_in: dict[int, int],
    fiber_out: dict[int, int],
    max_degree: int,
    used: ConvSE3FuseLevel,
) -> None:
    module = make_convolution(Fiber(fiber_in), Fiber(fiber_out), fuse_level=asked, max_degree=max_degree)
    assert module.used_fuse_level is used


def test_self_interaction_needs_incoming_edges() -> None:
    fiber = Fiber({0: 2, 1: 2})
    module = make_convolution(fiber, fiber, self_interaction=True)
    graph = random_graph(5, 8)
    output = module(
        random_features(fiber, 5),
        {"0": torch.ones(8, 1, 1, dtype=torch.float64)},
        graph,
        EdgeGeometry(graph.edata["rel_pos"], 1),
    )
    assert output["0"][4].abs().max() == 0 and output["0"][:4].abs().max() > 0


def test_linear_refuses_degrees_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"fiber_out: expected degrees among those of fiber_in \[0\], got \[1\]"):
        LinearSE3(Fiber({0: 2}), Fiber({0: 2, 1: 2}))


def test_linear_maps_channels() -> None:
    module = LinearSE3(Fiber({0: 2, 1: 3, 2: 1}), Fiber({0: 4, 1: 1})).double()
    features = random_features(Fiber({0: 2, 1: 3, 2: 1}), 5)
    mapped = module(features)
    assert {key: list(value.shape) for key, value in mapped.items()} == {"0": [5, 4, 1], "1": [5, 1, 3]}
    expected = torch.einsum("oi,nik->nok", module.weights["1"], features["1"])
    assert relative_error(mapped["1"], expected) < 1e-14


@pytest.mark.parametrize("channels_div", [1, {1: 2, 2: 2}])
def test_attention_needs_a_degree_to_compare(channels_div: int | dict[int, int]) -> None:
    message = r"fiber_out: expected a degree among those of fiber_in \[0, 3\], for keys and queries, got \[1, 2\]"
    with pytest.raises(ValueError, match=message):
        AttentionBlockSE3(Fiber({0: 4, 3: 4}), Fiber({1: 4, 2: 4}), num_heads=2, channels_div=channels_div)
    arguments = {"num_layers": 1, "fiber_in": Fiber({0: 4, 3: 4}), "fiber_hidden": Fiber({1: 4, 2: 4}), "num_heads": 2}
    with pytest.raises(ValueError, match=message):
        SE3Transformer(**arguments, fiber_out=Fiber({0: 1}), channels_div=channels_div)


def test_attention_takes_dicts_and_fused_tensors() -> None:
    fiber = Fiber({0: 4, 1: 4})
    attention = AttentionSE3(2, fiber, fiber)
    graph = random_graph(5, 12)
    value, key = (random_features(fiber, 12, seed) for seed in (1, 2))
    query = random_features(fiber, 5, 3)
    as_dicts = attention(value, key, query, graph)
    fused = (torch.cat(list(features.values()), -1) for features in (value, key, query))
    as_tensors = attention(*fused, graph)
    for degree, truth in as_dicts.items():
        assert truth.shape == (5, 4, 2 * int(degree) + 1)
        assert torch.equal(as_tensors[degree], truth)


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_pooling_in_half_precision_and_of_empty_graphs(pool: str) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    graph = Graph(empty, empty, 3, batch_num_nodes=[0, 2, 1, 0], batch_num_edges=[0, 0, 0, 0])
    feature = torch.tensor([[1.0], [-3.0], [-2.0]], dtype=torch.bfloat16)[..., None]
    pooled = GPooling(0, pool)({"0": feature}, graph)
    assert pooled.squeeze(1).tolist() == ([0, 1, -2, 0] if pool == "max" else [0, -1, -2, 0])


def test_pooling_refuses_what_is_not_equivariant() -> None:
    with pytest.raises(ValueError, match="'max' is for degree 0 only"):
        GPooling(1, "max")
    with pytest.raises(ValueError, match="pool: expected 'max' or 'avg', got 'sum'"):
        GPooling(0, "sum")  # type: ignore[arg-type]
