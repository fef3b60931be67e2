"""The Triton attention in the edges' frames against rotating the messages out and ``dense``, in float64: output and every gradient.

In Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3, EdgeGeometry, Fiber, Graph
from se3_fast.layers.attention import AttentionBlockSE3
from se3_fast.ops import convolution_attention
from se3_fast.ops.edge_attention import aligned_edge_attention, edge_attention
from tests.support import TOLERANCE, TRITON_DEVICE, device_of, leaves, random_features, random_graph, relative_error

pytest.importorskip("triton")

from se3_fast.backends.operands import AlignedMessages
from se3_fast.backends.triton.edge_frames import axis_swaps
from se3_fast.kernels.edge_attention_in_frames import (
    attend_in_frames,
    attend_in_frames_backward,
    by_edge,
    by_row,
    frame_layout,
)
from se3_fast.kernels.feature_rows import PITCH

NAMES = ("output", "gradient of messages", "gradient of query")


class Case(NamedTuple):
    """A problem; the last node has no incoming edges."""

    nodes: int
    edges: int
    heads: int
    value: dict[int, int]
    key: dict[int, int]


CASES = {
    "one of each": Case(1, 1, 1, {0: 1}, {0: 1}),
    "no edges": Case(5, 0, 2, {0: 2, 1: 4}, {0: 2, 1: 4}),
    "no nodes": Case(0, 0, 2, {0: 2, 1: 4}, {0: 2, 1: 4}),
    "about one edge a node": Case(6, 5, 2, {0: 4, 1: 4, 2: 4, 3: 4}, {0: 4, 1: 4, 2: 4, 3: 4}),
    "keys of degree 0 only": Case(5, 17, 3, {0: 9, 1: 3, 2: 6}, {0: 3}),
    "mixed fibers": Case(3, 7, 1, {0: 17, 1: 5, 3: 1}, {0: 3, 2: 5}),
    "many heads": Case(3, 17, 17, {0: 17, 1: 34}, {0: 34, 1: 17}),
    "protein_full": Case(4, 60, 4, {0: 8, 1: 8}, {0: 8, 1: 8}),
    "degrees to 6": Case(3, 3, 2, {4: 2, 5: 6, 6: 2}, {4: 4, 5: 2, 6: 2}),
    "many channels": Case(2, 3, 1, {1: 300}, {1: 200}),
}


def tensors_of(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Messages [rows, E], query and the gradient of the output. Keys and queries make the softmax uneven."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for degree in sorted(case.value.keys() | case.key.keys()):
        scale = torch.cat([torch.full((case.value.get(degree, 0),), 1.0), torch.full((case.key.get(degree, 0),), 1.5)])
        rows.append(scale.repeat(2 * degree + 1))
    scales = torch.cat(rows).double()[:, None]
    key_width, value_width = (Fiber(fiber).num_features // case.heads for fiber in (case.key, case.value))
    messages = scales * torch.randn(len(scales), case.edges, generator=generator, dtype=torch.float64)
    query = torch.randn(case.nodes, case.heads, key_width, generator=generator, dtype=torch.float64)
    gradient = torch.randn(case.nodes, case.heads, value_width, generator=generator, dtype=torch.float64)
    return [tensor.to(dtype).to(TRITON_DEVICE) for tensor in (messages, query, gradient)]


def geometry_of(graph: Graph, case: Case) -> EdgeGeometry:
    return EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], max(*case.value, *case.key))


def run_in_frames(case: Case, tensors: list[Tensor], graph: Graph) -> dict[str, Tensor]:
    *operands, cotangent = tensors
    operands = leaves(operands)
    both = Fiber({degree: case.value.get(degree, 0) + case.key.get(degree, 0) for degree in case.value.keys() | case.key.keys()})
    channels = tuple((degree, both[degree]) for degree in both.degrees)
    angles = geometry_of(graph, case).angles.to(torch.float64 if cotangent.dtype == torch.float64 else torch.float32)
    messages = AlignedMessages(operands[0], channels, angles, graph)
    with se3_fast.backend("triton"):
        output = aligned_edge_attention(messages, operands[1], tuple(sorted(case.key.items())))
    return dict(zip(NAMES, (output, *torch.autograd.grad(output, operands, cotangent)), strict=True))


def run_dense(case: Case, tensors: list[Tensor], graph: Graph) -> dict[str, Tensor]:
    """Rotates all messages out of their frames first."""
    *operands, cotangent = (tensor.double().cpu() for tensor in tensors)
    operands = leaves(operands)
    graph = graph.to("cpu")
    wigner = geometry_of(graph, case).wigner
    row, values, keys = 0, {}, {}
    for degree in sorted(case.value.keys() | case.key.keys()):
        size, channels = 2 * degree + 1, case.value.get(degree, 0) + case.key.get(degree, 0)
        start = degree * (4 * degree * degree - 1) // 3
        block = wigner[:, start : start + size * size].view(-1, size, size)
        aligned = operands[0][row : row + size * channels].view(size, channels, case.edges)
        message = torch.einsum("eij,jce->eci", block, aligned)
        values[str(degree)] = message[:, : case.value.get(degree, 0)]
        keys[str(degree)] = message[:, case.value.get(degree, 0) :]
        row += size * channels
    value = Fiber(case.value).to_attention_heads(values, case.heads)
    key = Fiber(case.key).to_attention_heads(keys, case.heads)
    with se3_fast.backend("dense"):
        output = edge_attention(value, key, operands[1], graph)
    return dict(zip(NAMES, (output, *torch.autograd.grad(output, operands, cotangent)), strict=True))


def assert_equals_dense(case: Case, tensors: list[Tensor], graph: Graph) -> None:
    dtype = tensors[0].dtype
    results = run_in_frames(case, tensors, graph)
    for name, truth in run_dense(case, tensors, graph).items():
        assert results[name].dtype == dtype, name
        assert relative_error(results[name], truth) < TOLERANCE[dtype], name


@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name: str) -> None:
    case = CASES[name]
    assert_equals_dense(case, tensors_of(case, torch.float64), random_graph(case.nodes, case.edges).to(TRITON_DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mixed fibers", "protein_full"])
def test_each_dtype(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    assert_equals_dense(case, tensors_of(case, dtype), random_graph(case.nodes, case.edges).to(TRITON_DEVICE))


def test_nodes_with_one_edge_and_with_ten_thousand() -> None:
    case = Case(nodes=3, edges=10001, heads=1, value={1: 1}, key={0: 1})
    dst = torch.zeros(case.edges, dtype=torch.int64)
    dst[5000] = 2
    rel_pos = torch.randn(case.edges, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    graph = Graph(dst, dst, case.nodes, edata={"rel_pos": rel_pos}).to(TRITON_DEVICE)
    assert_equals_dense(case, tensors_of(case, torch.float64), graph)


def test_messages_with_the_rows_of_an_edge_side_by_side() -> None:
    case = CASES["mixed fibers"]
    graph = random_graph(case.nodes, case.edges).to(TRITON_DEVICE)
    messages, query, cotangent = tensors_of(case, torch.float64)
    by_edge = messages.t().contiguous().t()
    first, second = (
        run_in_frames(case, [messages, query, cotangent], graph),
        run_in_frames(case, [by_edge, query, cotangent], graph),
    )
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_two_runs_are_identical() -> None:
    case = CASES["protein_full"]
    tensors, graph = tensors_of(case, torch.float32), random_graph(case.nodes, case.edges).to(TRITON_DEVICE)
    first, second = run_in_frames(case, tensors, graph), run_in_frames(case, tensors, graph)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_the_only_edge_of_a_node_gets_no_gradient_through_its_score() -> None:
    """Neither its key nor the query of its node."""
    case = Case(2, 2, 2, {0: 2, 1: 2}, {0: 2, 1: 2})
    rel_pos = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 0.3]], dtype=torch.float64)
    graph = Graph(torch.tensor([0, 0]), torch.tensor([1, 0]), 2, edata={"rel_pos": rel_pos}).to(TRITON_DEVICE)
    results = run_in_frames(case, tensors_of(case, torch.float16), graph)
    assert results["gradient of query"].abs().max() == 0
    assert results["gradient of messages"][2:4].abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (65, 3), (3, 130), (0, 4)])
def test_by_edge_and_by_row(shape: tuple[int, int]) -> None:
    values = torch.randn(shape, device=TRITON_DEVICE)
    of_edges = by_edge(values)
    assert torch.equal(of_edges, values.t())
    assert of_edges.is_contiguous()
    assert by_edge(of_edges.t()).data_ptr() == of_edges.data_ptr()
    assert torch.equal(by_row(of_edges), values)
    assert torch.equal(by_edge(by_row(of_edges)), of_edges)
    assert by_row(of_edges).stride(0) % PITCH == 0


def test_rows_beyond_32_bit_offsets() -> None:
    """On the CPU the untouched edges take no memory."""
    rows, used = 512, 4
    edges = 2**31 // rows + used
    layout = frame_layout(1, ((0, 256),), ((0, 256),))
    generator = torch.Generator().manual_seed(0)
    messages = torch.randn(used, rows, generator=generator).half().to(TRITON_DEVICE)
    far_messages = torch.empty(edges, rows, dtype=torch.float16, device=TRITON_DEVICE)
    far_messages[-used:] = messages
    query, cotangent = (torch.randn(1, 1, 256, generator=generator).half().to(TRITON_DEVICE) for _ in range(2))
    far_angles = torch.ones(4, edges, device=TRITON_DEVICE)
    order, offsets = torch.arange(used, device=TRITON_DEVICE), torch.tensor([0, used], device=TRITON_DEVICE)
    near = (layout, axis_swaps(0), messages, query, far_angles[:, :used].contiguous(), order, offsets)
    far = (layout, axis_swaps(0), far_messages, query, far_angles, order + edges - used, offsets)
    assert torch.equal(attend_in_frames(*far), attend_in_frames(*near))
    for result, expected in zip(
        attend_in_frames_backward(*far, cotangent), attend_in_frames_backward(*near, cotangent), strict=True
    ):
        assert torch.equal(result[-used:], expected[-used:])


class Block(NamedTuple):
    """An attention block on random features; the last node is isolated."""

    fiber_in: dict[int, int]
    fiber_out: dict[int, int]
    fiber_edge: dict[int, int] = {}  # noqa: RUF012
    edges: int = 20
    zero_length_edges: int = 0
    differentiate_positions: bool = False
    low_memory: bool = False
    by_source: bool = False


BLOCKS = {
    "first layer, low memory": (Block({0: 3}, {0: 4, 1: 4, 2: 4}, low_memory=True), True),
    "hidden layer, by source": (Block({0: 4, 1: 4}, {0: 8, 1: 8}, by_source=True), True),
    "edge features of degree 1": (Block({0: 4, 1: 2}, {0: 8, 1: 4}, {0: 2, 1: 1}), True),
    "no edges": (Block({0: 4, 1: 4}, {0: 8, 1: 8}, edges=0), True),
    "zero-length edges": (Block({0: 4, 1: 4}, {0: 8, 1: 8}, zero_length_edges=3), False),
    "gradient with respect to positions": (Block({0: 4, 1: 4}, {0: 8, 1: 8}, differentiate_positions=True), False),
}


def run_block(block: Block, backend: str) -> dict[str, Tensor]:
    """Outputs and all gradients."""
    torch.manual_seed(0)
    device = device_of(backend)
    fiber_in, fiber_out, fiber_edge = Fiber(block.fiber_in), Fiber(block.fiber_out), Fiber(block.fiber_edge)
    max_degree = max(*block.fiber_in, *block.fiber_out)
    layer = AttentionBlockSE3(
        fiber_in, fiber_out, fiber_edge, num_heads=2, channels_div=2, max_degree=max_degree, low_memory=block.low_memory
    )
    layer = layer.double().to(device)
    graph = random_graph(7, block.edges, zero_length_edges=block.zero_length_edges).to(device)
    rel_pos = graph.edata["rel_pos"].requires_grad_(block.differentiate_positions)
    nodes = {key: value.to(device).requires_grad_() for key, value in random_features(fiber_in, 7).items()}
    edges = {key: value.to(device).requires_grad_() for key, value in random_features(fiber_edge, block.edges, 5).items()}
    length = rel_pos.norm(dim=-1)[:, None, None]
    invariants = torch.cat([edges["0"], length], 1) if "0" in edges else length
    with se3_fast.backend(backend):
        geometry = EdgeGeometry.from_relative_positions(rel_pos, max_degree)
        outputs = layer(nodes, {**edges, "0": invariants}, graph, geometry)
    cotangents = random_features(fiber_out, 7, 9)
    torch.autograd.backward(list(outputs.values()), [cotangents[key].to(device) for key in outputs])
    leaves_by_name = {f"node.{key}": leaf for key, leaf in nodes.items()} | {f"edge.{key}": leaf for key, leaf in edges.items()}
    leaves_by_name |= dict(layer.named_parameters()) | {"rel_pos": rel_pos}
    return outputs | {name: leaf.grad for name, leaf in leaves_by_name.items() if leaf.grad is not None}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_stays_in_the_frames_where_it_can(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block, is_in_frames = BLOCKS[name]
    calls = []

    def count(*arguments: object) -> Tensor:
        calls.append(arguments)
        return aligned_edge_attention(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(convolution_attention, "aligned_edge_attention", count)
    monkeypatch.setattr(ConvSE3, "contraction_order", "source" if block.by_source else "edge")
    results = run_block(block, "triton")
    assert bool(calls) == is_in_frames
    for key, truth in run_block(block, "dense").items():
        assert relative_error(results[key], truth) < TOLERANCE[torch.float64], key


def test_errors() -> None:
    case = CASES["protein_full"]
    messages, query, cotangent = tensors_of(case, torch.float32)
    graph = random_graph(case.nodes, case.edges).to(TRITON_DEVICE)
    with pytest.raises(ValueError, match=r"messages: expected shape \[64, 60\], got \[64, 59\]"):
        run_in_frames(case, [messages[:, 1:], query, cotangent], graph)
    with pytest.raises(ValueError, match=r"query: expected shape \[4, 4, 8\], got \[3, 4, 8\]"):
        run_in_frames(case, [messages, query[1:], cotangent], graph)
