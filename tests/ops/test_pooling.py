"""Pooling: what holds on every backend. The output and the gradient are compared with ``dense`` in float64."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import GPooling, Graph
from se3_fast.backends.dense import pooling as formula
from se3_fast.ops.pooling import pooling
from tests.support import BACKENDS, FAST_BACKENDS, TOLERANCE, device_of, relative_error

SIZES = torch.tensor([2, 0, 3])
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
    """In the backward pass of the Triton kernel two programs share the nodes of a graph."""
    monkeypatch.setattr("se3_fast.kernels.pooling._BACKWARD_PROGRAMS", 8)


class Problem(NamedTuple):
    """Nodes of each graph, channels, components; what is pooled how."""

    sizes: list[int]
    channels: int
    components: int
    pool: Literal["max", "avg"]


def run(problem: Problem, backend: str, dtype: torch.dtype, device: torch.device | None = None) -> list[Tensor]:
    """Output and gradient, on the device that the backend's tests run on or another.

    Inputs have few values, so that there are ties and all dtypes have them.
    """
    device = device or device_of(backend)
    sizes, *shape = problem[:3]
    generator = torch.Generator().manual_seed(0)
    feature = torch.randint(-9, 4, (sum(sizes), *shape), generator=generator).to(device, dtype).requires_grad_()
    cotangent = torch.randint(-9, 10, (len(sizes), *shape), generator=generator).to(device, dtype)
    with se3_fast.backend(backend):
        output = pooling(feature, torch.tensor(sizes, dtype=torch.int64, device=device), problem.pool)
    output.backward(cotangent)
    assert feature.grad is not None and output.dtype == feature.grad.dtype == dtype
    return [output.detach(), feature.grad]


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("two_shares")
def test_equals_dense(name: str, pool: Literal["max", "avg"], backend: str) -> None:
    problem = Problem(*CASES[name], pool)
    truths = run(problem, "dense", torch.float64, device_of(backend))
    for result, truth in zip(run(problem, backend, torch.float64), truths, strict=True):
        assert relative_error(result, truth) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pool", POOLS)
def test_in_each_dtype(pool: Literal["max", "avg"], dtype: torch.dtype, backend: str) -> None:
    problem = Problem(*CASES["several graphs"], pool)
    truths = run(problem, "dense", torch.float64, device_of(backend))
    for result, truth in zip(run(problem, backend, dtype), truths, strict=True):
        assert relative_error(result, truth) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_two_runs_are_identical(backend: str) -> None:
    first, second = (run(Problem(*CASES["vectors"], "avg"), backend, torch.float32) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_ties_goes_to_the_first_node(backend: str) -> None:
    device = device_of(backend)
    feature = torch.tensor([[[-3.0]], [[5.0]], [[5.0]], [[-torch.inf]], [[-torch.inf]]], device=device).requires_grad_()
    with se3_fast.backend(backend):
        pooled = pooling(feature, torch.tensor([3, 2], device=device), "max")
    pooled.sum().backward()
    assert pooled.flatten().tolist() == [5.0, -torch.inf]
    assert feature.grad is not None and feature.grad.flatten().tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("place", [0, 20])
def test_bad_values_show(pool: Literal["max", "avg"], place: int, backend: str) -> None:
    device = device_of(backend)
    feature = torch.ones(25, 2, 1, device=device)
    feature[place, 1] = torch.nan
    with se3_fast.backend(backend):
        pooled = pooling(feature, torch.tensor([22, 3], device=device), pool)
    assert pooled.isnan().flatten().tolist() == [False, True, False, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend: str) -> None:
    device = device_of(backend)
    feature = torch.randn(5, 2, 1, dtype=torch.float64, device=device, requires_grad=True)
    sizes = torch.tensor([2, 3], device=device)
    with se3_fast.backend(backend):
        for pool in POOLS:
            assert torch.autograd.gradgradcheck(lambda values, pool=pool: pooling(values.square(), sizes, pool), feature)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layer_of_features_that_are_not_contiguous(backend: str) -> None:
    device = device_of(backend)
    graph = Graph(torch.tensor([0]), torch.tensor([1]), 5, [2, 3], [1, 0]).to(device)
    feature = torch.randn(5, 3, 4, device=device).transpose(1, 2)
    with se3_fast.backend(backend):
        pooled = GPooling(1, "avg")({"1": feature}, graph)
    assert relative_error(pooled, torch.stack([feature[:2].mean(0), feature[2:].mean(0)])) < 1e-6


def feature() -> torch.Tensor:
    return torch.tensor([[1.0], [4.0], [2.0], [7.0], [7.0]], dtype=torch.float64)[..., None]


def test_maximum_with_ties_and_an_empty_graph() -> None:
    leaf = feature().requires_grad_()
    pooled = formula.maximum(leaf, SIZES)
    assert pooled.flatten().tolist() == [4.0, 0.0, 7.0]
    pooled.sum().backward()
    assert leaf.grad is not None and leaf.grad.flatten().tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_mean_with_an_empty_graph() -> None:
    leaf = feature().requires_grad_()
    pooled = formula.mean(leaf, SIZES)
    assert pooled.flatten().tolist() == [2.5, 0.0, pytest.approx(16 / 3)]
    pooled.sum().backward()
    assert leaf.grad is not None and leaf.grad.flatten().tolist() == [0.5, 0.5, *[pytest.approx(1 / 3)] * 3]


@pytest.mark.parametrize("pool", [formula.maximum, formula.mean])
def test_gradients(pool: object) -> None:
    assert callable(pool)
    leaf = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: pool(values, SIZES), leaf)


def test_no_nodes() -> None:
    sizes = torch.zeros(2, dtype=torch.int64)
    for pool in (formula.maximum, formula.mean):
        assert pool(torch.zeros(0, 3, 1), sizes).tolist() == [[[0.0]] * 3] * 2
