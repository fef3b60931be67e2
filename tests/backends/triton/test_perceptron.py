"""The Triton perceptron against ``dense`` in float64: output and all gradients. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast.kernels import perceptron as kernels
from se3_fast.layers.head import Head
from se3_fast.ops.perceptron import perceptron
from tests.support import TOLERANCE, TRITON_DEVICE, leaves, relative_error

pytest.importorskip("triton")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NAMES = ("output", "x", "first weight", "first bias", "second weight", "second bias")


class Case(NamedTuple):
    """Rows, input channels, hidden units and outputs."""

    rows: int
    num_in: int
    num_hidden: int
    num_out: int


CASES = {
    "one output": Case(19, 32, 32, 1),
    "odd sizes": Case(37, 17, 35, 3),
    "several blocks of everything": Case(70, 33, 65, 40),
    "more rows than a step walks over": Case(150, 5, 7, 2),
    "one of everything": Case(1, 1, 1, 1),
    "many outputs": Case(3, 4, 6, 130),
    "no rows": Case(0, 5, 4, 3),
}


def operands_of(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Input, weights and biases that require grad; exact in bfloat16, so that dtypes can be compared."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (case.rows, case.num_in), (case.num_hidden, case.num_in), (case.num_hidden,), (case.num_out, case.num_hidden),
        (case.num_out,),
    ]  # fmt: skip
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(torch.bfloat16) for shape in shapes]
    return [tensor.to(TRITON_DEVICE, dtype).requires_grad_() for tensor in tensors]


def evaluate(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return perceptron(x, (weight1, bias1), (weight2, bias2))


def cotangent_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.rows, case.num_out, generator=generator).to(torch.bfloat16).to(TRITON_DEVICE)


def run(case: Case, backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients."""
    operands = operands_of(case, dtype)
    with se3_fast.backend(backend):
        output = evaluate(*operands)
    gradients = torch.autograd.grad(output, operands, cotangent_of(case).to(dtype))
    return dict(zip(NAMES, [output.detach(), *gradients], strict=True))


@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name: str) -> None:
    result, truth = (run(CASES[name], backend, torch.float64) for backend in ("triton", "dense"))
    for key, value in truth.items():
        assert relative_error(result[key], value) < TOLERANCE[torch.float64], key


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ["one output", "several blocks of everything"])
def test_in_each_dtype(name: str, dtype: torch.dtype) -> None:
    result, truth = run(CASES[name], "triton", dtype), run(CASES[name], "dense", torch.float64)
    assert {value.dtype for value in result.values()} == {dtype}
    for key, value in truth.items():
        assert relative_error(result[key], value) < TOLERANCE[dtype], key


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("dtype_of_x", [torch.float32, None], ids=["float32", "half"])
def test_autocast(dtype: torch.dtype, dtype_of_x: torch.dtype | None) -> None:
    """The result in the autocast dtype, gradients in those of the operands; float64 is left alone."""
    case = CASES["odd sizes"]
    x, *parameters = operands_of(case, torch.float32)
    x = x.detach().to(dtype_of_x or dtype).requires_grad_()
    operands = [x, *parameters]
    exact = [operand.detach().double().requires_grad_() for operand in operands]
    with se3_fast.backend("triton"), torch.autocast(TRITON_DEVICE.type, dtype):
        output, truth = evaluate(*operands), evaluate(*exact)
    assert output.dtype == dtype and truth.dtype == torch.float64
    assert relative_error(output, truth) < TOLERANCE[dtype]
    gradients = torch.autograd.grad(output, operands, cotangent_of(case))
    expected = torch.autograd.grad(truth, exact, cotangent_of(case).double())
    for name, operand, found, gradient in zip(NAMES[1:], operands, gradients, expected, strict=True):
        assert found.dtype == operand.dtype, name
        assert relative_error(found, gradient) < TOLERANCE[dtype], name


def test_autocast_rounds_the_operands() -> None:
    """As a cast before the products does."""
    operands = [torch.randn_like(operand) for operand in operands_of(CASES["odd sizes"], torch.float32)]
    with se3_fast.backend("triton"):
        with torch.autocast(TRITON_DEVICE.type, torch.float16):
            found = evaluate(*operands)
        rounded = evaluate(*(operand.half() for operand in operands))
    assert torch.equal(found, rounded)


