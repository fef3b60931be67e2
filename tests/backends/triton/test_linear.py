"""The Triton linear maps against ``dense`` in float64: outputs and all gradients. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Fiber, LinearSE3
from se3_fast.backends.triton.linear import FusedLinear
from se3_fast.fiber import Features
from se3_fast.kernels import linear as kernels
from se3_fast.ops.linear import HeadFeatures, linear, linear_per_head
from tests.support import TOLERANCE, TRITON_DEVICE, leaves, random_features, relative_error

pytest.importorskip("triton")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


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
    "all per head": Case(({1: 6, 3: 3}, {1: 5}), {1: 3, 3: 9}, 5, heads=3, heads_out=3),
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
    """Every program of the gradient of the weights walks over several blocks of nodes."""
    monkeypatch.setattr(kernels, "_WEIGHT_PROGRAMS", 8)


def operands_of(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[Features]]:
    """Weights and parts that require grad; exact in bfloat16, so that dtypes can be compared."""
    parts = [random_features(Fiber(part), case.nodes, seed=number) for number, part in enumerate(case.parts)]
    generator = torch.Generator().manual_seed(5)
    sizes = {degree: sum(part.get(degree, 0) for part in case.parts) for degree in case.out}
    weights = {
        str(degree): torch.randn(count, sizes[degree], generator=generator, dtype=torch.float64)
        for degree, count in case.out.items()
    }

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(torch.bfloat16).to(TRITON_DEVICE, dtype).requires_grad_()

    return {key: leaf(value) for key, value in weights.items()}, [
        {key: leaf(value) for key, value in part.items()} for part in parts
    ]


def per_head(features: Features, num_heads: int) -> HeadFeatures:
    fiber = Fiber({int(degree): value.shape[1] for degree, value in features.items()})
    return HeadFeatures(fiber.to_attention_heads(features, num_heads), tuple((degree, fiber[degree]) for degree in fiber.degrees))


def run(case: Case, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and gradients."""
    weights, parts = operands_of(case, dtype)
    given = [per_head(part, case.heads) if case.heads and number == 0 else part for number, part in enumerate(parts)]
    with se3_fast.backend(backend):
        outputs = evaluate(case, weights, given, backend)
    cotangents = random_features(Fiber(case.out), case.nodes, seed=7)
    gradients = [cotangents[key].to(torch.bfloat16).to(TRITON_DEVICE, dtype) for key in outputs]
    torch.autograd.backward(list(outputs.values()), gradients)
    named = {f"weight {key}": value for key, value in weights.items()}
    named |= {f"part {number} {key}": value for number, part in enumerate(parts) for key, value in part.items()}
    return outputs | {name: value.grad for name, value in named.items() if value.grad is not None}


def evaluate(case: Case, weights: Mapping[str, Tensor], parts: list[Features | HeadFeatures], backend: str) -> Features:
    if not case.heads_out or backend != "triton":
        return linear(weights, *parts)
    if len(parts) == 1 and isinstance(parts[0], dict):
        return linear_per_head(weights, parts[0], case.heads_out).by_degree()
    return both_per_head(case, weights, parts)


def both_per_head(case: Case, weights: Mapping[str, Tensor], parts: list[Features | HeadFeatures]) -> Features:
    """Input and output per head, which no layer asks for, but the kernels can."""
    first, second = parts
    assert isinstance(first, HeadFeatures) and isinstance(second, dict)
    shape = kernels.Shape(
        components=tuple(2 * degree + 1 for degree in case.out),
        channels_in=tuple(tuple(part.get(degree, 0) for degree in case.out) for part in case.parts),
        channels_out=tuple(case.out.values()),
        heads_in=(case.heads, 0),
        heads_out=case.heads_out,
        dtype=first.values.dtype,
    )
    (output,) = FusedLinear(shape, False).apply(*weights.values(), first.values, *second.values())
    return HeadFeatures(output, tuple(case.out.items())).by_degree()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("few_programs")
def test_equals_dense(name: str) -> None:
    result, truth = (run(CASES[name], backend, torch.float64) for backend in ("triton", "dense"))
    assert result.keys() == truth.keys()
    for key, value in truth.items():
        assert relative_error(result[key], value) < TOLERANCE[torch.float64], key


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ["four degrees, two parts", "first part per head"])
def test_in_each_dtype(name: str, dtype: torch.dtype) -> None:
    result, truth = run(CASES[name], "triton", dtype), run(CASES[name], "dense", torch.float64)
    assert {value.dtype for value in result.values()} == {dtype}
    for key, value in truth.items():
        assert relative_error(result[key], value) < TOLERANCE[dtype], key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """Results in the autocast dtype, gradients in those of the operands, whatever dtype each has; float64 is left alone."""
    case = CASES["four degrees, two parts"]
    weights, parts = operands_of(case, torch.float32)
    first = {key: value.detach().to(dtype).requires_grad_() for key, value in parts[0].items()}
    with se3_fast.backend("triton"), torch.autocast(TRITON_DEVICE.type, dtype):
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


def test_autocast_rounds_the_operands() -> None:
    """As a cast before the product does."""
    layer = LinearSE3(Fiber({0: 17, 1: 3}), Fiber({0: 4, 1: 5})).to(TRITON_DEVICE)
    features = {key: value.float().to(TRITON_DEVICE) for key, value in random_features(layer.fiber_in, 9).items()}
    weights = {key: weight.detach().half().float() for key, weight in layer.weights.items()}
    rounded = {key: value.half().float() for key, value in features.items()}
    with se3_fast.backend("triton"), torch.autocast(TRITON_DEVICE.type, torch.float16):
        for key, value in layer(features).items():
            assert torch.equal(value, linear(weights, rounded)[key])
            assert relative_error(value, layer.weights[key].double() @ features[key].double()) > 1e-5


