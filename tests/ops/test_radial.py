"""The hidden radial layers: what holds on every backend. h and every gradient are compared with ``dense`` in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast.backends.operands import profile_parameters
from se3_fast.ops.radial import RadialLayer, radial
from tests.support import FAST_BACKENDS, TOLERANCE, device_of, relative_error

WIDTH = 32


@pytest.fixture
def two_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs of the Triton kernels for each of two groups, each of which walks over several blocks of edges."""
    monkeypatch.setattr("se3_fast.kernels.radial._FORWARD_PROGRAMS", 4)
    monkeypatch.setattr("se3_fast.kernels.radial._BACKWARD_PROGRAMS", 4)


def make_layer(inputs: int, has_norm: bool, dtype: torch.dtype, device: torch.device, is_clear: bool = False) -> RadialLayer:
    """Random parameters, exact in bfloat16; ``is_clear``: with all units clearly above or below the threshold of ReLU."""
    weight, *vectors = (torch.randn(shape) for shape in [(WIDTH, inputs), (WIDTH,), (WIDTH,), (WIDTH,)])
    if is_clear:
        weight /= 16
        vectors = [1.5 * vectors[0].sign(), 0.25 * vectors[1].sign(), 1.5 * vectors[2].sign()]
    weight, bias, scale, shift = (tensor.to(torch.bfloat16).to(device, dtype).requires_grad_() for tensor in (weight, *vectors))
    return RadialLayer(weight, bias, *((scale, shift) if has_norm else (None, None)))


class Case(NamedTuple):
    """Edges, invariants and groups; ``is_clear``: see :func:`make_layer`."""

    num_edges: int
    num_invariants: int
    num_groups: int
    has_norm: bool
    is_clear: bool = False


