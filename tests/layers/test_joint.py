"""Parameters made ready for all layers at once: the same outputs and gradients as where every layer does it for itself.

Backend triton, in Triton's interpreter where there is no GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Fiber, SE3Transformer, radius_graph
from se3_fast.layers import joint
from se3_fast.layers.prepared import JointParameters
from tests.models import pooled_model
from tests.support import TRITON_DEVICE, relative_error

pytest.importorskip("triton")

MODELS: dict[str, dict[str, Any]] = {
    "full": {"tensor_cores": True},
    "partial": {},
    "none": {"low_memory": True},
    "none, everything kept": {"fuse_level": se3_fast.ConvSE3FuseLevel.NONE},
    "without norm": {"norm": False, "tensor_cores": True},
    "without layer norm": {"use_layer_norm": False},
    "linear at the end": {"final_layer": "lin"},
    "attention at the end": {"final_layer": "att"},
    "means over edges": {"sum_over_edge": False},
}


def make(num_layers: int = 2, **arguments: Any) -> SE3Transformer:
    torch.manual_seed(0)
    return SE3Transformer(
        num_layers=num_layers,
        fiber_in=Fiber({0: 3}),
        fiber_hidden=Fiber({0: 4, 1: 4}),
        fiber_out=Fiber({0: 2}),
        num_heads=2,
        channels_div=2,
        fiber_edge=Fiber({0: 2}),
        **arguments,
    ).to(TRITON_DEVICE)


def evaluate(model: torch.nn.Module, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The features of degree 0, and the inputs that require grad."""
    generator = torch.Generator().manual_seed(1)
    pos = torch.randn(5, 3, generator=generator, dtype=torch.float64).to(TRITON_DEVICE, dtype)
    graph = radius_graph(pos, 2.0)
    nodes, edges = (
        torch.randn(count, channels, 1, generator=generator, dtype=torch.float64).to(TRITON_DEVICE, dtype).requires_grad_()
        for count, channels in ((5, 3), (graph.num_edges(), 2))
    )
    output = model(graph, {"0": nodes}, {"0": edges})
    return output["0"] if isinstance(output, dict) else output, [nodes, edges]


def run(model: torch.nn.Module, dtype: torch.dtype = torch.float32, is_amp: bool = False, backend: str = "triton") -> list[Tensor]:
    """Output, and the gradient of every parameter and input."""
    model = model.to(dtype)
    model.zero_grad()
    with se3_fast.backend(backend), torch.autocast(TRITON_DEVICE.type, torch.float16, enabled=is_amp):
        output, inputs = evaluate(model, dtype)
    output.double().square().sum().backward()
    gradients = [tensor.grad for tensor in (*model.parameters(), *inputs)]
    return [output, *(gradient for gradient in gradients if gradient is not None)]


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[JointParameters | None]:
    """What the model has joined, call by call."""
    found: list[JointParameters | None] = []
    original = se3_fast.model.join_parameters

    def note(*arguments: Any) -> JointParameters | None:
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(se3_fast.model, "join_parameters", note)
    return found


def apart(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> list[Tensor]:
    """The same with nothing joined."""
    with monkeypatch.context() as context:
        context.setattr(se3_fast.model, "join_parameters", lambda *_: None)
        return run(model, **arguments)


@pytest.mark.parametrize("name", MODELS)
def test_joined_is_as_apart(name: str, joined: list[JointParameters | None], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(**MODELS[name])
    together = run(model, torch.float64)
    assert joined[0] is not None
    expected = apart(model, monkeypatch, dtype=torch.float64)
    assert len(together) == len(expected)
    assert all(relative_error(value, truth) < 1e-12 for value, truth in zip(together, expected, strict=True))


def test_joined_is_as_apart_under_autocast(joined: list[JointParameters | None], monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(tensor_cores=True)
    together, expected = run(model, is_amp=True), apart(model, monkeypatch, is_amp=True)
    assert joined[0] is not None
    assert all(relative_error(value, truth) < 5e-3 for value, truth in zip(together, expected, strict=True))


def test_a_pooled_model_agrees_with_the_published_formula(joined: list[JointParameters | None]) -> None:
    model = pooled_model(3, 4, 2, num_layers=2, tensor_cores=True).to(TRITON_DEVICE)
    together = run(model, torch.float64)
    expected = run(model, torch.float64, backend="dense")
    assert joined[0] is not None
    assert joined[1] is None
    assert all(relative_error(value, truth) < 1e-10 for value, truth in zip(together, expected, strict=True))


def test_without_gradients(joined: list[JointParameters | None]) -> None:
    model = make(tensor_cores=True)
    expected, *_ = run(model)
    with se3_fast.backend("triton"), torch.no_grad():
        found, _ = evaluate(model, torch.float32)
    assert joined[1] is not None
    assert any(joined[1].radial(module) is not None for module in model.modules())
    assert torch.equal(found, expected)


def test_without_gradients_large_graphs_are_not_joined(
    monkeypatch: pytest.MonkeyPatch, joined: list[JointParameters | None]
) -> None:
    monkeypatch.setattr(joint, "MAX_HIDDEN_BYTES", 1000)
    with se3_fast.backend("triton"), torch.no_grad():
        evaluate(make(tensor_cores=True), torch.float32)
    assert joined == [None]


def test_two_runs_are_the_same_to_the_last_bit() -> None:
    model = make(tensor_cores=True)
    assert all(torch.equal(first, second) for first, second in zip(run(model), run(model), strict=True))
