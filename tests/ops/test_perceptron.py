"""The perceptron: what holds on every backend. The output and all gradients are compared with ``dense`` in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import se3_fast
from se3_fast.layers.head import Head
from se3_fast.ops.perceptron import perceptron
from tests.support import BACKENDS, FAST_BACKENDS, TOLERANCE, device_of, leaves, relative_error

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


def operands_of(case: Case, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Input, weights and biases that require grad; exact in bfloat16, so that dtypes can be compared."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (case.rows, case.num_in), (case.num_hidden, case.num_in), (case.num_hidden,), (case.num_out, case.num_hidden),
        (case.num_out,),
    ]  # fmt: skip
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(torch.bfloat16) for shape in shapes]
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def evaluate(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    return perceptron(x, (weight1, bias1), (weight2, bias2))


def cotangent_of(case: Case, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(case.rows, case.num_out, generator=generator).to(torch.bfloat16).to(device)


def run(case: Case, backend: str, dtype: torch.dtype, device: torch.device | None = None) -> dict[str, Tensor]:
    """Output and gradients, on the device that the backend's tests run on or another."""
    device = device or device_of(backend)
    operands = operands_of(case, dtype, device)
    with se3_fast.backend(backend):
        output = evaluate(*operands)
    gradients = torch.autograd.grad(output, operands, cotangent_of(case, device).to(dtype))
    return dict(zip(NAMES, [output.detach(), *gradients], strict=True))


