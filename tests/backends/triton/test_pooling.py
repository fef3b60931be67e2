"""The Triton pooling against ``dense`` in float64: output and gradient. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import GPooling, Graph
from se3_fast.ops.pooling import pooling
from tests.support import TOLERANCE, TRITON_DEVICE, relative_error

pytest.importorskip("triton")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
POOLS: list[Literal["max", "avg"]] = ["max", "avg"]

CASES = {
    "several graphs": ([3, 17, 1, 33], 5, 1),
    "empty graphs": ([0, 4, 0, 0, 2, 0], 3, 1),
    "more features than a tile": ([5, 2], 65, 1),
    "vectors": ([2, 40], 17, 3),
    "one node": ([1], 1, 1),
    "no nodes": ([0, 0], 3, 1),
    "no graphs": ([], 3, 1),
}


@pytest.fixture
def two_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backward pass two programs share the nodes of a graph."""
    from se3_fast.kernels import pooling as kernels

    monkeypatch.setattr(kernels, "_BACKWARD_PROGRAMS", 8)


def run(
    sizes: list[int], channels: int, components: int, pool: Literal["max", "avg"], backend: str, dtype: torch.dtype
) -> list[Tensor]:
    """Output and gradient. Inputs have few values, so that there are ties and all dtypes have them."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-9, 4, (sum(sizes), channels, components), generator=generator)
    feature = values.to(TRITON_DEVICE, dtype).requires_grad_()
    cotangent = torch.randint(-9, 10, (len(sizes), channels, components), generator=generator).to(TRITON_DEVICE, dtype)
    with se3_fast.backend(backend):
        output = pooling(feature, torch.tensor(sizes, dtype=torch.int64, device=TRITON_DEVICE), pool)
    output.backward(cotangent)
    assert feature.grad is not None and output.dtype == feature.grad.dtype == dtype
    return [output.detach(), feature.grad]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("two_shares")
def test_equals_dense(name: str, pool: Literal["max", "avg"]) -> None:
    results = (run(*CASES[name], pool, backend, torch.float64) for backend in ("triton", "dense"))
    for result, truth in zip(*results, strict=True):
        assert relative_error(result, truth) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_in_each_dtype(pool: Literal["max", "avg"], dtype: torch.dtype) -> None:
    results = run(*CASES["several graphs"], pool, "triton", dtype), run(*CASES["several graphs"], pool, "dense", torch.float64)
    for result, truth in zip(*results, strict=True):
        assert relative_error(result, truth) < TOLERANCE[dtype]


def test_two_runs_are_identical() -> None:
    first, second = (run(*CASES["vectors"], "avg", "triton", torch.float32) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_the_gradient_of_ties_goes_to_the_first_node() -> None:
    feature = torch.tensor([[[-3.0]], [[5.0]], [[5.0]], [[-torch.inf]], [[-torch.inf]]], device=TRITON_DEVICE).requires_grad_()
    with se3_fast.backend("triton"):
        pooled = pooling(feature, torch.tensor([3, 2], device=TRITON_DEVICE), "max")
    pooled.sum().backward()
    assert pooled.flatten().tolist() == [5.0, -torch.inf]
    assert feature.grad is not None and feature.grad.flatten().tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("place", [0, 20])
def test_bad_values_show(pool: Literal["max", "avg"], place: int) -> None:
    feature = torch.ones(25, 2, 1, device=TRITON_DEVICE)
    feature[place, 1] = torch.nan
    with se3_fast.backend("triton"):
        pooled = pooling(feature, torch.tensor([22, 3], device=TRITON_DEVICE), pool)
    assert pooled.isnan().flatten().tolist() == [False, True, False, False]


def test_second_derivatives() -> None:
    feature = torch.randn(5, 2, 1, dtype=torch.float64, device=TRITON_DEVICE, requires_grad=True)
    sizes = torch.tensor([2, 3], device=TRITON_DEVICE)
    with se3_fast.backend("triton"):
        for pool in POOLS:
            assert torch.autograd.gradgradcheck(lambda values, pool=pool: pooling(values.square(), sizes, pool), feature)


def test_layer_of_features_that_are_not_contiguous() -> None:
    graph = Graph(torch.tensor([0]), torch.tensor([1]), 5, [2, 3], [1, 0]).to(TRITON_DEVICE)
    feature = torch.randn(5, 3, 4, device=TRITON_DEVICE).transpose(1, 2)
    with se3_fast.backend("triton"):
        pooled = GPooling(1, "avg")({"1": feature}, graph)
    assert relative_error(pooled, torch.stack([feature[:2].mean(0), feature[2:].mean(0)])) < 1e-6


def test_code_of_the_compiler() -> None:
    feature = torch.randn(5, 2, 1, dtype=torch.float64, device=TRITON_DEVICE, requires_grad=True)
    sizes = torch.tensor([2, 3], device=TRITON_DEVICE)
    with se3_fast.backend("triton"):
        compiled = torch.compile(pooling, fullgraph=True, backend="aot_eager")
        results = [call(feature, sizes, "max") for call in (pooling, compiled)]
    gradients = [torch.autograd.grad(result.square().sum(), feature)[0] for result in results]
    assert torch.equal(*results) and torch.equal(*gradients)
