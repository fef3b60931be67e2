"""What only the Triton radial layers have. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast.backends.operands import profile_parameters
from se3_fast.backends.triton.radial import FusedRadial, radial_of_layers
from se3_fast.ops.radial import radial
from tests.ops.test_radial import WIDTH, Case, make_layer, run
from tests.support import TRITON_DEVICE, relative_error

pytest.importorskip("triton")


def test_constant_invariants_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from se3_fast.kernels import radial as kernels

    monkeypatch.setattr(kernels, "_invariant_gradient_kernel", None)
    profile = (make_layer(5, True, torch.float32, TRITON_DEVICE), make_layer(WIDTH, True, torch.float32, TRITON_DEVICE))
    with se3_fast.backend("triton"):
        (hidden,) = radial(torch.randn(9, 5, device=TRITON_DEVICE), [profile])
    hidden.sum().backward()
    assert profile[0].weight.grad is not None


def test_only_inputs_are_kept() -> None:
    """Invariants and parameters; h is kept by who uses it."""
    profile = (make_layer(5, True, torch.float32, TRITON_DEVICE), make_layer(WIDTH, True, torch.float32, TRITON_DEVICE))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with se3_fast.backend("triton"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        radial(torch.randn(100, 5, device=TRITON_DEVICE), [profile])
    assert sorted(tensor.numel() for tensor in kept) == [500, 5 * WIDTH + WIDTH * WIDTH + 6 * WIDTH]


def test_other_backends_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedRadial, "apply", lambda *_: pytest.fail("expected the reference"))
    run(Case(3, 2, 1, True), "torch", torch.float64, TRITON_DEVICE)


@pytest.mark.parametrize("num_edges", [0, 3, 200], ids="{} edges".format)
@pytest.mark.parametrize("num_parts", [1, 64], ids="{} parts".format)
def test_profiles_of_several_layers_at_once(num_edges: int, num_parts: int) -> None:
    """Gradients of h come in two and in three parts, those of the parameters go in one or many, more than blocks of edges."""
    torch.manual_seed(0)
    widths = (5, WIDTH)
    layers = [
        [tuple(make_layer(width, True, torch.float64, TRITON_DEVICE) for width in widths) for _ in range(num_groups)]
        for num_groups in (1, 3)
    ]
    invariants = torch.randn(num_edges, 5, dtype=torch.float64, device=TRITON_DEVICE).requires_grad_()
    parameters = [tensor for profiles in layers for tensor in profile_parameters(profiles)]  # type: ignore[arg-type]
    row = torch.cat([tensor.detach().flatten() for tensor in parameters]).expand(num_parts, -1).requires_grad_()
    splits = [2, 3]
    with se3_fast.backend("triton"):
        found = radial_of_layers(invariants, layers, row, splits)  # type: ignore[arg-type]
    cotangents = [torch.randn_like(values) for values in found]
    of_invariants, of_row = torch.autograd.grad(found, [invariants, row], cotangents)
    assert of_row.shape == row.shape
    with se3_fast.backend("dense"):
        expected = [torch.stack(list(radial(invariants, profiles))) for profiles in layers]  # type: ignore[arg-type]
    for values, truth, parts in zip(found, expected, splits, strict=True):
        assert values.shape == (parts, *truth.shape)
        assert all(relative_error(part, truth) < 1e-12 for part in values)
    true_gradients = torch.autograd.grad(expected, [invariants, *parameters], [cotangent.sum(0) for cotangent in cotangents])
    assert relative_error(of_invariants, true_gradients[0]) < 1e-12
    assert relative_error(of_row.sum(0), torch.cat([gradient.flatten() for gradient in true_gradients[1:]])) < 1e-12
