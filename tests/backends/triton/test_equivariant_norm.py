"""The Triton norm against ``dense`` in float64: output and every gradient. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast import Fiber, NormSE3
from se3_fast.backends.dense import equivariant_norm as formula
from se3_fast.backends.triton.equivariant_norm import FusedNorm
from se3_fast.backends.triton.shared_features import SharedFeatures
from se3_fast.ops import equivariant_norm
from se3_fast.ops.equivariant_norm import group_norm
from se3_fast.ops.shared_features import shared_features
from tests.model.test_golden import FILES, Golden, run_norm
from tests.support import TOLERANCE, TRITON_DEVICE, random_features, relative_error

pytest.importorskip("triton")

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

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
    """The backward pass with few programs, each of which walks over several blocks of nodes."""
    from se3_fast.kernels import equivariant_norm as kernels

    monkeypatch.setattr(kernels, "_MAX_PARTIAL_SUMS", 2)


def run(
    structure: dict[int, int],
    num_nodes: int,
    backend: str,
    dtype: torch.dtype,
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
    module = module.to(TRITON_DEVICE, dtype)
    features = {key: value.to(torch.bfloat16).to(TRITON_DEVICE, dtype) for key, value in random_features(fiber, num_nodes).items()}
    for value in features.values():
        value[:1, :1] = 0.0
        value[1:2, :1] = 2.0**-6
        value[2:3, :1, :1] = below_clamp
        value[2:3, :1, 1:] = 0.0
        value.requires_grad_()
    with se3_fast.backend(backend):
        outputs = module(features)
    cotangents = random_features(fiber, num_nodes, seed=2)
    torch.autograd.backward(
        list(outputs.values()), [cotangents[key].to(torch.bfloat16).to(TRITON_DEVICE, dtype) for key in outputs]
    )
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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("two_programs")
def test_equals_dense(name: str) -> None:
    results = [run(*CASES[name], backend, torch.float64) for backend in ("triton", "dense")]
    assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", ["four degrees", "unequal channels"])
def test_in_each_dtype(name: str, dtype: torch.dtype) -> None:
    """A GPU's roots and quotients are off by two units in the last place; z, a difference of like norms, by more."""
    result = run(*CASES[name], "triton", dtype, below_clamp=0.0)
    assert {value.dtype for value in result.values()} == {dtype}
    assert_equal(result, run(*CASES[name], "dense", torch.float64, below_clamp=0.0), max(TOLERANCE[dtype], 4e-6))


@pytest.mark.usefixtures("two_programs")
def test_two_runs_are_identical() -> None:
    first, second = (run(*CASES["four degrees"], "triton", torch.float32) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_parameters_of_another_dtype_and_features_that_are_not_contiguous() -> None:
    features = torch.randn(5, 3, 4, device=TRITON_DEVICE).transpose(1, 2).half().requires_grad_()
    scale, shift = (torch.randn(4, device=TRITON_DEVICE).requires_grad_() for _ in range(2))
    with se3_fast.backend("triton"):
        output = equivariant_norm.layer_norm(features, scale, shift, 1e-5, nn.ReLU())
    output.sum().backward()
    assert output.dtype == features.grad.dtype == torch.float16
    assert scale.grad is not None and scale.grad.dtype == torch.float32
    truth = formula.layer_norm(features.double(), scale.double(), shift.double(), 1e-5, nn.ReLU())
    assert relative_error(output, truth) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_show(value: float) -> None:
    features = {"0": torch.full((2, 3, 1), 1.0, device=TRITON_DEVICE), "1": torch.ones(2, 3, 3, device=TRITON_DEVICE)}
    features["1"][1, 1, 1] = value
    with se3_fast.backend("triton"):
        output = NormSE3(Fiber({0: 3, 1: 3})).to(TRITON_DEVICE)(features)
    assert output["0"].isfinite().all() and output["1"][0].isfinite().all() and output["1"][1, 1].isnan().all()


def test_other_nonlinearities_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedNorm, "apply", lambda *_: pytest.fail("the kernel knows ReLU only"))
    for name in ("four degrees", "unequal channels"):
        results = [run(*CASES[name], backend, torch.float64, nn.SiLU()) for backend in ("triton", "dense")]
        assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("norm_")], ids=lambda path: path.stem)
def test_golden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("group_norm", "layer_norm"):
        monkeypatch.setattr(formula, name, lambda *_: pytest.fail("expected the kernel to run"))
    with se3_fast.backend("triton"):
        run_norm(Golden(path, TRITON_DEVICE))


@pytest.mark.parametrize("is_strided", [False, True])
def test_second_derivatives(is_strided: bool) -> None:
    """Also of features that are not contiguous, of which the kernel takes a copy, and of zero features."""
    fiber = Fiber({0: 3, 1: 3})
    results = []
    for backend in ("dense", "triton"):
        torch.manual_seed(0)
        module = NormSE3(fiber).double().to(TRITON_DEVICE)
        isolated = torch.tensor([1])
        values = {key: value.index_fill(0, isolated, 0.0).to(TRITON_DEVICE) for key, value in random_features(fiber, 4).items()}
        leaves = {key: (value.mT.contiguous() if is_strided else value).requires_grad_() for key, value in values.items()}
        with se3_fast.backend(backend):
            normed = module({key: leaf.mT if is_strided else leaf for key, leaf in leaves.items()})
            loss = torch.stack([value.square().sum() for value in normed.values()]).sum()
            first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
            loss = torch.stack([gradient.square().sum() for gradient in first]).sum()
            results.append([*first, *torch.autograd.grad(loss, [*leaves.values(), *module.parameters()], allow_unused=True)])
    for truth, found in zip(*results, strict=True):
        assert (truth is None and found is None) or relative_error(found, truth) < 1e-10


@pytest.mark.parametrize("num_parts", [1, 3, 64], ids="{} parts".format)
def test_gradients_of_several_readers_and_of_parameters_in_a_row(num_parts: int) -> None:
    """Degree 0 is read by three, degree 1 by one, degree 2 by none; and there are more parts than blocks of nodes, too."""
    torch.manual_seed(0)
    scale, shift = (torch.randn(9, dtype=torch.float64, device=TRITON_DEVICE) for _ in range(2))
    row = torch.cat([scale, shift]).expand(num_parts, -1).requires_grad_()
    results = []
    for is_shared in (True, False):
        features = {key: value.to(TRITON_DEVICE).requires_grad_() for key, value in random_features(Fiber.create(3, 3), 33).items()}
        parameters = [row] if is_shared else [scale.requires_grad_(), shift.requires_grad_()]
        with se3_fast.backend("triton" if is_shared else "dense"):
            outputs = group_norm(features, scale, shift, 1e-5, nn.ReLU(), row if is_shared else None)
        copies = shared_features(outputs, 3)
        assert isinstance(outputs, SharedFeatures) == is_shared
        weights = [1.0, -2.0, 0.5]
        loss = torch.stack([weight * copy["0"].pow(2).sum() for weight, copy in zip(weights, copies, strict=True)]).sum()
        (loss + copies[1]["1"].pow(3).sum()).backward()
        of_parameters = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = of_parameters[0].sum(0) if is_shared else torch.cat(of_parameters)
        results.append([total, *(feature.grad for feature in features.values())])
    for value, truth in zip(*results, strict=True):
        if value is None or truth is None:  # of degree 2: nobody's, or zero
            assert not any(gradient is not None and gradient.any() for gradient in (value, truth))
        else:
            assert relative_error(value, truth) < 1e-12
