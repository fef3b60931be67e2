"""Linear maps: what holds on every backend. Outputs and all gradients are compared with ``dense`` in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Fiber, LinearSE3
from se3_fast.fiber import Features
from se3_fast.ops.linear import HeadFeatures, linear, linear_per_head
from tests.support import (
    FAST_BACKENDS,
    TOLERANCE,
    device_of,
    leaves,
    random_features,
    random_rotation,
    relative_error,
    rotate_features,
)

FIBER, BESIDE = Fiber({0: 4, 1: 2, 3: 6}), Fiber({0: 3, 1: 1})


class Case(NamedTuple):
    """Channels by degree of the parts of the input and of the output, and nodes; heads of the first part and of the output."""

    parts: tuple[dict[int, int], ...]
    out: dict[int, int]
    nodes: int
    heads: int = 0
    heads_out: int = 0


CASES = {
    "four degrees, two parts": Case(({0: 4, 1: 4, 2: 4, 3: 4}, {0: 8, 1: 8, 2: 8, 3: 8}), {0: 8, 1: 8, 2: 8, 3: 8}, 33),
    "several blocks of channels": Case(({0: 40, 1: 33}, {0: 17, 1: 48}), {0: 33, 1: 65}, 3),
    "first part per head": Case(({0: 4, 1: 8, 2: 4}, {0: 5, 1: 3, 2: 1}), {0: 5, 1: 1, 2: 3}, 17, heads=4),
    "output per head": Case(({0: 17, 1: 3},), {0: 4, 1: 2}, 33, heads_out=2),
    "parts with other degrees": Case(({0: 3, 2: 1}, {0: 1, 1: 5, 4: 2}), {0: 1, 1: 2, 2: 17}, 5),
    "first part without any of the degrees": Case(({4: 3}, {0: 3}), {0: 2}, 5),
    "three parts": Case(({0: 3, 1: 20}, {0: 2, 2: 4}, {0: 1, 1: 17, 2: 2}), {0: 4, 1: 2, 2: 3}, 5),
    "nine degrees": Case(({degree: 3 for degree in range(9)},), {degree: 2 for degree in range(9)}, 2),
    "nine degrees per head": Case(({degree: 2 for degree in range(9)},), {degree: 2 for degree in range(9)}, 3, heads_out=2),
    "one node, one channel": Case(({0: 1, 1: 1},), {0: 1, 1: 1}, 1),
    "no nodes": Case(({0: 3, 1: 2}, {0: 2}), {0: 4, 1: 1}, 0, heads=1),
}


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program of the Triton kernel for the gradient of the weights walks over several blocks of nodes."""
    monkeypatch.setattr("se3_fast.kernels.linear._WEIGHT_PROGRAMS", 8)


def operands_of(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Tensor], list[Features]]:
    """Weights and parts that require grad; exact in bfloat16, so that dtypes can be compared."""
    parts = [random_features(Fiber(part), case.nodes, seed=number) for number, part in enumerate(case.parts)]
    generator = torch.Generator().manual_seed(5)
    sizes = {degree: sum(part.get(degree, 0) for part in case.parts) for degree in case.out}
    weights = {
        str(degree): torch.randn(count, sizes[degree], generator=generator, dtype=torch.float64)
        for degree, count in case.out.items()
    }

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(torch.bfloat16).to(device, dtype).requires_grad_()

    return {key: leaf(value) for key, value in weights.items()}, [
        {key: leaf(value) for key, value in part.items()} for part in parts
    ]


def per_head(features: Features, num_heads: int) -> HeadFeatures:
    fiber = Fiber({int(degree): value.shape[1] for degree, value in features.items()})
    return HeadFeatures(fiber.to_attention_heads(features, num_heads), tuple((degree, fiber[degree]) for degree in fiber.degrees))


