"""The Triton convolution against ``dense`` in float64: output and every gradient. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.ops.test_tfn_conv import CASES, assert_equal, run, run_operation
from tests.support import TOLERANCE

pytest.importorskip("triton")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("poisoned_memory")
def test_equals_dense(name: str) -> None:
    """Half the cases pooled, half per edge: the interpreter is slow."""
    pool = list(CASES).index(name) % 2 == 0
    results = [run(CASES[name], backend, pool=pool, differentiate_directions=False) for backend in ("triton", "dense")]
    assert_equal(*results, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["by output, mixed", "pairs, protein fibers"])
@pytest.mark.usefixtures("poisoned_memory")
def test_operation_in_each_dtype(name: str, dtype: torch.dtype) -> None:
    result = run_operation(CASES[name], "triton", dtype)
    assert {value.dtype for value in (result.outputs | result.gradients).values()} == {dtype}
    assert_equal(result, run_operation(CASES[name], "dense", torch.float64), TOLERANCE[dtype])


def test_two_runs_are_identical() -> None:
    first, second = (run_operation(CASES["by output, mixed"], "triton", torch.float32) for _ in range(2))
    for name, value in (first.outputs | first.gradients).items():
        assert torch.equal(value, (second.outputs | second.gradients)[name]), name