def run(case: Case, backend: str, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """h and gradients of all groups; inputs are exact in bfloat16, so that dtypes can be compared."""
    torch.manual_seed(0)
    invariants = torch.randn(case.num_edges, case.num_invariants).to(torch.bfloat16).to(device, dtype).requires_grad_()
    profiles = [
        tuple(make_layer(width, case.has_norm, dtype, device, case.is_clear) for width in (case.num_invariants, WIDTH))
        for _ in range(case.num_groups)
    ]
    with se3_fast.backend(backend):
        hidden = radial(invariants, profiles)  # type: ignore[arg-type]
    cotangents = [torch.randn(case.num_edges, WIDTH).to(torch.bfloat16).to(device, dtype) for _ in profiles]
    torch.autograd.backward(list(hidden), cotangents)
    result = {"gradient of invariants": invariants.grad}
    for group, (values, layers) in enumerate(zip(hidden, profiles, strict=True)):
        result[f"h {group}"] = values.detach()
        for number, layer in enumerate(layers):
            leaves = {name: leaf for name, leaf in layer._asdict().items() if leaf is not None}
            result |= {f"gradient of {name} {number} of {group}": leaf.grad for name, leaf in leaves.items()}
    return {name: value for name, value in result.items() if value is not None}


def assert_equal(result: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    assert result.keys() == truth.keys()
    for name, value in result.items():
        assert relative_error(value, truth[name]) < tolerance, name


SIZES = [(0, 3, 2), (1, 1, 1), (33, 5, 2), (33, 17, 3), (70, 33, 1), (5, 70, 2)]


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("sizes", SIZES, ids="{0[0]}-{0[1]}-{0[2]}".format)
def test_equals_dense(sizes: tuple[int, int, int], has_norm: bool, backend: str) -> None:
    results = [run(Case(*sizes, has_norm), one, torch.float64, device_of(backend)) for one in (backend, "dense")]
    assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.usefixtures("two_programs")
def test_programs_with_several_blocks(backend: str) -> None:
    results = [run(Case(103, 5, 2, True), one, torch.float64, device_of(backend)) for one in (backend, "dense")]
    assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no norm"])
def test_in_each_dtype(dtype: torch.dtype, has_norm: bool, backend: str) -> None:
    case, device = Case(33, 17, 2, has_norm, is_clear=True), device_of(backend)
    result = run(case, backend, dtype, device)
    assert {value.dtype for value in result.values()} == {dtype}
    assert_equal(result, run(case, "dense", torch.float64, device), TOLERANCE[dtype])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.usefixtures("two_programs")
def test_two_runs_are_identical(backend: str) -> None:
    first, second = (run(Case(70, 5, 2, True), backend, torch.float32, device_of(backend)) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype, backend: str) -> None:
    """h in the autocast dtype, gradients in the parameters' own."""
    device = device_of(backend)
    torch.manual_seed(0)
    profile = (make_layer(5, True, torch.float32, device), make_layer(WIDTH, True, torch.float32, device))
    invariants = torch.randn(9, 5, device=device, requires_grad=True)
    with se3_fast.backend(backend), torch.autocast(device.type, dtype):
        (hidden,) = radial(invariants, [profile])
    with se3_fast.backend("dense"):
        (truth,) = radial(invariants, [profile])
    hidden.float().sum().backward()
    assert hidden.dtype == dtype
    assert relative_error(hidden, truth) < TOLERANCE[dtype]
    assert invariants.grad is not None and invariants.grad.dtype == profile[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("is_strided", [False, True])
def test_second_derivatives(is_strided: bool, backend: str) -> None:
    """Also of invariants that are not contiguous, of which the kernel takes a copy."""
    device = device_of(backend)
    results = []
    for name in ("dense", backend):
        torch.manual_seed(0)
        profile = (
            make_layer(5, True, torch.float64, device),
            make_layer(WIDTH, True, torch.float64, device),
        )
        leaf = torch.randn(*((5, 9) if is_strided else (9, 5)), dtype=torch.float64, device=device).requires_grad_()
        with se3_fast.backend(name):
            (hidden,) = radial(leaf.t() if is_strided else leaf, [profile])
            (first,) = torch.autograd.grad(hidden.square().sum(), leaf, create_graph=True)
            results.append([first, *torch.autograd.grad(first.square().sum(), [leaf, profile[0].weight])])
    for truth, found in zip(*results, strict=True):
        assert relative_error(found, truth) < 1e-10


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_constant_invariants_change_no_other_gradient(backend: str) -> None:
    device = device_of(backend)
    profile = (make_layer(5, True, torch.float64, device), make_layer(WIDTH, True, torch.float64, device))
    invariants = torch.randn(9, 5, dtype=torch.float64, device=device)
    parameters = profile_parameters([profile])
    with se3_fast.backend(backend):
        found, expected = (
            torch.autograd.grad(radial(given, [profile])[0].sum(), parameters)
            for given in (invariants, invariants.clone().requires_grad_())
        )
    assert all(map(torch.equal, found, expected))


def test_hidden_layers_equal_modules() -> None:
    torch.manual_seed(0)
    invariants = torch.randn(7, 3, dtype=torch.float64)
    modules = [nn.Linear(3, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU()]
    network = nn.Sequential(*modules).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    layers = tuple(
        RadialLayer(linear.weight, linear.bias, norm.weight, norm.bias)
        for linear, norm in ((modules[0], modules[1]), (modules[3], modules[4]))
    )
    (hidden,) = radial(invariants, [layers])
    torch.testing.assert_close(hidden, network(invariants), rtol=0, atol=1e-13)


def test_without_layer_norm() -> None:
    invariants = torch.randn(7, 3, dtype=torch.float64)
    first, second = (nn.Linear(width, 32).double() for width in (3, 32))
    layers = tuple(RadialLayer(linear.weight, linear.bias, None, None) for linear in (first, second))
    (hidden,) = radial(invariants, [layers])
    torch.testing.assert_close(hidden, second(first(invariants).relu()).relu(), rtol=0, atol=1e-13)


def test_no_edges() -> None:
    layer = RadialLayer(torch.ones(32, 2), torch.zeros(32), torch.ones(32), torch.zeros(32))
    inner = RadialLayer(torch.ones(32, 32), torch.zeros(32), torch.ones(32), torch.zeros(32))
    (hidden,) = radial(torch.zeros(0, 2), [(layer, inner)])
    assert hidden.shape == (0, 32)
