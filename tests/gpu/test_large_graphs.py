"""Ten million edges: more values than 32 bits can address."""

from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast import ConvSE3, EdgeGeometry, Fiber, Graph, LinearSE3
from se3_fast.ops.edge_attention import edge_attention
from tests.support import relative_error

NUM_EDGES = 10_000_000
CHECKED = 1000


def _graph(num_nodes: int) -> Graph:
    generator = torch.Generator(device="cuda").manual_seed(0)
    ends = torch.randint(num_nodes, (2, NUM_EDGES), generator=generator, device="cuda")
    rel_pos = torch.randn(NUM_EDGES, 3, generator=generator, device="cuda")
    return Graph(*ends, num_nodes, edata={"rel_pos": rel_pos})


def _part(graph: Graph, edges: torch.Tensor) -> Graph:
    rel_pos = graph.edata["rel_pos"][edges]
    return Graph(graph.src[edges], graph.dst[edges], graph.num_nodes(), edata={"rel_pos": rel_pos})


@pytest.mark.parametrize("num_nodes", [5_000_000, 100_000])  # by edge; by source
def test_convolution(num_nodes: int) -> None:
    """224 x 10^7 aligned features: the last edges' messages and the gradients of their h against the same edges alone."""
    graph = _graph(num_nodes)
    torch.manual_seed(0)
    convolution = ConvSE3(Fiber({0: 32, 1: 64}), Fiber({0: 8}), Fiber({}), pool=False, max_degree=1).half().cuda()
    nodes = {
        "0": torch.randn(num_nodes, 32, 1, device="cuda", dtype=torch.half),
        "1": torch.randn(num_nodes, 64, 3, device="cuda", dtype=torch.half),
    }
    lengths = graph.edata["rel_pos"].norm(dim=-1)[:, None, None].half().requires_grad_()
    last = torch.arange(NUM_EDGES - CHECKED, NUM_EDGES, device="cuda")
    results = []
    for backend, edges in (("triton", None), ("torch", last)):
        part = graph if edges is None else _part(graph, edges)
        invariants = lengths if edges is None else lengths[edges].detach().requires_grad_()
        geometry = EdgeGeometry.from_relative_positions(part.edata["rel_pos"], 1)
        with se3_fast.backend(backend):
            message = convolution(nodes, {"0": invariants}, part, geometry)["0"][-CHECKED:]
            (gradient,) = torch.autograd.grad(message.float().square().sum(), invariants)
        results.append((message.detach(), gradient[-CHECKED:]))
    (message, gradient), (expected, expected_gradient) = results
    assert relative_error(message, expected) < 5e-3
    assert relative_error(gradient, expected_gradient) < 2e-2


def test_linear() -> None:
    """240 x 10^7 values: the last nodes' result and gradient against the same nodes alone."""
    num_nodes = 10_000_000
    torch.manual_seed(0)
    layer = LinearSE3(Fiber({2: 48}), Fiber({2: 48})).half().cuda()
    features = torch.randn(num_nodes, 48, 5, device="cuda", dtype=torch.half)
    results = []
    for backend, part in (("triton", features), ("torch", features[-CHECKED:])):
        leaf = part.detach().requires_grad_()
        with se3_fast.backend(backend):
            output = layer({"2": leaf})["2"]
        (gradient,) = torch.autograd.grad(output[-CHECKED:].float().square().sum(), leaf)
        results.append((output[-CHECKED:].detach().clone(), gradient[-CHECKED:].clone()))
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 5e-3


def test_attention() -> None:
    """320 values per edge: a node's result and the gradients of its last edges against the same edges alone."""
    num_nodes = 100_000
    graph = _graph(num_nodes)
    generator = torch.Generator(device="cuda").manual_seed(1)
    value, key = (
        torch.randn(NUM_EDGES, 8, width, generator=generator, device="cuda", dtype=torch.half).requires_grad_()
        for width in (24, 16)
    )
    query = torch.randn(num_nodes, 8, 16, generator=generator, device="cuda", dtype=torch.half)
    node = int(graph.dst[-1])
    edges = (graph.dst == node).nonzero().squeeze(1)
    results = []
    for backend, chosen in (("triton", None), ("torch", edges)):
        part = graph if chosen is None else _part(graph, chosen)
        operands = [tensor if chosen is None else tensor[chosen].detach().requires_grad_() for tensor in (value, key)]
        with se3_fast.backend(backend):
            output = edge_attention(*operands, query, part)[node]
            gradients = torch.autograd.grad(output.float().square().sum(), operands)
        results.append([output.detach(), *(grad if chosen is not None else grad[edges] for grad in gradients)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) < 5e-3
