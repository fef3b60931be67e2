"""What is changed in place between forward and backward pass is noticed; parameters that nothing depends on have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3, ConvSE3FuseLevel, Fiber, Graph, SE3Transformer
from tests.support import BACKENDS, device_of, make_convolution, random_features, random_graph, relative_error

NUM_NODES, NUM_EDGES = 4, 9
FIBER = Fiber({0: 2, 1: 2})

Inputs = dict[str, Tensor]


def make_model(**arguments: object) -> SE3Transformer:
    torch.manual_seed(0)
    arguments = {"num_layers": 1, "num_heads": 2, "channels_div": 1, "fiber_edge": Fiber({0: 1, 1: 1})} | arguments
    return SE3Transformer(fiber_in=FIBER, fiber_hidden=FIBER, fiber_out=FIBER, **arguments)  # type: ignore[arg-type]


def inputs_on(device: torch.device) -> tuple[Graph, Inputs]:
    """A graph, and all other inputs by name."""
    graph = random_graph(NUM_NODES, NUM_EDGES)
    nodes, edges = random_features(FIBER, NUM_NODES), random_features(Fiber({0: 1, 1: 1}), NUM_EDGES, seed=2)
    inputs = {f"node {key}": tensor for key, tensor in nodes.items()} | {f"edge {key}": tensor for key, tensor in edges.items()}
    inputs["rel_pos"] = graph.edata["rel_pos"]
    moved = Graph(*graph.edges(), NUM_NODES).to(device)
    return moved, {name: tensor.float().to(device) for name, tensor in inputs.items()}


def evaluate(model: SE3Transformer, graph: Graph, inputs: Inputs) -> Tensor | dict[str, Tensor]:
    graph.edata["rel_pos"] = inputs["rel_pos"]
    nodes, edges = ({key: inputs[f"{kind} {key}"] for key in ("0", "1")} for kind in ("node", "edge"))
    return model(graph, nodes, edges)


@pytest.fixture(params=["by edge", "by source"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of contraction, where there are no edge features of degree > 0."""
    monkeypatch.setattr(ConvSE3, "contraction_order", request.param.removeprefix("by "))