def truth_of(case: Case, backend: str) -> dict[str, Tensor]:
    return run(case, "dense", torch.float64, device_of(backend))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name: str, backend: str) -> None:
    result, truth = run(CASES[name], backend, torch.float64), truth_of(CASES[name], backend)
    for key, value in truth.items():
        assert relative_error(result[key], value) < TOLERANCE[torch.float64], key


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["one output", "several blocks of everything"])
def test_in_each_dtype(name: str, dtype: torch.dtype, backend: str) -> None:
    result, truth = run(CASES[name], backend, dtype), truth_of(CASES[name], backend)
    assert {value.dtype for value in result.values()} == {dtype}
    for key, value in truth.items():
        assert relative_error(result[key], value) < TOLERANCE[dtype], key


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype_of_x", [torch.float32, None], ids=["float32", "half"])
def test_autocast(dtype: torch.dtype, dtype_of_x: torch.dtype | None, backend: str) -> None:
    """The result in the autocast dtype, gradients in those of the operands; float64 is left alone."""
    device = device_of(backend)
    case = CASES["odd sizes"]
    x, *parameters = operands_of(case, torch.float32, device)
    x = x.detach().to(dtype_of_x or dtype).requires_grad_()
    operands = [x, *parameters]
    exact = [operand.detach().double().requires_grad_() for operand in operands]
    with se3_fast.backend(backend), torch.autocast(device.type, dtype):
        output, truth = evaluate(*operands), evaluate(*exact)
    assert output.dtype == dtype and truth.dtype == torch.float64
    assert relative_error(output, truth) < TOLERANCE[dtype]
    gradients = torch.autograd.grad(output, operands, cotangent_of(case, device))
    expected = torch.autograd.grad(truth, exact, cotangent_of(case, device).double())
    for name, operand, found, gradient in zip(NAMES[1:], operands, gradients, expected, strict=True):
        assert found.dtype == operand.dtype, name
        assert relative_error(found, gradient) < TOLERANCE[dtype], name


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_autocast_rounds_the_operands(backend: str) -> None:
    """As a cast before the products does."""
    device = device_of(backend)
    operands = [torch.randn_like(operand) for operand in operands_of(CASES["odd sizes"], torch.float32, device)]
    with se3_fast.backend(backend):
        with torch.autocast(device.type, torch.float16):
            found = evaluate(*operands)
        rounded = evaluate(*(operand.half() for operand in operands))
    assert torch.equal(found, rounded)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_two_runs_are_identical(backend: str) -> None:
    first, second = (run(CASES["several blocks of everything"], backend, torch.float32) for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_bad_values_show_in_their_row_only(backend: str) -> None:
    x, *parameters = operands_of(CASES["odd sizes"], torch.float32, device_of(backend))
    x.data[4, 2] = torch.nan
    with se3_fast.backend(backend):
        output = evaluate(x, *parameters)
    assert output.isnan().all(-1).nonzero().flatten().tolist() == [4] and output.isnan().sum() == output.shape[1]
    (gradient,) = torch.autograd.grad(output, x, torch.ones_like(output))
    assert gradient.isfinite().all()  # as in PyTorch: the relu passes it on
    (gradient,) = torch.autograd.grad(evaluate(x, *parameters), parameters[0], torch.ones_like(output))
    assert gradient[:, 2].isnan().all() and gradient[:, :2].isfinite().all()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_no_gradient_through_units_that_are_zero(backend: str) -> None:
    """At the kink the gradient is that of PyTorch: 0."""
    device = device_of(backend)
    x, _, bias1, weight2, bias2 = operands_of(CASES["odd sizes"], torch.float32, device)
    weight1 = torch.zeros(len(bias1), x.shape[1], device=device)
    bias1 = torch.zeros_like(bias1).requires_grad_()
    with se3_fast.backend(backend):
        (gradient,) = torch.autograd.grad(evaluate(x, weight1, bias1, weight2, bias2).sum(), bias1)
    assert not gradient.any()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_operands_and_gradients_that_are_not_contiguous(backend: str) -> None:
    device = device_of(backend)
    case = CASES["odd sizes"]
    operands = operands_of(case, torch.float32, device)
    transposed = [operand.detach().T.contiguous().T.requires_grad_() if operand.ndim == 2 else operand for operand in operands]
    cotangent = cotangent_of(case, device).float().T.contiguous().T
    results = []
    for name in (backend, "dense"):
        with se3_fast.backend(name):
            output = evaluate(*transposed)
        results.append([output, *torch.autograd.grad(output, transposed, cotangent)])
    assert all(relative_error(*pair) < TOLERANCE[torch.float32] for pair in zip(*results, strict=True))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_second_derivatives(backend: str) -> None:
    operands = leaves(operands_of(Case(3, 4, 5, 2), torch.float64, device_of(backend)))

    def function(*tensors: Tensor) -> Tensor:
        # Not contiguous, so that what is differentiated again must be the operands themselves.
        given = [tensor.T.contiguous().T if tensor.ndim == 2 else tensor for tensor in tensors]
        with se3_fast.backend(backend):
            return evaluate(*given)

    assert torch.autograd.gradgradcheck(function, operands)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_sizes_of_zero(backend: str) -> None:
    for sizes in ((0, 5, 2), (3, 0, 2), (3, 5, 0)):
        result, truth = run(Case(4, *sizes), backend, torch.float64), truth_of(Case(4, *sizes), backend)
        assert all(map(torch.equal, result.values(), truth.values()))


def operands(rows: int, num_in: int, num_hidden: int, num_out: int) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return leaf(rows, num_in), (leaf(num_hidden, num_in), leaf(num_hidden)), (leaf(num_out, num_hidden), leaf(num_out))


@pytest.mark.parametrize("backend", ["dense", "torch", "auto"])
def test_formula(backend: str) -> None:
    x, (weight1, bias1), (weight2, bias2) = operands(4, 3, 5, 2)
    with se3_fast.backend(backend):
        result = perceptron(x, (weight1, bias1), (weight2, bias2))
    for row, found in zip(x, result, strict=True):
        hidden = (weight1 @ row + bias1).clamp(min=0.0)
        assert torch.allclose(found, weight2 @ hidden + bias2, rtol=1e-14)


def test_gradients() -> None:
    x, first, second = operands(4, 3, 5, 2)
    flat = [x, *first, *second]
    with se3_fast.backend("dense"):
        assert torch.autograd.gradcheck(lambda x, w1, b1, w2, b2: perceptron(x, (w1, b1), (w2, b2)), flat)


def test_no_channels() -> None:
    x, first, second = operands(4, 0, 5, 2)
    result = perceptron(x, first, second)
    assert torch.allclose(result, (second[0] @ first[1].clamp(min=0.0) + second[1]).expand(4, 2))


def test_layer_is_the_published_sequence() -> None:
    torch.manual_seed(0)
    published = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    torch.manual_seed(0)
    head = Head(6, 6, 2)
    assert list(head.state_dict()) == list(published.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(map(torch.equal, head.parameters(), published.parameters()))
    x = torch.randn(7, 6)
    with se3_fast.backend("torch"):
        assert torch.equal(head(x), published(x))


def scaled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 3.0 * output


CHANGES: dict[str, Callable[[Head], Any]] = {
    "activation": lambda head: head.__setitem__(1, nn.SiLU()),
    "dropout": lambda head: head.__setitem__(1, nn.Sequential(nn.ReLU(), nn.Dropout(0.5))),
    "without bias": lambda head: head.__setitem__(0, nn.Linear(6, 6, bias=False)),
    "adapter": lambda head: head.__setitem__(2, nn.Sequential(head[2], nn.Linear(2, 2))),
    "appended": lambda head: head.append(nn.Tanh()),
    "hook on the first layer": lambda head: head[0].register_forward_hook(scaled),
    "hook on the activation": lambda head: head[1].register_forward_hook(scaled),
    "pruned": lambda head: nn.utils.prune.random_unstructured(head[2], "weight", 0.5),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_were_changed_are_called(change: str, backend: str) -> None:
    torch.manual_seed(0)
    head = Head(6, 6, 2)
    CHANGES[change](head)
    head.double().to(device_of(backend)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(2.0)  # what pruning keeps the weight in, too
    x = torch.randn(7, 6, dtype=torch.float64, device=device_of(backend))
    expected = x
    for module in head:
        expected = module(expected)
    with se3_fast.backend(backend):
        assert relative_error(head(x), expected) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_on_all_modules(backend: str) -> None:
    called: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: called.append(type(module).__name__))
    try:
        with se3_fast.backend(backend):
            Head(3, 4, 2)(torch.randn(5, 3))
    finally:
        handle.remove()
    assert called == ["Linear", "ReLU", "Linear", "Head"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype_under_autocast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype):
        assert Head(3, 4, 2)(torch.randn(5, 3)).dtype == dtype


def test_errors() -> None:
    x, first, second = operands(4, 3, 5, 2)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 3\] as the first weight has, got \[4, 2\]"):
        perceptron(x[:, :2], first, second)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 3\] as the first weight has, got \[4, 3, 1\]"):
        perceptron(x[..., None], first, second)
    with pytest.raises(ValueError, match=r"first: expected a weight .* and a bias .*, got \[5, 3\] and \[4\]"):
        perceptron(x, (first[0], first[1][:4]), second)
    with pytest.raises(ValueError, match=r"second: expected a weight .* and a bias .*, got \[2\] and \[2\]"):
        perceptron(x, first, (second[1], second[1]))
    with pytest.raises(ValueError, match=r"second: expected a weight for the 5 outputs of the first, got 4"):
        perceptron(x, first, (second[0][:, :4], second[1]))
    with pytest.raises(ValueError, match=r"x: expected torch.float64 as the first weight has, got torch.float32"):
        perceptron(x.float(), first, second)
    with pytest.raises(ValueError, match=r"second: expected torch.float64 as the first weight has, got torch.float16"):
        perceptron(x, first, (second[0], second[1].half()))
