"""The hidden radial layers of backend ``cpp`` against ``dense`` in float64: output and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast.backends.cpp import library
from se3_fast.backends.cpp.radial import CppRadial
from se3_fast.ops.radial import RadialLayer, radial
from tests.support import TOLERANCE, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)


CASES = {
    "two profiles": (100, 5, 32, 2, True),
    "many invariants": (49, 65, 32, 1, True),
    "odd width, no norm": (33, 1, 17, 1, False),
    "one edge": (1, 33, 5, 3, True),
    "one invariant, width 7": (7, 1, 7, 2, True),
    "no edges": (0, 3, 4, 2, True),
}
"""Edges, invariants, width, profiles, and whether they have layer norms."""


def leaves(case: tuple[int, int, int, int, bool], dtype: torch.dtype) -> list[Tensor]:
    """Invariants and parameters, exact in bfloat16, so that dtypes can be compared."""
    num_edges, num_invariants, width, num_profiles, has_norm = case
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64).bfloat16()
        return values.to(dtype).requires_grad_()

    parameters = [
        leaf(*shape)
        for _ in range(num_profiles)
        for inputs in (num_invariants, width)
        for shape in ([(width, inputs)] + [(width,)] * (3 if has_norm else 1))
    ]
    return [leaf(num_edges, num_invariants), *parameters]


def evaluate(tensors: list[Tensor], num_profiles: int, has_norm: bool, backend: str) -> Tensor:
    invariants, *parameters = tensors
    remaining = iter(parameters)

    def layer() -> RadialLayer:
        weight, bias = next(remaining), next(remaining)
        return RadialLayer(weight, bias, next(remaining), next(remaining)) if has_norm else RadialLayer(weight, bias, None, None)

    with se3_fast.backend(backend):
        return torch.stack(list(radial(invariants, [(layer(), layer()) for _ in range(num_profiles)])))


def run(case: tuple[int, int, int, int, bool], backend: str, dtype: torch.dtype) -> list[Tensor]:
    tensors = leaves(case, dtype)
    hidden = evaluate(tensors, *case[3:], backend)
    cotangent = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16()
    return [hidden, *torch.autograd.grad(hidden, tensors, cotangent.to(dtype))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("threads")
def test_equals_dense(case: tuple[int, int, int, int, bool], dtype: torch.dtype) -> None:
    results, again = (run(case, "cpp", dtype) for _ in range(2))
    for result, repeated, truth in zip(results, again, run(case, "dense", torch.float64), strict=True):
        assert result.dtype == dtype
        assert relative_error(result, truth) < TOLERANCE[dtype]
        assert torch.equal(result, repeated)


def test_gradcheck_and_second_derivatives() -> None:
    tensors = leaves((3, 2, 4, 2, True), torch.float64)

    def function(*inputs: Tensor) -> Tensor:
        return evaluate(list(inputs), 2, True, "cpp")

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_shapes_for_the_compiler() -> None:
    """Schema and fake results of both operations agree with what they do."""
    invariants, *parameters = (tensor.detach() for tensor in leaves((5, 3, 4, 2, True), torch.float64))
    table = torch.cat([parameter.flatten() for parameter in parameters]).view(2, -1)
    arguments, checks = (invariants, table, 4, True, 1e-5), ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.se3_fast_cpp.radial.default, arguments, test_utils=checks)
    gradient = torch.ones(2, 5, 4, dtype=torch.float64)
    for with_invariants in (True, False):
        torch.library.opcheck(
            torch.ops.se3_fast_cpp.radial_backward.default, (gradient, *arguments, with_invariants), test_utils=checks
        )


def test_runs_the_compiled_operation() -> None:
    hidden = evaluate(leaves((5, 3, 4, 1, True), torch.float32), 1, True, "cpp")
    names = set()
    pending = [hidden.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None:
            names.add(node.name())
            pending += [following for following, _ in node.next_functions]
    assert f"{CppRadial.__name__}Backward" in names
