"""The norms of backend ``cpp``: vectors with tails, more nodes than are treated together, threads, and when it is the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import se3_fast
from se3_fast.backends import choice
from se3_fast.backends.cpp import library
from se3_fast.ops.equivariant_norm import Norm, group_norm
from tests.support import TOLERANCE

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

DEGREES = (0, 1, 2, 3, 5)
"""The usual ones, whose components are taken apart by shuffles, and one more."""

CASES = {
    "one channel": (1, 3),
    "three": (3, 1),
    "five": (5, 33),
    "one less than a vector": (15, 32),
    "vectors": (32, 65),
    "one more than a vector": (17, 100),
    "many": (130, 7),
    "no channels": (0, 2),
    "no nodes": (3, 0),
}
"""Channels, nodes."""


def run(case: tuple[int, int], backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Outputs and all gradients; inputs are exact in bfloat16, so that dtypes can be compared, and one feature is zero."""
    channels, num_nodes = case
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64).bfloat16().to(dtype)
        values[:1, :1] = 0 if len(shape) == 3 else 1
        return values.requires_grad_()

    features = {str(degree): leaf(num_nodes, channels, 2 * degree + 1) for degree in DEGREES}
    scale, shift = (leaf(len(DEGREES) * channels, 1) for _ in range(2))
    with se3_fast.backend(backend):
        outputs = list(group_norm(features, Norm(scale.squeeze(1), shift.squeeze(1), 1e-5, nn.ReLU())).values())
    cotangents = [torch.randn(output.shape, generator=generator, dtype=torch.float64).bfloat16().to(dtype) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [*features.values(), scale, shift], cotangents)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("threads")
def test_equals_dense(case: tuple[int, int], dtype: torch.dtype) -> None:
    """The gradient of a zero feature, of size 2^24, is compared apart from the rest; and where it is zero in truth, with one.

    That of a small feature is a difference of large numbers.
    """
    results, again = (run(case, "cpp", dtype) for _ in range(2))
    for result, repeated, truth in zip(results, again, run(case, "dense", torch.float64), strict=True):
        for part in (truth.abs() < 1e4, truth.abs() >= 1e4):
            difference, size = (result - truth).where(part, 0).norm(), truth.where(part, 0).norm()
            assert difference <= 10 * TOLERANCE[dtype] * size.clamp(min=1)
        assert torch.equal(result, repeated)


def test_a_node_that_is_not_finite_leaves_the_others_alone() -> None:
    """Also where the values of a vector behind the last channel are no numbers then."""
    features = {str(degree): torch.randn(4, 3, 2 * degree + 1) for degree in DEGREES}
    norm = Norm(torch.ones(3 * len(DEGREES)), torch.ones(3 * len(DEGREES)), 1e-5, nn.ReLU())
    with se3_fast.backend("cpp"):
        expected = group_norm(features, norm)
        for feature in features.values():
            feature[1] = torch.nan
            feature.requires_grad_()
        outputs = group_norm(features, norm)
    gradients = torch.autograd.grad([output.sum() for output in outputs.values()], list(features.values()))
    others = torch.tensor([0, 2, 3])
    for key, gradient in zip(features, gradients, strict=True):
        assert outputs[key][1].isnan().all() and gradient[1].isnan().all()
        assert torch.equal(outputs[key][others], expected[key][others]) and gradient[others].isfinite().all()


def test_other_nonlinearities_take_the_formula() -> None:
    cpu = torch.device("cpu")
    with se3_fast.backend("cpp"):
        names = [choice.implementation("equivariant_norm", cpu, kind).__name__.split(".")[-2] for kind in (nn.ReLU, nn.SiLU)]
    assert names == ["cpp", "dense"]


def test_shapes_for_the_compiler() -> None:
    """Schema and fake results of both operations agree with what they do."""
    features = [torch.randn(4, 3, 2 * degree + 1) for degree in DEGREES]
    arguments = (features, torch.ones(3 * len(DEGREES)), torch.ones(3 * len(DEGREES)), 1e-5)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.se3_fast_cpp.equivariant_norm.default, arguments, test_utils=checks)
    gradients = [torch.ones_like(feature) for feature in features]
    torch.library.opcheck(torch.ops.se3_fast_cpp.equivariant_norm_backward.default, (gradients, *arguments), test_utils=checks)
