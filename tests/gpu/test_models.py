"""Whole models on the GPU: the backend chosen by itself, in every dtype, against ``dense`` in float64; bit for bit; captured."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import EdgeGeometry, Fiber, Graph, SE3Transformer
from se3_fast.backends.choice import selected_backend
from tests.support import random_features, random_graph, relative_error

FIBERS = {"fiber_in": Fiber({0: 8, 1: 3}), "fiber_hidden": Fiber.create(4, 32), "fiber_out": Fiber({0: 8, 1: 2})}
AUTOCAST_TOLERANCE = 3e-2
"""For autocast float16 through two blocks, norms and a pooled convolution."""


def _model(low_memory: bool, dtype: torch.dtype) -> SE3Transformer:
    torch.manual_seed(0)
    model = SE3Transformer(
        num_layers=2, num_heads=8, channels_div=2, fiber_edge=Fiber({0: 4}), tensor_cores=True, low_memory=low_memory, **FIBERS
    )
    return model.to("cuda", dtype)


def _results(model: nn.Module, dtype: torch.dtype, amp: torch.dtype | None = None) -> list[Tensor]:
    """Outputs, and the gradients of all parameters."""
    graph = random_graph(200, 1500)
    graph.edata["rel_pos"] = graph.edata["rel_pos"].to(dtype)
    nodes, edges = (
        {key: tensor.to("cuda", dtype) for key, tensor in features.items()}
        for features in (random_features(FIBERS["fiber_in"], 200), random_features(Fiber({0: 4}), 1500, seed=2))
    )
    model.zero_grad()
    with contextlib.nullcontext() if amp is None else torch.autocast("cuda", amp):
        outputs = list(model(graph.to("cuda"), nodes, edges).values())
    torch.stack([output.double().square().mean() for output in outputs]).sum().backward()
    return [*(output.detach() for output in outputs), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(
    ("dtype", "amp", "tolerance"),
    [
        (torch.float64, None, 1e-10),
        (torch.float32, None, 2e-5),
        (torch.float32, torch.float16, AUTOCAST_TOLERANCE),
        (torch.float32, torch.bfloat16, 8 * AUTOCAST_TOLERANCE),
    ],
)
def test_against_dense(dtype: torch.dtype, amp: torch.dtype | None, tolerance: float, low_memory: bool) -> None:
    with se3_fast.backend("dense"):
        expected = _results(_model(low_memory, torch.float64), torch.float64)
    found = _results(_model(low_memory, dtype), dtype, amp)
    again = _results(_model(low_memory, dtype), dtype, amp)
    assert all(torch.equal(first, second) for first, second in zip(found, again, strict=True))
    scale = max(float(tensor.norm()) for tensor in expected)
    for value, truth in zip(found, expected, strict=True):
        error = relative_error(value, truth)
        assert error < tolerance or float((value.double() - truth).norm()) < 1e-3 * tolerance * scale


def test_choice_of_backend() -> None:
    expected = "triton" if torch.cuda.get_device_capability()[0] >= 8 else "cuda"
    assert selected_backend(torch.device("cuda")) == expected


def test_captured_convolution() -> None:
    """A convolution, forward and backward, is captured in a CUDA graph and replayed on other values."""
    graph = random_graph(50, 300).to("cuda")
    model = _model(False, torch.float32)
    convolution = model.graph_modules[0].to_key_value
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"].float(), model.max_degree)
    nodes = {key: tensor.float().cuda().requires_grad_() for key, tensor in random_features(FIBERS["fiber_in"], 50).items()}
    edges = {"0": torch.randn(300, 5, 1, device="cuda")}

    def step() -> tuple[Tensor, ...]:
        output = convolution(nodes, edges, graph, geometry)
        return torch.autograd.grad(sum(message.square().sum() for message in output.values()), list(nodes.values()))

    for _ in range(3):
        step()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step()
    edges["0"].copy_(torch.randn(300, 5, 1, device="cuda"))
    captured.replay()
    for found, expected in zip(results, step(), strict=True):
        assert torch.equal(found, expected)


def test_compiled_model() -> None:
    model = _model(False, torch.float32)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    expected = _results(model, torch.float32)
    found = _results(compiled, torch.float32)
    assert max(map(relative_error, found, expected)) < 1e-3


class _OfTensors(nn.Module):
    """A model as a function of tensors alone, the graph being fixed."""

    def __init__(self, model: SE3Transformer, graph: Graph) -> None:
        super().__init__()
        self.model, self.graph = model, graph

    def forward(self, rel_pos: Tensor, scalars: Tensor, vectors: Tensor, edge_scalars: Tensor) -> Tensor:
        graph, no_edges = self.graph, self.graph.src.new_empty(0)
        graph.edata["rel_pos"] = rel_pos
        geometry = EdgeGeometry.from_relative_positions(rel_pos, self.model.max_degree, zero_length_edges=no_edges)
        return self.model(graph, {"0": scalars, "1": vectors}, {"0": edge_scalars}, geometry)["0"]


@pytest.mark.parametrize("has_position_gradient", [False, True])
def test_graphed_callable(has_position_gradient: bool) -> None:
    """``torch.cuda.make_graphed_callables``: forward and backward pass replayed on other values."""
    graph = random_graph(50, 300).to("cuda")

    def inputs(seed: int) -> tuple[Tensor, ...]:
        nodes = random_features(FIBERS["fiber_in"], 50, seed)
        rel_pos = torch.randn(300, 3, generator=torch.Generator().manual_seed(seed))
        edges = random_features(Fiber({0: 4}), 300, seed)["0"]
        tensors = tuple(tensor.float().cuda() for tensor in (rel_pos, nodes["0"], nodes["1"], edges))
        return tuple(tensor.requires_grad_(number > 0 or has_position_gradient) for number, tensor in enumerate(tensors))

    model = _OfTensors(_model(False, torch.float32), graph)
    graphed = torch.cuda.make_graphed_callables(_OfTensors(_model(False, torch.float32), graph), inputs(0))
    for seed in (1, 2):
        results = []
        for callable_ in (model, graphed):
            tensors = inputs(seed)
            output = callable_(*tensors)
            output.square().sum().backward()
            results.append([output.detach(), *(tensor.grad for tensor in tensors if tensor.requires_grad)])
        for expected, found in zip(*results, strict=True):
            assert relative_error(found, expected) < 1e-5
