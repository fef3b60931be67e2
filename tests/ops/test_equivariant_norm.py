"""The norms: what holds on every backend. The output and every gradient are compared with ``dense`` in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import se3_fast
from se3_fast import Fiber, NormSE3
from se3_fast.backends.dense import equivariant_norm as formula
from se3_fast.backends.operands import Norm
from se3_fast.ops import equivariant_norm
from tests.support import (
    BACKENDS,
    FAST_BACKENDS,
    TOLERANCE,
    device_of,
    leaves,
    random_features,
    random_rotation,
    relative_error,
    rotate_features,
)

CASES = {
    "four degrees": ({0: 5, 1: 5, 2: 5, 3: 5}, 33),
    "32 channels, several blocks": ({0: 32, 1: 32}, 33),
    "17 channels, degrees apart": ({1: 17, 4: 17}, 3),
    "nine degrees": ({degree: 3 for degree in range(9)}, 2),
    "one channel, one node": ({0: 1, 1: 1}, 1),
    "unequal channels": ({0: 17, 1: 3, 2: 1}, 5),
    "no nodes": ({0: 3, 1: 3}, 0),
}


@pytest.fixture
def two_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass of the Triton kernel with few programs, each of which walks over several blocks of nodes."""
    monkeypatch.setattr("se3_fast.kernels.equivariant_norm._MAX_PARTIAL_SUMS", 2)


