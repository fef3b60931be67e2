"""The linear maps of backend ``cpp``: vectors with tails, more nodes than are treated together, threads, and what is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import se3_fast
from se3_fast.backends.cpp import library
from se3_fast.backends.cpp.linear import CppLinear
from se3_fast.ops.linear import linear
from tests.support import TOLERANCE, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

DEGREES = (0, 1, 2, 3, 5)
"""The usual ones, whose components are taken apart by shuffles, and one more."""

CASES = {
    "one channel": ((1,), 1, 1),
    "three and five": ((3, 5), 3, 7),
    "one less than a vector": ((15, 7), 15, 24),
    "vectors": ((16, 32), 32, 25),
    "one more than a vector": ((17, 1, 33), 17, 49),
    "many": ((130,), 200, 100),
    "no channels": ((0, 2), 0, 3),
    "no nodes": ((3, 2), 4, 0),
}
"""Channels of the parts of the input, channels of the output, nodes."""

Case = tuple[tuple[int, ...], int, int]


def operands_of(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Weights by degree, and of each degree the parts; exact in bfloat16, so that dtypes can be compared."""
    channels, outputs, num_nodes = case
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).bfloat16().to(dtype).requires_grad_()

    weights = [leaf(outputs, sum(channels)) for _ in DEGREES]
    return weights, [leaf(num_nodes, count, 2 * degree + 1) for degree in DEGREES for count in channels]


def run(case: Case, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Outputs and all gradients."""
    weights, tensors = operands_of(case, dtype)
    num_parts = len(case[0])
    keys = [str(degree) for degree in DEGREES]
    parts = [dict(zip(keys, tensors[number::num_parts], strict=True)) for number in range(num_parts)]
    with se3_fast.backend(backend):
        outputs = list(linear(dict(zip(keys, weights, strict=True)), *parts).values())
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(output.shape, generator=generator, dtype=torch.float64).bfloat16().to(dtype) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [*weights, *tensors], cotangents)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.usefixtures("threads")
def test_equals_dense(case: Case, dtype: torch.dtype) -> None:
    results, again = (run(case, "cpp", dtype) for _ in range(2))
    for result, repeated, truth in zip(results, again, run(case, "dense", torch.float64), strict=True):
        assert result.is_contiguous()
        assert relative_error(result, truth) < TOLERANCE[dtype]
        assert torch.equal(result, repeated)


@pytest.mark.parametrize("wanted", ["weights", "parts"])
def test_only_what_is_asked_for(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same as with all the rest."""
    calls = []
    operation = torch.ops.se3_fast_cpp.linear_backward

    def called(*arguments: object) -> list[Tensor]:
        calls.append(arguments[-2:])
        return operation(*arguments)

    weights, tensors = operands_of(CASES["three and five"], torch.float64)
    outputs = CppLinear((2,) * len(DEGREES)).apply(*weights, *tensors)
    loss = torch.stack([output.square().sum() for output in outputs]).sum()
    everything = torch.autograd.grad(loss, [*weights, *tensors], retain_graph=True)
    monkeypatch.setattr(torch.ops.se3_fast_cpp, "linear_backward", called)
    found = torch.autograd.grad(loss, weights if wanted == "weights" else tensors)
    assert calls == [(wanted == "parts", wanted == "weights")]
    expected = everything[: len(weights)] if wanted == "weights" else everything[len(weights) :]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("count", [1, 2])
def test_degrees_that_nobody_reads_have_no_gradient(count: int) -> None:
    """And those of the others are the same; second derivatives too."""
    weights, tensors = operands_of(CASES["three and five"], torch.float64)
    outputs = CppLinear((2,) * len(DEGREES)).apply(*weights, *tensors)
    losses = [output.square().sum() for output in outputs]
    everything = torch.autograd.grad(sum(losses), [*weights, *tensors], retain_graph=True)
    found = torch.autograd.grad(sum(losses[:count]), [*weights, *tensors], create_graph=True, allow_unused=True)
    for number, (one, expected) in enumerate(zip(found, everything, strict=True)):
        is_read = number < count if number < len(DEGREES) else number - len(DEGREES) < 2 * count
        assert torch.equal(one, expected) if is_read else one is None
    second = torch.autograd.grad(sum(one.square().sum() for one in found if one is not None), weights[:count])
    assert all(one.isfinite().all() and one.abs().max() > 0 for one in second)


def test_shapes_for_the_compiler() -> None:
    """Schema and fake results of both operations agree with what they do."""
    weights, tensors = ([tensor.detach() for tensor in tensors] for tensors in operands_of(CASES["three and five"], torch.float64))
    arguments, checks = (tensors, [2] * len(DEGREES), weights), ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.se3_fast_cpp.linear.default, arguments, test_utils=checks)
    gradients = [torch.ones(7, 3, 2 * degree + 1, dtype=torch.float64) for degree in DEGREES]
    for with_parts, with_weights in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            torch.ops.se3_fast_cpp.linear_backward.default,
            (gradients, *arguments, with_parts, with_weights),
            test_utils=checks,
        )
