"""Aligned weights by the Triton kernels against the formula in float64. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import ConvSE3FuseLevel, Fiber
from se3_fast.backends.triton.aligned_weights import aligned_weights
from se3_fast.contraction import aligned_weight
from se3_fast.layers.convolution import ConvSE3
from tests.support import TOLERANCE, TRITON_DEVICE, leaves, make_convolution, relative_error

pytest.importorskip("triton")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def convolutions() -> list[ConvSE3]:
    """Every fuse level, channels that fill no tile and more than one, mixed fibers, edge features."""
    return [
        make_convolution(Fiber({0: 3}), Fiber.create(4, 5), max_degree=3),
        make_convolution(Fiber.create(3, 18), Fiber.create(3, 17)),
        make_convolution(Fiber.create(3, 1), Fiber({0: 1, 2: 2}), fuse_level=ConvSE3FuseLevel.PARTIAL),
        make_convolution(Fiber({0: 4, 1: 2}), Fiber({0: 2, 1: 3}), Fiber({1: 1}), fuse_level=ConvSE3FuseLevel.NONE),
    ]


def weights_of(layers: list[ConvSE3], dtype: torch.dtype, device: torch.device) -> list[list[Tensor]]:
    return [leaves(profile.last_weight.to(device, dtype) for profile in layer.radial_profiles) for layer in layers]


def expected(layer: ConvSE3, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Both orders by the formula."""
    aligned = [aligned_weight(group, weight) for group, weight in zip(layer.plan.groups, weights, strict=True)]
    values = torch.cat([part.flatten() for part in aligned])
    return values, torch.cat([part.permute(0, 3, 2, 1).flatten() for part in aligned])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_agree_with_the_formula(dtype: torch.dtype) -> None:
    layers = convolutions()
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    truth = weights_of(layers, torch.float64, torch.device("cpu"))
    given = weights_of(layers, parameter_dtype, TRITON_DEVICE)
    with se3_fast.backend("triton"):
        results = aligned_weights([layer.plan for layer in layers], given, dtype)
    gradients = []
    for result, layer, weights in zip(results, layers, truth, strict=True):
        values, transposed = expected(layer, weights)
        assert relative_error(result.values, values) < TOLERANCE[dtype]
        assert result.transposed is not None
        assert not result.transposed.requires_grad
        assert relative_error(result.transposed, transposed) < TOLERANCE[dtype]
        gradient = torch.randn(values.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        values.backward(gradient)
        gradients.append(gradient.to(TRITON_DEVICE, dtype))
    torch.autograd.backward([result.values for result in results], gradients)
    for of_layer, true_weights in zip(given, truth, strict=True):
        for weight, true_weight in zip(of_layer, true_weights, strict=True):
            assert weight.grad is not None
            assert true_weight.grad is not None
            assert weight.grad.dtype == parameter_dtype
            assert relative_error(weight.grad, true_weight.grad) < TOLERANCE[dtype]


def test_without_gradients_there_is_no_transposed_order() -> None:
    layer = convolutions()[0]
    with se3_fast.backend("triton"), torch.no_grad():
        (result,) = aligned_weights([layer.plan], weights_of([layer], torch.float32, TRITON_DEVICE), torch.float32)
    assert result.transposed is None


def test_convolutions_that_no_loss_reaches_have_zero_gradients() -> None:
    layers = convolutions()[:2]
    given = weights_of(layers, torch.float32, TRITON_DEVICE)
    with se3_fast.backend("triton"):
        first, _ = aligned_weights([layer.plan for layer in layers], given, torch.float32)
    first.values.sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in given[0])
    assert all(weight.grad is not None and not weight.grad.any() for weight in given[1])


def test_two_runs_are_the_same_to_the_last_bit() -> None:
    def run() -> list[Tensor]:
        layers = convolutions()
        given = weights_of(layers, torch.float32, TRITON_DEVICE)
        with se3_fast.backend("triton"):
            results = aligned_weights([layer.plan for layer in layers], given, torch.float16)
        torch.autograd.backward([result.values.float().square().sum() for result in results])
        return [result.values for result in results] + [weight.grad for of_layer in given for weight in of_layer]

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))
