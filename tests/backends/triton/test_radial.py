"""The Triton radial layers against ``dense`` in float64: h and every gradient. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast.backends.operands import profile_parameters
from se3_fast.backends.triton.radial import FusedRadial, radial_of_layers
from se3_fast.ops.radial import RadialLayer, radial
from tests.support import TOLERANCE, TRITON_DEVICE, relative_error

pytest.importorskip("triton")

WIDTH = 32


@pytest.fixture
def two_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two programs for each of two groups, each of which walks over several blocks of edges."""
    from se3_fast.kernels import radial as kernels

    monkeypatch.setattr(kernels, "_FORWARD_PROGRAMS", 4)
    monkeypatch.setattr(kernels, "_BACKWARD_PROGRAMS", 4)


def make_layer(inputs: int, has_norm: bool, dtype: torch.dtype, is_clear: bool = False) -> RadialLayer:
    """Random parameters, exact in bfloat16; ``is_clear``: with all units clearly above or below the threshold of ReLU."""
    weight, *vectors = (torch.randn(shape) for shape in [(WIDTH, inputs), (WIDTH,), (WIDTH,), (WIDTH,)])
    if is_clear:
        weight /= 16
        vectors = [1.5 * vectors[0].sign(), 0.25 * vectors[1].sign(), 1.5 * vectors[2].sign()]
    weight, bias, scale, shift = (
        tensor.to(torch.bfloat16).to(TRITON_DEVICE, dtype).requires_grad_() for tensor in (weight, *vectors)
    )
    return RadialLayer(weight, bias, *((scale, shift) if has_norm else (None, None)))


def run(
    num_edges: int,
    num_invariants: int,
    num_groups: int,
    has_norm: bool,
    backend: str,
    dtype: torch.dtype,
    is_clear: bool = False,
) -> dict[str, Tensor]:
    """h and gradients of all groups; inputs are exact in bfloat16, so that dtypes can be compared."""
    torch.manual_seed(0)
    invariants = torch.randn(num_edges, num_invariants).to(torch.bfloat16).to(TRITON_DEVICE, dtype).requires_grad_()
    widths = (num_invariants, WIDTH)
    profiles = [tuple(make_layer(width, has_norm, dtype, is_clear) for width in widths) for _ in range(num_groups)]
    with se3_fast.backend(backend):
        hidden = radial(invariants, profiles)  # type: ignore[arg-type]
    cotangents = [torch.randn(num_edges, WIDTH).to(torch.bfloat16).to(TRITON_DEVICE, dtype) for _ in range(num_groups)]
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


@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize(
    ("num_edges", "num_invariants", "num_groups"), [(0, 3, 2), (1, 1, 1), (33, 5, 2), (33, 17, 3), (70, 33, 1), (5, 70, 2)]
)
def test_equals_dense(num_edges: int, num_invariants: int, num_groups: int, has_norm: bool) -> None:
    results = [run(num_edges, num_invariants, num_groups, has_norm, backend, torch.float64) for backend in ("triton", "dense")]
    assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.usefixtures("two_programs")
def test_programs_with_several_blocks() -> None:
    results = [run(103, 5, 2, True, backend, torch.float64) for backend in ("triton", "dense")]
    assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "no norm"])
def test_in_each_dtype(dtype: torch.dtype, has_norm: bool) -> None:
    result = run(33, 17, 2, has_norm, "triton", dtype, is_clear=True)
    assert {value.dtype for value in result.values()} == {dtype}
    assert_equal(result, run(33, 17, 2, has_norm, "dense", torch.float64, is_clear=True), TOLERANCE[dtype])


