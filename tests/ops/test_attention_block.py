"""A whole attention block as one operation: on backends that have it, to the last bit what its parts compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import se3_fast
from se3_fast import AttentionBlockSE3, ConvSE3, ConvSE3FuseLevel, EdgeGeometry, Fiber, Graph
from se3_fast.backends import registry
from tests.support import BACKENDS, TOLERANCE, device_of, random_features, random_graph, relative_error

WHOLE = [name for name in BACKENDS if registry.implementation("attention_block", name) is not None]
"""The backends that have the operation."""

Inputs = tuple[dict[str, Tensor], dict[str, Tensor], Graph]

FIBERS: dict[str, tuple[Fiber, Fiber, Fiber, dict[str, Any]]] = {
    "hidden": (Fiber.create(3, 8), Fiber.create(3, 8), Fiber({0: 2}), {}),
    "first": (Fiber({0: 6}), Fiber.create(3, 8), Fiber({0: 2}), {}),
    "one channel": (Fiber.create(2, 1), Fiber.create(2, 1), Fiber({}), {"num_heads": 1, "channels_div": 1}),
    "three channels": (Fiber.create(2, 3), Fiber.create(2, 3), Fiber({}), {"num_heads": 1, "channels_div": 3}),
    "mixed": (Fiber({0: 5, 2: 3}), Fiber({0: 4, 1: 6, 2: 8}), Fiber({0: 1}), {"channels_div": {0: 2, 1: 1, 2: 4}}),
    "features of edges": (Fiber.create(2, 4), Fiber.create(2, 4), Fiber({0: 1, 1: 3}), {}),
    "some degrees read": (Fiber.create(3, 4), Fiber.create(3, 4), Fiber({}), {"used_degrees": [1]}),
    "no layer norm": (Fiber.create(2, 4), Fiber.create(2, 4), Fiber({}), {"use_layer_norm": False}),
    "by degree": (Fiber.create(3, 4), Fiber.create(3, 4), Fiber({}), {"fuse_level": ConvSE3FuseLevel.PARTIAL}),
    "by pair": (Fiber.create(2, 4), Fiber.create(2, 4), Fiber({}), {"fuse_level": ConvSE3FuseLevel.NONE, "low_memory": True}),
}


@pytest.fixture(autouse=True)
def by_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever order would take less time: a block that is contracted by source is made of its parts."""
    monkeypatch.setattr(ConvSE3, "contraction_order", "edge")