def change(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(tensor.flip(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("low_memory", [False, True], ids=["kept", "low memory"])
def test_inputs_changed_between_forward_and_backward(low_memory: bool, backend: str) -> None:
    """Edges, positions and features: either they were copied, and the gradient is right, or it is refused."""
    device = device_of(backend)
    model = make_model(low_memory=low_memory, fuse_level=ConvSE3FuseLevel.FULL).to(device)
    refused = set()
    with se3_fast.backend(backend):
        graph, inputs = inputs_on(device)
        truth = torch.autograd.grad(_total(evaluate(model, graph, inputs)), list(model.parameters()))
        for name in ("src", "dst", *inputs) if backend != "triton" else ("src", "dst", "node 1"):  # the interpreter takes its time
            graph, inputs = inputs_on(device)
            total = _total(evaluate(model, graph, inputs))
            change(getattr(graph, name) if name in ("src", "dst") else inputs[name])
            try:
                gradients = torch.autograd.grad(total, list(model.parameters()))
            except RuntimeError as error:
                assert "modified by an inplace operation" in str(error) or "changed in place since" in str(error)
                refused.add(name)
                continue
            for gradient, expected in zip(gradients, truth, strict=True):
                assert relative_error(gradient, expected) < 1e-4, name
    assert {"src", "dst"} <= refused


def _total(output: Tensor | dict[str, Tensor]) -> Tensor:
    outputs = output.values() if isinstance(output, dict) else [output]
    return sum((tensor * (1 + torch.arange(tensor.shape[-1], device=tensor.device))).sum() for tensor in outputs)  # type: ignore[return-value]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("order")
def test_edges_changed_in_either_order_of_contraction(backend: str) -> None:
    device = device_of(backend)
    convolution = make_convolution(FIBER, FIBER, pool=True).float().to(device)
    for name in ("src", "dst"):
        graph, inputs = inputs_on(device)
        nodes = {key: inputs[f"node {key}"].requires_grad_() for key in ("0", "1")}
        with se3_fast.backend(backend):
            geometry = se3_fast.EdgeGeometry.from_relative_positions(inputs["rel_pos"], 1)
            output = convolution(nodes, {"0": inputs["edge 0"]}, graph, geometry)
            change(getattr(graph, name))
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                _total(output).backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_edges_changed_between_calls(backend: str) -> None:
    """What was made of them is made again."""
    device = device_of(backend)
    model = make_model().to(device)
    with se3_fast.backend(backend), torch.no_grad():
        graph, inputs = inputs_on(device)
        evaluate(model, graph, inputs)
        change(graph.src)
        change(graph.dst)
        fresh = Graph(graph.src.clone(), graph.dst.clone(), NUM_NODES)
        changed, expected = (evaluate(model, each, inputs) for each in (graph, fresh))
    for key, value in changed.items():  # type: ignore[union-attr]
        assert torch.equal(value, expected[key])  # type: ignore[index, call-overload]


@pytest.mark.parametrize("backend", ["dense", "cpp"])
def test_parameters_changed_under_low_memory(backend: str) -> None:
    model = make_model(low_memory=True)
    with se3_fast.backend(backend):
        total = _total(evaluate(model, *inputs_on(torch.device("cpu"))))
        change(model.graph_modules[0].to_key_value.radial_profiles[0].net[0].weight)  # type: ignore[union-attr, operator]
        with pytest.raises(RuntimeError, match=r"in ?place"):
            total.backward()


def without_gradient(model: SE3Transformer, choose: Callable[[object], Tensor], backend: str) -> set[str]:
    """The parameters that have no gradient."""
    model = model.to(device_of(backend))
    with se3_fast.backend(backend):
        choose(evaluate(model, *inputs_on(device_of(backend)))).square().sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize(
    ("fuse_level", "backend"),
    [*product(ConvSE3FuseLevel, ["torch", "cpp"]), (ConvSE3FuseLevel.NONE, "triton")],
)
@pytest.mark.parametrize("final_layer", ["conv", "lin", "att"])
def test_parameters_of_unused_degrees(fuse_level: ConvSE3FuseLevel, final_layer: str, backend: str) -> None:
    """With ``return_type``: as published, where nothing flows back to them."""
    arguments = {"return_type": 0, "fuse_level": fuse_level, "final_layer": final_layer}
    found = without_gradient(make_model(**arguments), lambda output: output, backend)  # type: ignore[arg-type, return-value]
    expected = without_gradient(make_model(**arguments), lambda output: output, "dense")  # type: ignore[arg-type, return-value]
    assert found == expected
    assert found or (final_layer == "conv" and fuse_level is ConvSE3FuseLevel.FULL)


@pytest.mark.parametrize("backend", ["torch", "cpp"])
@pytest.mark.parametrize("fuse_level", list(ConvSE3FuseLevel))
def test_parameters_of_degrees_that_nobody_reads(fuse_level: ConvSE3FuseLevel, backend: str) -> None:
    """All degrees are returned, the loss is of one."""
    found = without_gradient(make_model(fuse_level=fuse_level), lambda output: output["0"], backend)  # type: ignore[index]
    assert found == without_gradient(make_model(fuse_level=fuse_level), lambda output: output["0"], "dense")  # type: ignore[index]


@pytest.mark.parametrize("return_type", [0, 1])
@pytest.mark.parametrize("final_layer", ["conv", "lin", "att"])
def test_return_type_changes_no_value(final_layer: str, return_type: int) -> None:
    """Nor the parameters' names, shapes or first values."""
    whole, part = make_model(final_layer=final_layer), make_model(final_layer=final_layer, return_type=return_type)
    for (name, value), (other, expected) in zip(part.state_dict().items(), whole.state_dict().items(), strict=True):
        assert name == other and torch.equal(value, expected)
    graph, inputs = inputs_on(torch.device("cpu"))
    for backend in BACKENDS[:-1]:
        with se3_fast.backend(backend):
            everything = evaluate(whole, graph, inputs)
            assert relative_error(evaluate(part, graph, inputs), everything[str(return_type)]) < 1e-6  # type: ignore[arg-type, index]