def run(
    structure: dict[int, int],
    num_nodes: int,
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
    nonlinearity: nn.Module | None = None,
    below_clamp: float = 2.0**-26,
) -> dict[str, Tensor]:
    """Outputs and gradients; inputs are exact in bfloat16, so that dtypes can be compared.

    Some features are zero, some small and some of length ``below_clamp``, which float16 has but zero for.
    """
    torch.manual_seed(0)
    fiber = Fiber(structure)
    module = NormSE3(fiber, nonlinearity)
    for parameter in module.parameters():
        nn.init.normal_(parameter).data.copy_(parameter.to(torch.bfloat16))
    module = module.to(device, dtype)
    features = {key: value.to(torch.bfloat16).to(device, dtype) for key, value in random_features(fiber, num_nodes).items()}
    for value in features.values():
        value[:1, :1] = 0.0
        value[1:2, :1] = 2.0**-6
        value[2:3, :1, :1] = below_clamp
        value[2:3, :1, 1:] = 0.0
        value.requires_grad_()
    with se3_fast.backend(backend):
        outputs = module(features)
    cotangents = random_features(fiber, num_nodes, seed=2)
    torch.autograd.backward(list(outputs.values()), [cotangents[key].to(torch.bfloat16).to(device, dtype) for key in outputs])
    gradients = {f"gradient of {key}": value.grad for key, value in features.items()}
    parameters = {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return {name: value.detach() for name, value in (outputs | gradients | parameters).items() if value is not None}


def assert_equal(result: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    """Gradients of small features are large, up to 2^24: those that the dtype has are compared apart from the rest."""
    assert result.keys() == truth.keys()
    for name, value in result.items():
        size = truth[name].abs()
        for part in (size < 10, (size >= 10) & (size <= torch.finfo(value.dtype).max)):
            assert relative_error(value.where(part, 0), truth[name].where(part, 0)) < tolerance, name


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("two_programs")
def test_equals_dense(name: str, backend: str) -> None:
    results = [run(*CASES[name], one, torch.float64, device_of(backend)) for one in (backend, "dense")]
    assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["four degrees", "unequal channels"])
def test_in_each_dtype(name: str, dtype: torch.dtype, backend: str) -> None:
    """A GPU's roots and quotients are off by two units in the last place; z, a difference of like norms, by more."""
    device = device_of(backend)
    result = run(*CASES[name], backend, dtype, device, below_clamp=0.0)
    assert {value.dtype for value in result.values()} == {dtype}
    assert_equal(result, run(*CASES[name], "dense", torch.float64, device, below_clamp=0.0), max(TOLERANCE[dtype], 4e-6))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.usefixtures("two_programs")
def test_two_runs_are_identical(backend: str) -> None:
    first, second = (run(*CASES["four degrees"], backend, torch.float32, device_of(backend)) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_parameters_of_another_dtype_and_features_that_are_not_contiguous(backend: str) -> None:
    device = device_of(backend)
    features = torch.randn(5, 3, 4, device=device).transpose(1, 2).half().requires_grad_()
    scale, shift = (torch.randn(4, device=device).requires_grad_() for _ in range(2))
    with se3_fast.backend(backend):
        output = equivariant_norm.layer_norm(features, Norm(scale, shift, 1e-5, nn.ReLU()))
    output.sum().backward()
    assert output.dtype == features.grad.dtype == torch.float16
    assert scale.grad is not None and scale.grad.dtype == torch.float32
    truth = formula.layer_norm(features.double(), Norm(scale.double(), shift.double(), 1e-5, nn.ReLU()))
    assert relative_error(output, truth) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_show(value: float, backend: str) -> None:
    device = device_of(backend)
    features = {"0": torch.full((2, 3, 1), 1.0, device=device), "1": torch.ones(2, 3, 3, device=device)}
    features["1"][1, 1, 1] = value
    with se3_fast.backend(backend):
        output = NormSE3(Fiber({0: 3, 1: 3})).to(device)(features)
    assert output["0"].isfinite().all() and output["1"][0].isfinite().all() and output["1"][1, 1].isnan().all()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("is_strided", [False, True])
def test_second_derivatives(is_strided: bool, backend: str) -> None:
    """Also of features that are not contiguous, of which the kernel takes a copy, and of zero features."""
    device = device_of(backend)
    fiber = Fiber({0: 3, 1: 3})
    results = []
    for name in ("dense", backend):
        torch.manual_seed(0)
        module = NormSE3(fiber).double().to(device)
        isolated = torch.tensor([1])
        values = {key: value.index_fill(0, isolated, 0.0).to(device) for key, value in random_features(fiber, 4).items()}
        inputs = {key: (value.mT.contiguous() if is_strided else value).requires_grad_() for key, value in values.items()}
        with se3_fast.backend(name):
            normed = module({key: leaf.mT if is_strided else leaf for key, leaf in inputs.items()})
            loss = torch.stack([value.square().sum() for value in normed.values()]).sum()
            first = torch.autograd.grad(loss, list(inputs.values()), create_graph=True)
            loss = torch.stack([gradient.square().sum() for gradient in first]).sum()
            results.append([*first, *torch.autograd.grad(loss, [*inputs.values(), *module.parameters()], allow_unused=True)])
    for truth, found in zip(*results, strict=True):
        assert (truth is None and found is None) or relative_error(found, truth) < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [(2, 0), (0, 0)], ids=["one degree empty", "all empty"])
def test_degrees_without_channels(backend: str, channels: tuple[int, int]) -> None:
    device = device_of(backend)
    norm = NormSE3(Fiber(dict(enumerate(channels)))).double().to(device)
    inputs = leaves(tensor.to(device) for tensor in random_features(norm.fiber, 3).values())
    with se3_fast.backend(backend):
        outputs = norm(dict(zip(map(str, norm.fiber.degrees), inputs, strict=True)))
    torch.stack([output.sum() for output in outputs.values()]).sum().backward()
    assert [output.shape for output in outputs.values()] == [tensor.shape for tensor in inputs]
    assert all(tensor.grad is not None and tensor.grad.shape == tensor.shape for tensor in inputs)
    assert all(parameter.grad is not None for parameter in norm.parameters())


@pytest.mark.parametrize("structure", [{0: 4, 1: 4, 2: 4}, {0: 5, 1: 3}, {0: 1}, {1: 1, 3: 1}])
def test_equivariance_and_gradients(structure: dict[int, int]) -> None:
    torch.manual_seed(0)
    fiber = Fiber(structure)
    module = NormSE3(fiber).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    features, rotation = random_features(fiber, 6), random_rotation()
    rotated_after = rotate_features(module(features), rotation)
    rotated_before = module(rotate_features(features, rotation))
    for key, expected in rotated_after.items():
        assert relative_error(rotated_before[key], expected) < 1e-12
    inputs = [feature.requires_grad_() for feature in features.values()]
    keys = list(features)
    assert torch.autograd.gradcheck(lambda *values: tuple(module(dict(zip(keys, values, strict=True))).values()), inputs)


def scaled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 3.0 * output


CHANGES: dict[str, Callable[[NormSE3], Any]] = {
    "hook": lambda norm: modules_of(norm)[0].register_forward_hook(scaled),
    "hook on the nonlinearity": lambda norm: norm.nonlinearity.register_forward_hook(scaled),
    "pruned": lambda norm: nn.utils.prune.random_unstructured(modules_of(norm)[0], "weight", 0.5),
    "without scale and shift": lambda norm: exchange(norm, nn.GroupNorm(2, 8, affine=False), nn.LayerNorm(3, bias=False)),
    "something else": lambda norm: exchange(norm, nn.Identity(), nn.Tanh()),
    "over all degrees": lambda norm: exchange(norm, nn.GroupNorm(1, 8), nn.RMSNorm(3)),
}


def modules_of(norm: NormSE3) -> list[nn.Module]:
    return [norm.group_norm] if norm.layer_norms is None else list(norm.layer_norms.values())


def exchange(norm: NormSE3, group_norm: nn.Module, last_layer_norm: nn.Module) -> None:
    if norm.layer_norms is None:
        norm.group_norm = group_norm
    else:
        norm.layer_norms["1"] = last_layer_norm


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("structure", [{0: 4, 1: 4}, {0: 4, 1: 3}], ids=["group norm", "layer norm"])
@pytest.mark.parametrize("change", CHANGES)
def test_modules_that_were_changed_are_called(change: str, structure: dict[int, int], backend: str) -> None:
    torch.manual_seed(0)
    fiber, device = Fiber(structure), device_of(backend)
    norm = NormSE3(fiber)
    CHANGES[change](norm)
    norm.double().to(device)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.rand_like(parameter))  # what pruning keeps the weight in, too
    features = {degree: feature.to(device) for degree, feature in random_features(fiber, 5).items()}
    norms = {degree: feature.norm(dim=-1) for degree, feature in features.items()}
    if norm.layer_norms is None:
        new_norms = norm.nonlinearity(modules_of(norm)[0](torch.cat(list(norms.values()), 1))).chunk(2, 1)
    else:
        new_norms = [norm.nonlinearity(norm.layer_norms[degree](old)) for degree, old in norms.items()]
    with se3_fast.backend(backend):
        found = norm(features)
    for (degree, feature), new in zip(features.items(), new_norms, strict=True):
        assert relative_error(found[degree], feature * (new / norms[degree])[..., None]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_modules_that_were_changed_in_half_precision(backend: str, dtype: torch.dtype) -> None:
    """They are called in the dtype of the features, as their parameters have."""
    fiber, device = Fiber({0: 4, 1: 4}), device_of(backend)
    features = {degree: feature.to(device, dtype) for degree, feature in random_features(fiber, 5).items()}
    hooked, plain = (NormSE3(fiber).to(device, dtype) for _ in range(2))
    modules_of(hooked)[0].register_forward_hook(lambda module, inputs, output: None)
    with se3_fast.backend(backend):
        found, expected = hooked(features), plain(features)
    for degree, value in found.items():
        assert value.dtype == dtype and relative_error(value, expected[degree]) < TOLERANCE[dtype]


def test_zero_features_stay_zero_with_finite_gradient() -> None:
    fiber = Fiber({0: 3, 1: 3})
    features = {key: torch.zeros_like(value).requires_grad_() for key, value in random_features(fiber, 2).items()}
    normed = NormSE3(fiber).double()(features)
    assert all(value.abs().max() == 0 for value in normed.values())
    sum(value.sum() for value in normed.values()).backward()  # type: ignore[union-attr]
    assert all(value.grad.isfinite().all() for value in features.values())


def test_second_derivatives_at_zero_features_are_finite() -> None:
    """As isolated nodes have them, in a loss on forces."""
    fiber = Fiber({0: 3, 1: 3})
    features = {
        key: value.index_fill(0, torch.tensor([1]), 0.0).requires_grad_() for key, value in random_features(fiber, 3).items()
    }
    normed = NormSE3(fiber).double()(features)
    inputs = list(features.values())
    loss = torch.stack([value.square().sum() for value in normed.values()]).sum()
    first = torch.autograd.grad(loss, inputs, create_graph=True)
    second = torch.autograd.grad(torch.stack([value.square().sum() for value in first]).sum(), inputs)
    assert all(value.isfinite().all() for value in (*first, *second))


def test_no_nodes() -> None:
    fiber = Fiber({0: 3, 1: 3})
    assert NormSE3(fiber).double()(random_features(fiber, 0))["1"].shape == (0, 3, 3)


def test_one_node_with_one_channel() -> None:
    fiber = Fiber({0: 1, 1: 1})
    assert NormSE3(fiber).double()(random_features(fiber, 1))["1"].isfinite().all()


@pytest.mark.parametrize("structure", [{0: 4, 1: 4}, {0: 4, 1: 3}], ids=["group norm", "layer norm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_short_half_precision_features_have_their_gradient(structure: dict[int, int], dtype: torch.dtype) -> None:
    """x / n^2 is beyond float16 for n < 2^-16; computed in that, a zero gradient would come back as NaN at any loss scale."""
    fiber = Fiber(structure)
    features = {key: value.to(dtype) for key, value in random_features(fiber, 3).items()}
    for value in features.values():
        value[0, 0] *= 2.0**-17
    cotangents = {key: value.to(dtype) for key, value in random_features(fiber, 3, seed=1).items()}
    cotangents["0"][0] = 0.0
    cotangents["1"][0] *= 2.0**-10  # times 1 / n it is in float16's range
    module = NormSE3(fiber)
    gradients = []
    for of_features, of_module in ((dtype, torch.float32), (torch.float64, torch.float64)):
        inputs = {key: value.detach().to(of_features).requires_grad_() for key, value in features.items()}
        with torch.autocast("cpu", dtype=dtype, enabled=of_features == dtype):
            outputs = module.to(of_module)(inputs)
        assert {value.dtype for value in outputs.values()} == {of_features}
        torch.autograd.backward(list(outputs.values()), [cotangents[key].to(of_features) for key in outputs])
        gradients.append({key: value.grad for key, value in inputs.items()})
    for key, expected in gradients[1].items():
        assert relative_error(gradients[0][key], expected) < TOLERANCE[dtype]


def test_wrong_features_are_named() -> None:
    with pytest.raises(ValueError, match=r"features\['1'\]: expected shape \[4, 3, 3\], got \[4, 2, 3\]"):
        NormSE3(Fiber({0: 3, 1: 3}))({"0": torch.zeros(4, 3, 1), "1": torch.zeros(4, 2, 3)})


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_degrees_of_several_dtypes_keep_theirs(backend: str) -> None:
    """As by the formula; the first degree does not decide for the others."""
    device = device_of(backend)
    generator = torch.Generator().manual_seed(0)
    features = {"0": torch.randn(5, 3, 1, generator=generator), "1": torch.randn(5, 3, 3, generator=generator, dtype=torch.float64)}
    features = {degree: feature.to(device) for degree, feature in features.items()}
    norm = Norm(*(torch.randn(6, generator=generator).to(device) for _ in range(2)), 1e-5, nn.ReLU())
    found, expected = {}, {}
    for name, results in ((backend, found), ("dense", expected)):
        with se3_fast.backend(name):
            results |= equivariant_norm.group_norm(features, norm)
    for degree, tolerance in (("0", 1e-6), ("1", 1e-12)):
        assert found[degree].dtype == features[degree].dtype
        assert relative_error(found[degree], expected[degree]) < tolerance
