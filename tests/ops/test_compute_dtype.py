"""The precision policy: float64 stays float64 under autocast, in every operation and on every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from se3_fast import EdgeGeometry, Graph, backend
from se3_fast import geometry as geometry_module
from se3_fast.autograd.compute_dtype import accumulation_dtype, compute_dtype, go_together
from se3_fast.backends import choice
from se3_fast.backends.choice import BACKENDS, implementation
from tests.models import pooled_model
from tests.support import random_graph, relative_error

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
