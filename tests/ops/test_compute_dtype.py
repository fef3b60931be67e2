"""The precision policy: float64 stays float64 under autocast, in every operation and on every backend."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from se3_fast import ConvSE3FuseLevel, EdgeGeometry, Fiber, Graph, NormSE3, backend
from se3_fast import geometry as geometry_module
from se3_fast.autograd.compute_dtype import accumulation_dtype, compute_dtype, go_together
from se3_fast.backends import choice
from se3_fast.backends.choice import BACKENDS, implementation
from se3_fast.backends.operands import Convolution, Norm, RadialLayer
from se3_fast.contraction.depthwise import DepthwisePlan
from se3_fast.fiber import HeadFeatures
from se3_fast.ops.basis import get_basis
from se3_fast.ops.depthwise_conv import depthwise_conv
from se3_fast.ops.edge_attention import edge_attention, message_attention
from se3_fast.ops.equivariant_norm import group_norm, layer_norm
from se3_fast.ops.linear import linear, linear_per_head
from se3_fast.ops.perceptron import perceptron
from se3_fast.ops.pooling import pooling
from se3_fast.ops.radial import radial
from se3_fast.ops.tfn_conv import tfn_conv
from tests.models import pooled_model
from tests.support import make_convolution, random_graph, relative_error

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
HALF_TOLERANCE = 5e-2
"""Of bfloat16 through a whole model: its own rounding is 4e-3."""


def _model(tensor_cores: bool) -> nn.Module:
    return pooled_model(3, 4, 1, channels_div=1, tensor_cores=tensor_cores)


def _inputs(dtype: torch.dtype) -> tuple[Graph, dict[str, Tensor], dict[str, Tensor]]:
    random = random_graph(6, 14)
    graph = Graph(random.src, random.dst, 6, edata={"rel_pos": random.edata["rel_pos"].to(dtype)})
    generator = torch.Generator().manual_seed(3)
    nodes, edges = (torch.randn(count, size, 1, generator=generator) for count, size in ((6, 3), (14, 1)))
    return graph, {"0": nodes.to(dtype)}, {"0": edges.to(dtype)}


def _values(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """The output and all gradients."""
    output = model(*_inputs(dtype))
    model.zero_grad()
    output.double().sum().backward()
    return [output, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("name", ["dense", "torch", "cpp", "triton"])
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_models(name: str, dtype: torch.dtype, cast: torch.dtype | None) -> None:
    model = _model(tensor_cores=True)
    with backend("dense"):
        truth = _values(model.double(), torch.float64)
    model = model.to(dtype)
    with backend(name), torch.autocast("cpu", cast, enabled=cast is not None):
        found = _values(model, dtype)
    if cast is not None and dtype != torch.float64:  # the maximum over nodes lets gradients jump
        assert relative_error(found[0], truth[0]) < HALF_TOLERANCE
        assert all(value.isfinite().all() for value in found)
        return
    for value, true in zip(found, truth, strict=True):
        scale = max(float(true.detach().norm()), 1e-2)
        assert float((value.detach().double() - true.detach()).norm()) < TOLERANCE[dtype] * scale
    assert found[0].dtype == dtype


@pytest.mark.parametrize("name", ["dense", "torch", "cpp", "triton"])
def test_a_geometry_first_read_under_autocast_serves_float32(name: str) -> None:
    model = _model(tensor_cores=False)
    graph, nodes, edges = _inputs(torch.float32)
    with backend("dense"):
        truth = model.double()(*_inputs(torch.float64))
    model = model.float()
    geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1)
    with backend(name):
        with torch.autocast("cpu", torch.bfloat16):
            model(graph, nodes, edges, geometry)
        found = model(graph, nodes, edges, geometry)
    assert relative_error(found, truth) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_policy(dtype: torch.dtype) -> None:
    example = torch.zeros(1, dtype=dtype)
    assert compute_dtype(example) == dtype
    assert accumulation_dtype(dtype) == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert go_together(dtype, dtype, "cpu")
    assert not go_together(dtype, torch.float64 if dtype != torch.float64 else torch.float32, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(example) == (dtype if dtype == torch.float64 else torch.bfloat16)
        assert go_together(dtype, torch.float32, "cpu") == (dtype != torch.float64)


@pytest.mark.parametrize("name", BACKENDS)
def test_prepared_frames_are_those_that_the_convolution_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "selected_backend", lambda device: name)
    monkeypatch.setattr(geometry_module, "frame_angles", lambda rel_pos: rel_pos.new_zeros(4, len(rel_pos)))
    monkeypatch.setattr(geometry_module, "wigner_blocks", lambda direction, degree: direction.new_zeros(len(direction), 10))
    for dtype in (torch.float32, torch.float64):
        geometry = EdgeGeometry(torch.ones(3, 3, dtype=dtype), 1).with_frames()
        read = implementation("tfn_conv", torch.device("cpu"), dtype, 32).FRAMES
        assert sorted({"angles", "wigner"} & geometry._made.keys()) == ([] if name == "dense" else [read])


@pytest.mark.parametrize("name", ["torch", "cpp", "triton"])
def test_convolutions_make_no_frames_beside_the_prepared_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(tensor_cores=True)
    graph, nodes, edges = _inputs(torch.float32)

    def refuse(*arguments: object) -> Tensor:
        raise AssertionError("frames were made again")

    with backend(name), torch.no_grad():
        geometry = EdgeGeometry.from_relative_positions(graph.edata["rel_pos"], 1).with_frames()
        monkeypatch.setattr(geometry_module, "frame_angles", refuse)
        monkeypatch.setattr(geometry_module, "wigner_blocks", refuse)
        assert model(graph, nodes, edges, geometry).isfinite().all()


def _in_float8() -> dict[str, tuple[str, Callable[[], object]]]:
    """What errors name, and a call, of operations with an argument of float8."""
    graph, generator = random_graph(5, 12), torch.Generator().manual_seed(0)
    norm = Norm(torch.ones(3), torch.zeros(3), 1e-5, torch.relu)
    layer = (RadialLayer(torch.randn(8, 2), torch.zeros(8), None, None), RadialLayer(torch.randn(8, 8), torch.zeros(8), None, None))

    def few(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def narrow(*shape: int) -> Tensor:
        return few(*shape).to(torch.float8_e4m3fn)

    fiber = Fiber({0: 3})
    plan = DepthwisePlan(0, 0, 0)
    scalars = make_convolution(fiber, fiber, Fiber({}), ConvSE3FuseLevel.FULL).plan
    geometry = EdgeGeometry(graph.edata["rel_pos"].float(), 0)
    convolution = Convolution(scalars, graph, geometry, {"0": few(5, 3, 1)}, {}, [narrow(12, 8)], [few(9, 8)], True)
    heads = HeadFeatures(narrow(5, 1, 3), ((0, 3),))
    return {
        "depthwise_conv": ("features", lambda: depthwise_conv(plan, graph, narrow(5, 1, 3), few(12, 1), few(12), few(8, 3))),
        "edge_attention": ("key", lambda: edge_attention(few(12, 1, 3), narrow(12, 1, 3), few(5, 1, 3), graph)),
        "message_attention": (
            "messages['0']",
            lambda: message_attention({"0": narrow(12, 6, 1)}, {"0": few(5, 3, 1)}, graph, fiber, 1),
        ),
        "group_norm": ("features['0']", lambda: group_norm({"0": narrow(5, 3, 1)}, norm)),
        "layer_norm": ("feature", lambda: layer_norm(narrow(5, 3, 1), norm)),
        "linear": ("parts[1]['0']", lambda: linear({"0": few(2, 6)}, {"0": few(5, 3, 1)}, {"0": narrow(5, 3, 1)})),
        "linear of heads": ("parts[0]['values']", lambda: linear({"0": few(2, 3)}, heads)),
        "linear_per_head": ("weights['0']", lambda: linear_per_head({"0": narrow(2, 3)}, {"0": few(5, 3, 1)}, 1)),
        "perceptron": ("second", lambda: perceptron(few(4, 3), (few(5, 3), few(5)), (narrow(2, 5), few(2)))),
        "pooling": ("feature", lambda: pooling(narrow(5, 3, 1), torch.tensor([5]), "max")),
        "radial": ("invariants", lambda: radial(narrow(12, 2), [layer])),
        "basis": ("relative_pos", lambda: get_basis(narrow(12, 3), 1)),
        "tfn_conv": ("hidden[0]", lambda: tfn_conv(convolution)),
        "positions": ("rel_pos", lambda: EdgeGeometry(narrow(12, 3), 1)),
        "layers": ("features['0']", lambda: NormSE3(fiber)({"0": narrow(5, 3, 1)})),
    }


@pytest.mark.parametrize("name", ["dense", "torch", "cpp"])
@pytest.mark.parametrize("operation", _in_float8())
def test_dtypes_that_are_not_computed_with(operation: str, name: str) -> None:
    """Some were converted in silence, others failed with what PyTorch's kernels say."""
    argument, call = _in_float8()[operation]
    said = f"{argument}: expected float32, float64, bfloat16 or float16, got torch.float8_e4m3fn"
    with backend(name), pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        call()
