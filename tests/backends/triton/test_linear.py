"""What only the Triton linear maps have. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast import Fiber, LinearSE3
from se3_fast.backends.triton.linear import FusedLinear
from se3_fast.kernels import linear as kernels
from se3_fast.ops.linear import HeadFeatures, linear
from tests.ops.test_linear import CASES, Case, operands_of, per_head
from tests.support import TOLERANCE, TRITON_DEVICE, random_features, relative_error

pytest.importorskip("triton")


def test_input_and_output_per_head() -> None:
    """Which no layer asks for, but the kernels can."""
    case = Case(({1: 6, 3: 3}, {1: 5}), {1: 3, 3: 9}, 5, heads=3)
    weights, (first, second) = operands_of(case, torch.float64, TRITON_DEVICE)
    operands = [*weights.values(), *first.values(), *second.values()]
    shape = kernels.Shape(
        components=tuple(2 * degree + 1 for degree in case.out),
        channels_in=tuple(tuple(part.get(degree, 0) for degree in case.out) for part in case.parts),
        channels_out=tuple(case.out.values()),
        heads_in=(case.heads, 0),
        heads_out=3,
        dtype=torch.float64,
    )
    given = per_head(first, case.heads)
    (output,) = FusedLinear(shape, False).apply(*weights.values(), given.values, *second.values())
    results = [HeadFeatures(output, tuple(case.out.items())).by_degree()]
    with se3_fast.backend("dense"):
        results.append(linear(weights, given, second))
    cotangents = cotangents_of(weights, case.nodes)
    found, truth = (
        [*outputs.values(), *torch.autograd.grad(list(outputs.values()), operands, cotangents, retain_graph=True)]
        for outputs in results
    )
    for value, expected in zip(found, truth, strict=True):
        assert relative_error(value, expected) < TOLERANCE[torch.float64]


def test_no_gradient_for_inputs_that_want_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants, and variables whose gradients are not asked for."""
    wanted: list[bool] = []
    backward = kernels.backward

    def watched(*arguments: object) -> object:
        wanted.append(bool(arguments[4]))
        return backward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "backward", watched)
    weights, parts = operands_of(CASES["first part per head"], torch.float64, TRITON_DEVICE)
    constants = [{key: value.detach() for key, value in part.items()} for part in parts]
    parameters, inputs = list(weights.values()), [value for part in parts for value in part.values()]
    with se3_fast.backend("triton"):
        constant, variable, everything = (
            torch.autograd.grad(list(linear(weights, *given).values()), asked, cotangents_of(weights, 17))
            for given, asked in ((constants, parameters), (parts, parameters), (parts, parameters + inputs))
        )
    assert wanted == [False, False, True]
    expected = everything[: len(parameters)]
    assert all(map(torch.equal, constant, expected)) and all(map(torch.equal, variable, expected))


@pytest.mark.parametrize("num_parts", [1, 5, 64], ids="{} parts".format)
def test_weights_in_a_row_have_their_gradient_in_parts(num_parts: int) -> None:
    """More parts than blocks of nodes, too: those are zero."""
    weights, parts = operands_of(CASES["four degrees, two parts"], torch.float64, TRITON_DEVICE)
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
    weights, (first, second) = operands_of(CASES["four degrees, two parts"], torch.float32, TRITON_DEVICE)
    with se3_fast.backend("triton"):
        with pytest.raises(ValueError, match=r"features\['0'\]: expected 12 channels, got 4"):
            linear(weights, first)
        with pytest.raises(ValueError, match=r"features\['2'\]: expected features of 33 nodes, got 32"):
            linear(weights, first | {"2": first["2"][:32]}, second)
        with pytest.raises(ValueError, match=r"features\['1'\]: expected torch.float32 as the weights have, got torch.float64"):
            linear(weights, first | {"1": first["1"].double()}, second)
        with pytest.raises(ValueError, match=r"features: expected degrees \['0', '1', '2', '3'\] per head, got \[0, 1, 2, 4\]"):
            linear(weights, HeadFeatures(torch.zeros(33, 4, 16), ((0, 12), (1, 12), (2, 12), (4, 12))))