@pytest.mark.usefixtures("two_programs")
def test_two_runs_are_identical() -> None:
    first, second = (run(70, 5, 2, True, "triton", torch.float32) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """h in the autocast dtype, gradients in the parameters' own."""
    torch.manual_seed(0)
    profile = (make_layer(5, True, torch.float32), make_layer(WIDTH, True, torch.float32))
    invariants = torch.randn(9, 5, device=TRITON_DEVICE, requires_grad=True)
    with se3_fast.backend("triton"), torch.autocast(TRITON_DEVICE.type, dtype):
        (hidden,) = radial(invariants, [profile])
    with se3_fast.backend("dense"):
        (truth,) = radial(invariants, [profile])
    hidden.float().sum().backward()
    assert hidden.dtype == dtype
    assert relative_error(hidden, truth) < TOLERANCE[dtype]
    assert invariants.grad is not None and invariants.grad.dtype == profile[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("is_strided", [False, True])
def test_second_derivatives(is_strided: bool) -> None:
    """Also of invariants that are not contiguous, of which the kernel takes a copy."""
    results = []
    for backend in ("dense", "triton"):
        torch.manual_seed(0)
        profile = (make_layer(5, True, torch.float64), make_layer(WIDTH, True, torch.float64))
        leaf = torch.randn(*((5, 9) if is_strided else (9, 5)), dtype=torch.float64, device=TRITON_DEVICE).requires_grad_()
        with se3_fast.backend(backend):
            (hidden,) = radial(leaf.t() if is_strided else leaf, [profile])
            (first,) = torch.autograd.grad(hidden.square().sum(), leaf, create_graph=True)
            results.append([first, *torch.autograd.grad(first.square().sum(), [leaf, profile[0].weight])])
    for truth, found in zip(*results, strict=True):
        assert relative_error(found, truth) < 1e-10


def test_constant_invariants_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from se3_fast.kernels import radial as kernels

    monkeypatch.setattr(kernels, "_invariant_gradient_kernel", None)
    profile = (make_layer(5, True, torch.float32), make_layer(WIDTH, True, torch.float32))
    with se3_fast.backend("triton"):
        (hidden,) = radial(torch.randn(9, 5, device=TRITON_DEVICE), [profile])
    hidden.sum().backward()
    assert profile[0].weight.grad is not None


def test_only_inputs_are_kept() -> None:
    """Invariants and parameters; h is kept by who uses it."""
    profile = (make_layer(5, True, torch.float32), make_layer(WIDTH, True, torch.float32))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with se3_fast.backend("triton"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        radial(torch.randn(100, 5, device=TRITON_DEVICE), [profile])
    assert sorted(tensor.numel() for tensor in kept) == [500, 5 * WIDTH + WIDTH * WIDTH + 6 * WIDTH]


def test_other_backends_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedRadial, "apply", lambda *_: pytest.fail("expected the reference"))
    run(3, 2, 1, True, "torch", torch.float64)


@pytest.mark.parametrize("num_edges", [0, 3, 200], ids="{} edges".format)
@pytest.mark.parametrize("num_parts", [1, 64], ids="{} parts".format)
def test_profiles_of_several_layers_at_once(num_edges: int, num_parts: int) -> None:
    """Gradients of h come in two and in three parts, those of the parameters go in one or many, more than blocks of edges."""
    torch.manual_seed(0)
    widths = (5, WIDTH)
    layers = [
        [tuple(make_layer(width, True, torch.float64) for width in widths) for _ in range(num_groups)] for num_groups in (1, 3)
    ]
    invariants = torch.randn(num_edges, 5, dtype=torch.float64, device=TRITON_DEVICE).requires_grad_()
    parameters = [tensor for profiles in layers for tensor in profile_parameters(profiles)]  # type: ignore[arg-type]
    row = torch.cat([tensor.detach().flatten() for tensor in parameters]).expand(num_parts, -1).requires_grad_()
    splits = [2, 3]
    with se3_fast.backend("triton"):
        found = radial_of_layers(invariants, layers, row, splits)  # type: ignore[arg-type]
    cotangents = [torch.randn_like(values) for values in found]
    of_invariants, of_row = torch.autograd.grad(found, [invariants, row], cotangents)
    assert of_row.shape == row.shape
    with se3_fast.backend("dense"):
        expected = [torch.stack(list(radial(invariants, profiles))) for profiles in layers]  # type: ignore[arg-type]
    for values, truth, parts in zip(found, expected, splits, strict=True):
        assert values.shape == (parts, *truth.shape)
        assert all(relative_error(part, truth) < 1e-12 for part in values)
    true_gradients = torch.autograd.grad(expected, [invariants, *parameters], [cotangent.sum(0) for cotangent in cotangents])
    assert relative_error(of_invariants, true_gradients[0]) < 1e-12
    assert relative_error(of_row.sum(0), torch.cat([gradient.flatten() for gradient in true_gradients[1:]])) < 1e-12