def run(case: Case, backend: str, dtype: torch.dtype, device: torch.device | None = None) -> dict[str, Tensor]:
    """Outputs and gradients, on the device that the backend's tests run on or another."""
    device = device or device_of(backend)
    weights, parts = operands_of(case, dtype, device)
    given = [per_head(part, case.heads) if case.heads and number == 0 else part for number, part in enumerate(parts)]
    with se3_fast.backend(backend):
        outputs = evaluate(case, weights, given)
    cotangents = random_features(Fiber(case.out), case.nodes, seed=7)
    gradients = [cotangents[key].to(torch.bfloat16).to(device, dtype) for key in outputs]
    torch.autograd.backward(list(outputs.values()), gradients)
    named = {f"weight {key}": value for key, value in weights.items()}
    named |= {f"part {number} {key}": value for number, part in enumerate(parts) for key, value in part.items()}
    return outputs | {name: value.grad for name, value in named.items() if value.grad is not None}


def evaluate(case: Case, weights: Mapping[str, Tensor], parts: list[Features | HeadFeatures]) -> Features:
    if not case.heads_out:
        return linear(weights, *parts)
    (part,) = parts
    assert isinstance(part, dict)
    return linear_per_head(weights, part, case.heads_out).by_degree()


def truth_of(case: Case, backend: str) -> dict[str, Tensor]:
    return run(case, "dense", torch.float64, device_of(backend))


def assert_close(result: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    assert result.keys() == truth.keys()
    for key, value in truth.items():
        assert relative_error(result[key], value) < TOLERANCE[dtype], key


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("few_programs")
def test_equals_dense(name: str, backend: str) -> None:
    assert_close(run(CASES[name], backend, torch.float64), truth_of(CASES[name], backend), torch.float64)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["four degrees, two parts", "first part per head"])
def test_in_each_dtype(name: str, dtype: torch.dtype, backend: str) -> None:
    result = run(CASES[name], backend, dtype)
    assert {value.dtype for value in result.values()} == {dtype}
    assert_close(result, truth_of(CASES[name], backend), dtype)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype, backend: str) -> None:
    """Results in the autocast dtype, gradients in those of the operands, whatever dtype each has; float64 is left alone."""
    device = device_of(backend)
    case = CASES["four degrees, two parts"]
    weights, parts = operands_of(case, torch.float32, device)
    first = {key: value.detach().to(dtype).requires_grad_() for key, value in parts[0].items()}
    with se3_fast.backend(backend), torch.autocast(device.type, dtype):
        outputs = linear(weights, first, parts[1])
        assert {value.dtype for value in outputs.values()} == {dtype}
        exact = linear(*operands_with(torch.float64, weights, parts))
        assert {value.dtype for value in exact.values()} == {torch.float64}
    torch.autograd.backward(list(outputs.values()), [torch.ones_like(value) for value in outputs.values()])
    for key, value in outputs.items():
        assert relative_error(value, exact[key]) < TOLERANCE[dtype]
        assert weights[key].grad is not None and weights[key].grad.dtype == torch.float32
        assert first[key].grad is not None and first[key].grad.dtype == dtype
        assert parts[1][key].grad is not None and parts[1][key].grad.dtype == torch.float32


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_autocast_rounds_the_operands(backend: str) -> None:
    """As a cast before the product does."""
    device = device_of(backend)
    layer = LinearSE3(Fiber({0: 17, 1: 3}), Fiber({0: 4, 1: 5})).to(device)
    features = {key: value.float().to(device) for key, value in random_features(layer.fiber_in, 9).items()}
    weights = {key: weight.detach().half().float() for key, weight in layer.weights.items()}
    rounded = {key: value.half().float() for key, value in features.items()}
    with se3_fast.backend(backend), torch.autocast(device.type, torch.float16):
        for key, value in layer(features).items():
            assert torch.equal(value, linear(weights, rounded)[key])
            assert relative_error(value, layer.weights[key].double() @ features[key].double()) > 1e-5


