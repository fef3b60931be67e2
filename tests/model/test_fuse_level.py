"""Parameters of one fuse level as those of another: the same function, where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3FuseLevel, Fiber, Graph, SE3Transformer, SE3TransformerPooled, build_for_state_dict, convert_fuse_level
from tests.support import random_features, random_graph, relative_error

FULL, PARTIAL, NONE = ConvSE3FuseLevel.FULL, ConvSE3FuseLevel.PARTIAL, ConvSE3FuseLevel.NONE
DOWNWARDS = [(FULL, PARTIAL), (FULL, NONE), (PARTIAL, NONE)]

UNIFORM = {"fiber_in": Fiber.create(3, 4), "fiber_hidden": Fiber.create(3, 4), "fiber_out": Fiber.create(3, 4)}
MODELS: dict[str, dict[str, Any]] = {
    "uniform": {**UNIFORM, "fiber_edge": Fiber({0: 2})},
    "edge features of degree 1": {**UNIFORM, "fiber_edge": Fiber({0: 2, 1: 1})},
    "protein": {
        "fiber_in": Fiber({0: 5, 1: 3}),
        "fiber_hidden": Fiber.create(2, 4),
        "fiber_out": Fiber({0: 3, 1: 2}),
        "fiber_edge": Fiber({0: 3}),
    },
    "fused by input degree": {"fiber_in": Fiber({0: 3}), "fiber_hidden": Fiber({0: 4, 1: 8}), "fiber_out": Fiber({0: 2, 1: 2})},
}
COMMON: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "channels_div": 2}


def outputs(model: torch.nn.Module, fibers: dict[str, Any], graph: Graph) -> dict[str, Tensor]:
    nodes = random_features(fibers["fiber_in"], graph.num_nodes())
    edges = random_features(fibers.get("fiber_edge", Fiber({})), graph.num_edges())
    with torch.no_grad():
        return model(graph, nodes, edges)


def trained(fibers: dict[str, Any], level: ConvSE3FuseLevel, **arguments: Any) -> SE3Transformer:
    """A model with no parameter left at a value that would hide an error (the norms' scales are 1 at first, their shifts 0)."""
    torch.manual_seed(0)
    model = SE3Transformer(**fibers, **{**COMMON, **arguments}, fuse_level=level).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("use_layer_norm", [True, False], ids=["layer norm", "plain"])
@pytest.mark.parametrize(("high", "low"), DOWNWARDS, ids=lambda level: level.name)
@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays_the_same(name: str, high: ConvSE3FuseLevel, low: ConvSE3FuseLevel, use_layer_norm: bool) -> None:
    fibers = MODELS[name]
    arguments = {**fibers, **COMMON, "use_layer_norm": use_layer_norm}
    model = trained(fibers, high, use_layer_norm=use_layer_norm)
    state = convert_fuse_level(SE3Transformer, model.state_dict(), low, **arguments)
    converted = SE3Transformer(**arguments, fuse_level=low).double()
    converted.load_state_dict(state)
    graph = random_graph(6, 20, zero_length_edges=2)
    for backend in ("dense", "auto"):
        with se3_fast.backend(backend):
            truth, values = outputs(model, fibers, graph), outputs(converted, fibers, graph)
        for degree in truth:
            assert relative_error(values[degree], truth[degree]) < 1e-12, (backend, degree)


def test_a_change_downwards_can_be_undone() -> None:
    arguments = {**UNIFORM, **COMMON}
    model = trained(UNIFORM, FULL)
    for steps in ((PARTIAL, FULL), (NONE, FULL), (PARTIAL, NONE, PARTIAL, FULL)):
        state = model.state_dict()
        for level in steps:
            state = convert_fuse_level(SE3Transformer, state, level, **arguments)
        assert list(state) == list(model.state_dict())
        for name, truth in model.state_dict().items():
            assert relative_error(state[name], truth) < 1e-15, name


@pytest.mark.parametrize(("high", "low"), DOWNWARDS, ids=lambda level: level.name)
def test_profiles_that_differ_are_not_joined(high: ConvSE3FuseLevel, low: ConvSE3FuseLevel) -> None:
    state = trained(UNIFORM, low).state_dict()
    with pytest.raises(ValueError, match=r"fuse_level: expected 'graph_modules\.0\.to_key_value\.conv.* equal hidden layers"):
        convert_fuse_level(SE3Transformer, state, high, **UNIFORM, **COMMON)


def test_the_pooled_model_and_new_memory() -> None:
    arguments: dict[str, Any] = {
        "fiber_in": Fiber({0: 3}),
        "fiber_out": Fiber({0: 8}),
        "fiber_edge": Fiber({}),
        "num_degrees": 3,
        "num_channels": 4,
        "output_dim": 1,
        **COMMON,
    }
    model = SE3TransformerPooled(**arguments, fuse_level=FULL).double()
    state = convert_fuse_level(SE3TransformerPooled, model.state_dict(), NONE, **arguments)
    pointers = [tensor.data_ptr() for tensor in (*model.state_dict().values(), *state.values())]
    assert len(set(pointers)) == len(pointers)
    assert build_for_state_dict(SE3TransformerPooled, state, **arguments).transformer.fuse_level is NONE
    converted = SE3TransformerPooled(**arguments, fuse_level=NONE).double()
    converted.load_state_dict(state)
    graph = random_graph(5, 12)
    truth = outputs(model, arguments, graph)
    assert relative_error(outputs(converted, arguments, graph), truth) < 1e-12  # type: ignore[arg-type]


def test_parameters_of_another_model_are_refused() -> None:
    state = trained(UNIFORM, FULL).state_dict()
    with pytest.raises(ValueError, match=r"state_dict: expected 'graph_modules\.0"):
        convert_fuse_level(SE3Transformer, state, NONE, **{**UNIFORM, **COMMON, "channels_div": 1})
