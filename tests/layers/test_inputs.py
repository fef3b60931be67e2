"""What does not fit is refused in one line that names the argument, what was expected and what came, alike on all backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from se3_fast import (
    AttentionBlockSE3,
    AttentionSE3,
    ConvSE3,
    EdgeGeometry,
    Fiber,
    GPooling,
    Graph,
    LinearSE3,
    NormSE3,
    SE3Transformer,
    SE3TransformerPooled,
    backend,
)

FIBER = Fiber({0: 2, 1: 2})
NODES, EDGES = 4, 5


def graph(**changes: Any) -> Graph:
    data = {"rel_pos": torch.randn(EDGES, 3)} | changes
    return Graph(torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 0, 3, 2, 2]), NODES, edata=data)


def features(**changes: Any) -> dict[Any, Any]:
    return {"0": torch.randn(NODES, 2, 1), "1": torch.randn(NODES, 2, 3)} | changes


def edges(**changes: Any) -> dict[Any, Any]:
    return {"0": torch.randn(EDGES, 1, 1)} | changes


NODE_CASES = {
    "float64": (features(**{"0": torch.zeros(NODES, 2, 1).double()}), r"\['0'\]: expected torch.float32 .* torch.float64"),
    "integers": (features(**{"1": torch.zeros(NODES, 2, 3).long()}), r"\['1'\]: expected float32, .* torch.int64"),
    "booleans": (features(**{"0": torch.ones(NODES, 2, 1).bool()}), r"\['0'\]: expected float32, .* torch.bool"),
    "numbers as keys": ({0: torch.zeros(NODES, 2, 1)}, r": expected degrees as text, '0', got 0"),
    "no dict": (torch.zeros(NODES, 2, 1), r": expected a dict of features by degree, got an object of type Tensor"),
    "an array": (features(**{"0": np.zeros((NODES, 2, 1))}), r"\['0'\]: expected a tensor, got an object of type ndarray"),
    "another device": (features(**{"0": torch.zeros(NODES, 2, 1, device="meta")}), r"\['0'\]: expected a tensor on cpu .* on meta"),
    "two axes": (features(**{"0": torch.zeros(NODES, 2)}), r"\['0'\]: expected shape \[N, 2, 1\], got \[4, 2\]"),
    "no degree 1": ({"0": torch.zeros(NODES, 2, 1)}, r": expected features of degrees .* '1' of shape \[4, 2, 3\] is missing"),
}


def _refused(message: str, call: Any, *arguments: Any) -> None:
    for name in ("dense", "torch", "cpp", "triton"):
        with backend(name), pytest.raises(ValueError, match=message) as raised:
            call(*arguments)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("case", NODE_CASES)
def test_node_features(case: str) -> None:
    given, message = NODE_CASES[case]
    model = SE3Transformer(1, FIBER, FIBER, FIBER, 1, 1, fiber_edge=Fiber({0: 1}))
    _refused(f"node_feats{message}", model, graph(), given, edges())
    pooled = SE3TransformerPooled(FIBER, Fiber({0: 2}), Fiber({0: 1}), 2, 2, 1, num_layers=1, num_heads=1, channels_div=1)
    _refused(f"node_feats{message}", pooled, graph(), given, edges())
    block = AttentionBlockSE3(FIBER, FIBER, Fiber({}), num_heads=1, channels_div=1, max_degree=1)
    _refused(f"node_features{message}", block, given, edges(), graph())
    convolution = ConvSE3(FIBER, FIBER, Fiber({}), max_degree=1)
    _refused(f"node_feats{message}", convolution, given, edges(), graph(), None)


@pytest.mark.parametrize("case", [case for case in NODE_CASES if case != "float64"])
def test_queries(case: str) -> None:
    given, message = NODE_CASES[case]
    if case == "no dict":  # one tensor for all degrees
        message = ": expected 3 axes, of 4 components, got shape"
    of_edges = {"0": torch.zeros(EDGES, 2, 1), "1": torch.zeros(EDGES, 2, 3)}
    _refused(f"query{message}", AttentionSE3(1, FIBER, FIBER), of_edges, of_edges, given, graph())


@pytest.mark.parametrize("case", [case for case in NODE_CASES if case not in ("another device", "float64")])
def test_layers_without_a_graph(case: str) -> None:
    given, message = NODE_CASES[case]
    _refused(f"features{message}", NormSE3(FIBER), given)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rel_pos": torch.zeros(EDGES, 3, dtype=torch.float64)}, r"rel_pos'\]: expected torch.float32 as the parameters have"),
        (
            {"rel_pos": torch.zeros(EDGES, 3, dtype=torch.int64)},
            r"rel_pos: expected float32, float64, bfloat16 or float16, got torch.int64",
        ),
        ({"rel_pos": np.zeros((EDGES, 3))}, r"rel_pos'\] as a tensor of shape \[E, 3\], got an object of type ndarray"),
        ({"rel_pos": torch.zeros(EDGES, 3, device="meta")}, r"rel_pos'\]: expected a tensor on cpu as the graph, got one on meta"),
        ({"rel_pos": torch.full((EDGES, 3), torch.nan)}, r"rel_pos: expected finite relative positions, .* at edge 0"),
        ({"rel_pos": torch.zeros(EDGES, 2)}, r"expected edata\['rel_pos'\] of shape \[5, 3\], got \[5, 2\]"),
    ],
)
def test_positions(changed: dict[str, Any], message: str) -> None:
    model = SE3Transformer(1, FIBER, FIBER, FIBER, 1, 1, fiber_edge=Fiber({0: 1}))
    _refused(message, model, graph(**changed), features(), edges())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_edge_features(dtype: torch.dtype) -> None:
    given = edges(**{"0": torch.zeros(EDGES, 1, 1, dtype=dtype)})
    message = r"edge_feats\['0'\]: expected (torch.float32 as the parameters have, got torch.float64|float32, .* torch.int64)"
    model = SE3Transformer(1, FIBER, FIBER, FIBER, 1, 1, fiber_edge=Fiber({0: 1}))
    if dtype == torch.int64:  # whole numbers go with the edge lengths
        assert torch.equal(model(graph(), features(), given)["0"].isfinite(), torch.ones(NODES, 2, 1, dtype=torch.bool))
    else:
        _refused(message, model, graph(), features(), given)
    _refused(message, ConvSE3(FIBER, FIBER, Fiber({}), max_degree=1), features(), given, graph(), None)


def test_geometry() -> None:
    with pytest.raises(ValueError, match=r"rel_pos: expected finite relative positions, got .* at edge 1"):
        EdgeGeometry(torch.tensor([[0.0, 0.0, 1.0], [0.0, torch.inf, 0.0]]), 1)
    with pytest.raises(TypeError, match="rel_pos: expected a tensor of shape"):
        EdgeGeometry(np.zeros((2, 3)), 1)  # type: ignore[arg-type]


def test_linear_and_pooling() -> None:
    _refused("features: expected degrees", LinearSE3(FIBER, FIBER), {0: torch.zeros(NODES, 2, 1)})
    _refused("features: expected degree '0'", GPooling(0), {0: torch.zeros(NODES, 2, 1)}, graph())
