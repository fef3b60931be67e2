"""Rows of parameters: values, and gradients summed from parts by the Triton kernel. In Triton's interpreter without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from se3_fast.backends.triton.parameter_rows import LayerParameters, parameter_rows
from tests.support import TOLERANCE, TRITON_DEVICE, relative_error

pytest.importorskip("triton")

SHAPES = [([(3, 5), (7,)], 1), ([(1,)], 9), ([(130, 2)], 17), ([(2, 2), (3,), (1, 4)], 64)]
"""Shapes of a layer's parameters, and the parts of its gradient: more than a tile has of either, and less."""


def make(dtype: torch.dtype, repeats: int = 1) -> list[LayerParameters]:
    torch.manual_seed(0)
    return [
        LayerParameters(
            [torch.randn(shape, dtype=torch.float64).to(TRITON_DEVICE, dtype).requires_grad_() for shape in shapes], parts
        )
        for _ in range(repeats)
        for shapes, parts in SHAPES
    ]


def gradients_of(layers: list[LayerParameters], leave_out: int = -1) -> tuple[list[Tensor], list[Tensor]]:
    """Of a loss with random factors for all parts: those of the parameters, and what they should be, in float64."""
    rows = parameter_rows(layers)
    factors = [torch.randn(row.shape, dtype=torch.float64).to(row) for row in rows]
    used = [number for number in range(len(rows)) if number != leave_out]
    torch.stack([(factors[number] * rows[number]).sum() for number in used]).sum().backward()
    found = [tensor.grad for layer in layers for tensor in layer.tensors]
    expected = []
    for number, (layer, factor) in enumerate(zip(layers, factors, strict=True)):
        sums = factor.double().sum(0) * (number != leave_out)
        parts = sums.split([tensor.numel() for tensor in layer.tensors])
        expected += [part.view(tensor.shape) for part, tensor in zip(parts, layer.tensors, strict=True)]
    return [gradient for gradient in found if gradient is not None], expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_hold_the_parameters_and_gradients_are_sums_of_parts(dtype: torch.dtype) -> None:
    layers = make(dtype)
    for layer, row in zip(layers, parameter_rows(layers), strict=True):
        values = torch.cat([tensor.flatten() for tensor in layer.tensors])
        assert torch.equal(row, values.expand(layer.parts, -1))
    found, expected = gradients_of(layers)
    assert all(relative_error(gradient, truth) < TOLERANCE[dtype] for gradient, truth in zip(found, expected, strict=True))


def test_more_layers_than_a_launch_takes() -> None:
    found, expected = gradients_of(make(torch.float32, repeats=9))
    assert all(relative_error(gradient, truth) < 1e-6 for gradient, truth in zip(found, expected, strict=True))


def test_a_layer_that_no_loss_reaches_has_zero_gradients() -> None:
    found, expected = gradients_of(make(torch.float32), leave_out=2)
    assert all(relative_error(gradient, truth) < 1e-6 for gradient, truth in zip(found, expected, strict=True))
    assert not found[3].any()


def test_two_runs_are_the_same_to_the_last_bit() -> None:
    first, _ = gradients_of(make(torch.float32))
    second, _ = gradients_of(make(torch.float32))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_gradients_can_be_differentiated_again() -> None:
    layers = make(torch.float64)
    loss = torch.stack([(row**3).sum() for row in parameter_rows(layers)]).sum()
    parameters = [tensor for layer in layers for tensor in layer.tensors]
    found = torch.autograd.grad(loss, parameters, create_graph=True)
    torch.stack([gradient.sum() for gradient in found]).sum().backward()
    for layer in layers:
        for tensor in layer.tensors:
            assert tensor.grad is not None
            assert relative_error(tensor.grad, 6 * layer.parts * tensor) < 1e-12