def operands_with(dtype: torch.dtype, weights: dict[str, Tensor], parts: list[Features]) -> list[Features]:
    return [{key: value.detach().to(dtype) for key, value in tensors.items()} for tensors in (weights, *parts)]


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.usefixtures("few_programs")
def test_two_runs_are_identical(backend: str) -> None:
    first, second = (run(CASES["four degrees, two parts"], backend, torch.float32) for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_bad_values_show_in_their_node_only(backend: str) -> None:
    weights, (features,) = operands_of(CASES["one node, one channel"]._replace(nodes=9), torch.float32, device_of(backend))
    features["1"].data[4] = torch.nan
    with se3_fast.backend(backend):
        output = linear(weights, features)["1"]
    assert output.isnan().all(-1).all(-1).nonzero().flatten().tolist() == [4] and output[:4].isfinite().all()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_features_and_gradients_that_are_not_contiguous(backend: str) -> None:
    device = device_of(backend)
    layer = LinearSE3(Fiber({1: 4}), Fiber({1: 5})).to(device)
    features = torch.randn(6, 3, 4, device=device).transpose(1, 2).requires_grad_()
    cotangent = torch.randn(6, 3, 5, device=device).transpose(1, 2)
    results = []
    for name in (backend, "dense"):
        with se3_fast.backend(name):
            output = layer({"1": features})["1"]
        results.append([output, *torch.autograd.grad(output, [features, layer.weights["1"]], cotangent)])
    assert all(relative_error(*pair) < TOLERANCE[torch.float32] for pair in zip(*results, strict=True))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("name", ["first part per head", "output per head"])
def test_second_derivatives(name: str, backend: str) -> None:
    case = CASES[name]._replace(nodes=2)
    weights, parts = operands_of(case, torch.float64, device_of(backend))
    operands = leaves([*weights.values(), *(value for part in parts for value in part.values())])

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        given_weights = {key: next(remaining) for key in weights}
        # Not contiguous, so that what is differentiated again must be the operands themselves.
        given: list[Features | HeadFeatures] = [
            {key: next(remaining).transpose(1, 2).contiguous().transpose(1, 2) for key in part} for part in parts
        ]
        if case.heads and isinstance(given[0], dict):
            given[0] = per_head(given[0], case.heads)
        with se3_fast.backend(backend):
            return tuple(evaluate(case, given_weights, given).values())

    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)


def make_layer() -> LinearSE3:
    torch.manual_seed(0)
    return LinearSE3(FIBER + BESIDE, Fiber({0: 5, 1: 3, 3: 2})).double()


def test_two_parts_are_those_of_a_concatenation() -> None:
    layer, features, beside = make_layer(), random_features(FIBER, 7), random_features(BESIDE, 7, seed=2)
    together = {key: torch.cat([value, beside[key]], 1) if key in beside else value for key, value in features.items()}
    with se3_fast.backend("torch"):
        for key, expected in layer(together).items():
            assert torch.equal(layer(features, beside=beside)[key], expected)
            assert relative_error(expected, torch.einsum("oc,ncm->nom", layer.weights[key], together[key])) < 1e-14


def test_equivariance() -> None:
    layer, features, beside, rotation = make_layer(), random_features(FIBER, 7), random_features(BESIDE, 7, 2), random_rotation()
    rotated_after = rotate_features(layer(features, beside=beside), rotation)
    rotated_before = layer(rotate_features(features, rotation), beside=rotate_features(beside, rotation))
    for key, expected in rotated_after.items():
        assert relative_error(rotated_before[key], expected) < 1e-12


def test_features_per_head() -> None:
    features = random_features(FIBER, 7)
    channels = tuple((degree, FIBER[degree]) for degree in FIBER.degrees)
    heads = HeadFeatures(FIBER.to_attention_heads(features, 2), channels)
    assert all(torch.equal(value, features[key]) for key, value in heads.by_degree().items())
    weights = {key: torch.randn(3, value.shape[1], dtype=torch.float64) for key, value in features.items()}
    with se3_fast.backend("dense"):
        for key, expected in linear(weights, features).items():
            assert torch.equal(linear(weights, heads)[key], expected)


def test_no_degrees() -> None:
    assert linear({}, random_features(FIBER, 3)) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype_under_autocast(dtype: torch.dtype) -> None:
    layer, features = make_layer().float(), {key: value.float() for key, value in random_features(FIBER + BESIDE, 3).items()}
    with torch.autocast("cpu", dtype):
        assert {value.dtype for value in layer(features).values()} == {dtype}