def test_two_runs_are_identical() -> None:
    first, second = (run(CASES["several blocks of everything"], "triton", torch.float32) for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_bad_values_show_in_their_row_only() -> None:
    x, *parameters = operands_of(CASES["odd sizes"], torch.float32)
    x.data[4, 2] = torch.nan
    with se3_fast.backend("triton"):
        output = evaluate(x, *parameters)
    assert output.isnan().all(-1).nonzero().flatten().tolist() == [4] and output.isnan().sum() == output.shape[1]
    (gradient,) = torch.autograd.grad(output, x, torch.ones_like(output))
    assert gradient.isfinite().all()  # as in PyTorch: the relu passes it on
    (gradient,) = torch.autograd.grad(evaluate(x, *parameters), parameters[0], torch.ones_like(output))
    assert gradient[:, 2].isnan().all() and gradient[:, :2].isfinite().all()


def test_no_gradient_through_units_that_are_zero() -> None:
    """At the kink the gradient is that of PyTorch: 0."""
    x, _, bias1, weight2, bias2 = operands_of(CASES["odd sizes"], torch.float32)
    weight1 = torch.zeros(len(bias1), x.shape[1], device=TRITON_DEVICE)
    bias1 = torch.zeros_like(bias1).requires_grad_()
    with se3_fast.backend("triton"):
        (gradient,) = torch.autograd.grad(evaluate(x, weight1, bias1, weight2, bias2).sum(), bias1)
    assert not gradient.any()


def test_operands_and_gradients_that_are_not_contiguous() -> None:
    case = CASES["odd sizes"]
    operands = operands_of(case, torch.float32)
    transposed = [operand.detach().T.contiguous().T.requires_grad_() if operand.ndim == 2 else operand for operand in operands]
    cotangent = cotangent_of(case).float().T.contiguous().T
    results = []
    for backend in ("triton", "dense"):
        with se3_fast.backend(backend):
            output = evaluate(*transposed)
        results.append([output, *torch.autograd.grad(output, transposed, cotangent)])
    assert all(relative_error(*pair) < TOLERANCE[torch.float32] for pair in zip(*results, strict=True))


def test_no_gradient_for_an_input_that_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[bool] = []
    backward = kernels.backward

    def watched(*arguments: object) -> object:
        wanted.append(bool(arguments[-1]))
        return backward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "backward", watched)
    case = CASES["odd sizes"]
    x, *parameters = operands_of(case, torch.float64)
    with se3_fast.backend("triton"):
        found, expected = (
            torch.autograd.grad(evaluate(given, *parameters), parameters, cotangent_of(case).double()) for given in (x.detach(), x)
        )
    assert wanted == [False, True]
    assert all(map(torch.equal, found, expected))


def test_second_derivatives() -> None:
    operands = leaves(operands_of(Case(3, 4, 5, 2), torch.float64))

    def function(*tensors: Tensor) -> Tensor:
        # Not contiguous, so that what is differentiated again must be the operands themselves.
        given = [tensor.T.contiguous().T if tensor.ndim == 2 else tensor for tensor in tensors]
        with se3_fast.backend("triton"):
            return evaluate(*given)

    assert torch.autograd.gradgradcheck(function, operands)


def test_sizes_of_zero_are_left_to_pytorch() -> None:
    for sizes in ((0, 5, 2), (3, 0, 2), (3, 5, 0)):
        result, truth = (run(Case(4, *sizes), backend, torch.float64) for backend in ("triton", "dense"))
        assert all(map(torch.equal, result.values(), truth.values()))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float64", "autocast"])
def test_code_of_the_compiler(dtype: torch.dtype | None) -> None:
    torch._dynamo.reset()
    head = Head(5, 6, 2).to(TRITON_DEVICE, torch.float32 if dtype else torch.float64)
    autocast = torch.autocast(TRITON_DEVICE.type, dtype, enabled=dtype is not None)
    with se3_fast.backend("triton"), autocast:
        compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
        for rows in (5, 7):
            x = torch.randn(rows, 5, dtype=head[0].weight.dtype, device=TRITON_DEVICE, requires_grad=True)
            operands = [x, *head.parameters()]
            results = []
            for call in (head, compiled):
                output = call(x)
                results.append([output, *torch.autograd.grad(output, operands, torch.ones_like(output))])
            assert all(map(torch.equal, *results))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()