def operands_with(dtype: torch.dtype, weights: dict[str, Tensor], parts: list[Features]) -> list[Features]:
    return [{key: value.detach().to(dtype) for key, value in tensors.items()} for tensors in (weights, *parts)]


@pytest.mark.usefixtures("few_programs")
def test_two_runs_are_identical() -> None:
    first, second = (run(CASES["four degrees, two parts"], "triton", torch.float32) for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_bad_values_show_in_their_node_only() -> None:
    weights, (features,) = operands_of(CASES["one node, one channel"]._replace(nodes=9), torch.float32)
    features["1"].data[4] = torch.nan
    with se3_fast.backend("triton"):
        output = linear(weights, features)["1"]
    assert output.isnan().all(-1).all(-1).nonzero().flatten().tolist() == [4] and output[:4].isfinite().all()


def test_features_and_gradients_that_are_not_contiguous() -> None:
    layer = LinearSE3(Fiber({1: 4}), Fiber({1: 5})).to(TRITON_DEVICE)
    features = torch.randn(6, 3, 4, device=TRITON_DEVICE).transpose(1, 2).requires_grad_()
    cotangent = torch.randn(6, 3, 5, device=TRITON_DEVICE).transpose(1, 2)
    results = []
    for backend in ("triton", "dense"):
        with se3_fast.backend(backend):
            output = layer({"1": features})["1"]
        results.append([output, *torch.autograd.grad(output, [features, layer.weights["1"]], cotangent)])
    assert all(relative_error(*pair) < TOLERANCE[torch.float32] for pair in zip(*results, strict=True))


def test_no_gradient_for_inputs_that_want_none(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    backward = kernels.backward

    def watched(*arguments: object) -> object:
        wanted.append(bool(arguments[4]))
        return backward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "backward", watched)
    weights, parts = operands_of(CASES["first part per head"], torch.float64)
    constants = [{key: value.detach() for key, value in part.items()} for part in parts]
    with se3_fast.backend("triton"):
        found, expected = (
            torch.autograd.grad(list(linear(weights, *given).values()), list(weights.values()), cotangents_of(weights, 17))
            for given in (constants, parts)
        )
    assert wanted == [False, True]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("num_parts", [1, 5, 64], ids="{} parts".format)
def test_weights_in_a_row_have_their_gradient_in_parts(num_parts: int) -> None:
    """More parts than blocks of nodes, too: those are zero."""
    weights, parts = operands_of(CASES["four degrees, two parts"], torch.float64)
    row = torch.cat([weight.detach().flatten() for weight in weights.values()]).expand(num_parts, -1).requires_grad_()
    cotangents = cotangents_of(weights, len(next(iter(parts[0].values()))))
    with se3_fast.backend("triton"):
        expected = list(linear(weights, *parts).values())
        found = list(linear(weights, *parts, row=row).values())
    assert all(map(torch.equal, found, expected))
    (of_row,) = torch.autograd.grad(found, row, cotangents)
    of_weights = torch.autograd.grad(expected, list(weights.values()), cotangents)
    assert of_row.shape == row.shape
    assert relative_error(of_row.sum(0), torch.cat([gradient.flatten() for gradient in of_weights])) < 1e-12


def cotangents_of(weights: dict[str, Tensor], num_nodes: int) -> list[Tensor]:
    cotangents = random_features(Fiber({int(key): len(value) for key, value in weights.items()}), num_nodes, seed=9)
    return [cotangents[key].to(TRITON_DEVICE) for key in weights]


@pytest.mark.parametrize("name", ["first part per head", "output per head"])
def test_second_derivatives(name: str) -> None:
    case = CASES[name]._replace(nodes=2)
    weights, parts = operands_of(case, torch.float64)
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
        with se3_fast.backend("triton"):
            return tuple(evaluate(case, given_weights, given, "triton").values())

    assert torch.autograd.gradgradcheck(function, operands, fast_mode=True)


def test_code_of_the_compiler() -> None:
    torch._dynamo.reset()
    layer = LinearSE3(Fiber({0: 5, 1: 3}), Fiber({0: 4, 1: 2})).double().to(TRITON_DEVICE)
    with se3_fast.backend("triton"):
        compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
        for num_nodes in (5, 7):
            parts = [random_features(Fiber(part), num_nodes) for part in ({0: 2, 1: 3}, {0: 3})]
            first, second = ({key: value.to(TRITON_DEVICE).requires_grad_() for key, value in part.items()} for part in parts)
            operands = [*first.values(), *second.values(), *layer.parameters()]
            results = []
            for call in (layer, compiled):
                outputs = list(call(first, beside=second).values())
                results.append([*outputs, *torch.autograd.grad(outputs, operands, list(map(torch.ones_like, outputs)))])
            assert all(map(torch.equal, *results))
    torch._dynamo.reset()


def test_errors() -> None:
    weights, (first, second) = operands_of(CASES["four degrees, two parts"], torch.float32)
    with se3_fast.backend("triton"):
        with pytest.raises(ValueError, match=r"features\['0'\]: expected 12 channels, got 4"):
            linear(weights, first)
        with pytest.raises(ValueError, match=r"features\['2'\]: expected features of 33 nodes, got 32"):
            linear(weights, first | {"2": first["2"][:32]}, second)
        with pytest.raises(ValueError, match=r"features\['1'\]: expected torch.float32 as the weights have, got torch.float64"):
            linear(weights, first | {"1": first["1"].double()}, second)
        with pytest.raises(ValueError, match=r"features: expected degrees \['0', '1', '2', '3'\] per head, got \[0, 1, 2, 4\]"):
            linear(weights, HeadFeatures(torch.zeros(33, 4, 16), ((0, 12), (1, 12), (2, 12), (4, 12))))