def make_block(fiber_in: Fiber, fiber_out: Fiber, fiber_edge: Fiber, given: dict[str, Any]) -> AttentionBlockSE3:
    """With reproducible weights, in float64."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"num_heads": 2, "channels_div": 2, "use_layer_norm": True, "max_degree": 2} | given
    arguments["max_degree"] = max(*fiber_in.degrees, *fiber_out.degrees)
    return AttentionBlockSE3(fiber_in, fiber_out, fiber_edge, **arguments).double()


def make_inputs(block: AttentionBlockSE3, graph: Graph, dtype: torch.dtype = torch.float64) -> Inputs:
    """Random features, of the edges with the length."""
    edge_fiber = block.to_key_value._fiber_with_length
    nodes = {key: tensor.to(dtype) for key, tensor in random_features(block.fiber_in, graph.num_nodes()).items()}
    edges = {key: tensor.to(dtype) for key, tensor in random_features(edge_fiber, graph.num_edges(), seed=2).items()}
    return nodes, edges, graph


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[list[int]]:
    """How often the operation of a backend is called."""
    module, calls = registry.implementation("attention_block", name), [0]
    original = module.attention_block

    def counting(call: Any) -> Any:
        calls[0] += 1
        return original(call)

    with monkeypatch.context() as patch:
        patch.setattr(module, "attention_block", counting)
        yield calls


def by_parts(block: AttentionBlockSE3, inputs: Inputs) -> dict[str, Tensor]:
    """The block with a hook on a part, so that all parts are called."""
    hook = block.to_query.register_forward_hook(lambda *_: None)
    try:
        with torch.no_grad():
            return block(*inputs)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fibers", FIBERS.values(), ids=FIBERS)
def test_bits_of_the_parts(
    fibers: tuple[Fiber, Fiber, Fiber, dict[str, Any]], dtype: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make_block(*fibers)
    graph = random_graph(7, 20)
    with se3_fast.backend("dense"), torch.no_grad():
        truth = block(*make_inputs(block, graph))
    block.to(dtype)
    inputs = make_inputs(block, graph, dtype)
    with se3_fast.backend(name), counted(monkeypatch, name) as calls, torch.no_grad():
        whole, again = block(*inputs), block(*inputs)
        assert calls[0] == 2
        parts = by_parts(block, inputs)
        assert calls[0] == 2
    for degree, expected in truth.items():
        assert relative_error(whole[degree], expected) < TOLERANCE[dtype]
        assert torch.equal(whole[degree], parts[degree])
        assert torch.equal(whole[degree], again[degree])


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(("num_nodes", "num_edges"), [(1, 0), (1, 3), (4, 0), (9, 2)])
def test_few_nodes_and_edges(num_nodes: int, num_edges: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = make_block(*FIBERS["hidden"])
    inputs = make_inputs(block, random_graph(num_nodes, num_edges))
    with se3_fast.backend(name), counted(monkeypatch, name) as calls, torch.no_grad():
        whole = block(*inputs)
        assert calls[0] == 1
        parts = by_parts(block, inputs)
    assert all(torch.equal(whole[degree], parts[degree]) for degree in parts)


@pytest.mark.parametrize("name", WHOLE)
def test_strided_operands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = make_block(*FIBERS["features of edges"])
    nodes, edges, graph = make_inputs(block, random_graph(7, 20))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.data = torch.stack([parameter, parameter], -1)[..., 0]
    strided = [{key: torch.stack([one, one], -1)[..., 0] for key, one in features.items()} for features in (nodes, edges)]
    with se3_fast.backend(name), counted(monkeypatch, name) as calls, torch.no_grad():
        whole = block(*strided, graph)
        assert calls[0] == 1
        parts = by_parts(block, (nodes, edges, graph))
    assert all(torch.equal(whole[degree], parts[degree]) for degree in parts)


def _is_hooked(block: AttentionBlockSE3) -> None:
    block.project.register_forward_pre_hook(lambda *_: None)


def _has_other_forward(block: AttentionBlockSE3) -> None:
    block.attention.forward = block.attention.forward  # type: ignore[method-assign]


def _has_other_profile(block: AttentionBlockSE3) -> None:
    block.to_key_value.conv.radial_func.net[2] = nn.SiLU()  # type: ignore[index, union-attr]


def _is_contracted_by_source(block: AttentionBlockSE3) -> None:
    block.to_key_value.contraction_order = "source"  # type: ignore[misc]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("change", [_is_hooked, _has_other_forward, _has_other_profile, _is_contracted_by_source])
def test_layers_of_another_kind_are_called(
    change: Callable[[AttentionBlockSE3], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make_block(*FIBERS["hidden"])
    change(block)
    inputs = make_inputs(block, random_graph(7, 20))
    with se3_fast.backend("dense"), torch.no_grad():
        truth = block(*inputs)
    with se3_fast.backend(name), counted(monkeypatch, name) as calls, torch.no_grad():
        found = block(*inputs)
    assert calls[0] == 0
    assert all(relative_error(found[degree], truth[degree]) < TOLERANCE[torch.float64] for degree in truth)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    "within",
    [nullcontext, forward_ad.dual_level, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["gradients", "forward mode", "autocast"],
)
def test_parts_are_called_where_they_are_needed(
    within: Callable[[], AbstractContextManager[Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = make_block(*FIBERS["hidden"]).float()
    inputs = make_inputs(block, random_graph(7, 20), torch.float32)
    grad_mode = nullcontext() if within is nullcontext else torch.no_grad()
    with se3_fast.backend(name), counted(monkeypatch, name) as calls, grad_mode, within():
        block(*inputs)
    assert calls[0] == 0


@pytest.mark.parametrize("name", WHOLE)
def test_transforms_get_the_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = make_block(*FIBERS["hidden"])
    nodes, edges, graph = make_inputs(block, random_graph(7, 20))

    def scalars(values: Tensor) -> Tensor:
        return block({**nodes, "0": values}, edges, graph)["0"]

    many = torch.stack([nodes["0"], 2 * nodes["0"]])
    with se3_fast.backend(name), counted(monkeypatch, name) as calls, torch.no_grad():
        together = torch.func.vmap(scalars)(many)
        assert calls[0] == 0
        alone = [scalars(values) for values in many]
        assert calls[0] == 2
    assert relative_error(together, torch.stack(alone)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", WHOLE)
def test_edges_without_a_frame_and_given_bases(name: str) -> None:
    block = make_block(*FIBERS["hidden"])
    for graph in (random_graph(7, 20, zero_length_edges=2), random_graph(7, 20)):
        inputs = make_inputs(block, graph)
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 2)
        keys = [f"{degree},{other}" for degree in range(3) for other in range(3)]
        halved = EdgeGeometry.from_bases({key: geometry.basis(key) / 2 for key in keys}, 2)
        for basis in (geometry, halved):
            with se3_fast.backend("dense"), torch.no_grad():
                truth = block(*inputs, basis)
            with se3_fast.backend(name), torch.no_grad():
                found = block(*inputs, basis)
            assert all(relative_error(found[degree], truth[degree]) < TOLERANCE[torch.float64] for degree in truth)


@pytest.mark.parametrize("name", WHOLE)
def test_what_does_not_fit_is_refused_as_by_the_parts(name: str) -> None:
    graph = random_graph(7, 20)

    def message(spoil: Callable[[AttentionBlockSE3, Inputs], Any], is_recorded: bool) -> str:
        block = make_block(*FIBERS["hidden"])
        inputs = make_inputs(block, graph)
        spoil(block, inputs)
        with se3_fast.backend(name), torch.set_grad_enabled(is_recorded), pytest.raises(ValueError, match="expected") as caught:
            block(*inputs, EdgeGeometry(graph.edata["rel_pos"], 2))
        return str(caught.value)

    def other_queries(block: AttentionBlockSE3, _: Inputs) -> None:
        block.to_query.weights["1"] = nn.Parameter(torch.randn(4, 9, dtype=torch.float64))

    def other_profile(block: AttentionBlockSE3, _: Inputs) -> None:
        block.to_key_value.conv.radial_func.net[-1] = nn.Linear(32, 5, bias=False).double()  # type: ignore[index, union-attr]

    def other_output(block: AttentionBlockSE3, _: Inputs) -> None:
        block.project.weights["2"] = nn.Parameter(torch.randn(8, 7, dtype=torch.float64))

    def fewer_edges(_: AttentionBlockSE3, inputs: Inputs) -> None:
        inputs[1]["0"] = inputs[1]["0"][:-1]

    for spoil in (other_queries, other_profile, other_output, fewer_edges):
        assert message(spoil, False) == message(spoil, True)


@pytest.mark.parametrize("name", BACKENDS)
def test_inference_is_what_training_computes(name: str) -> None:
    """On every backend, with the operation or without it."""
    block = make_block(*FIBERS["mixed"]).float().to(device_of(name))
    graph = random_graph(7, 20).to(device_of(name))
    nodes, edges, graph = make_inputs(block, graph, torch.float32)
    inputs = ({k: v.to(device_of(name)) for k, v in nodes.items()}, {k: v.to(device_of(name)) for k, v in edges.items()}, graph)
    with se3_fast.backend(name):
        recorded = block(*inputs)
        with torch.no_grad():
            found = block(*inputs)
        with torch.inference_mode():
            again = block(*inputs)
    for degree, expected in recorded.items():
        assert relative_error(found[degree], expected) < TOLERANCE[torch.float32]
        assert torch.equal(found[degree], again[degree])
