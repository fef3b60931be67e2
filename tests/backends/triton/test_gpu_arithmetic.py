"""Tests run kernels with the errors of a GPU's arithmetic (tests/gpu_arithmetic.py): neither more nor less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from tests.gpu_arithmetic import MOST_UNITS, add_on_matrix_unit, tf32
from tests.support import relative_error

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU, not in the interpreter")

BLOCK = 1024


@triton.jit
def _function(left, right, result, NAME: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    x, y = tl.load(left + place), tl.load(right + place)
    if NAME == "quotient":
        x = x / y
    if NAME == "exact quotient":
        x = tl.math.div_rn(x, y)
    if NAME == "root":
        x = tl.sqrt(x)
    if NAME == "inverse root":
        x = tl.rsqrt(x)
    if NAME == "exponential":
        x = tl.exp(x)
    tl.store(result + place, x)


@triton.jit
def _product(left, right, result, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None]
    total = tl.dot(tl.load(left + place), tl.load(right + place), input_precision=PRECISION)
    tl.store(result + place, total)


FUNCTIONS = {
    "quotient": lambda x, y: x / y,
    "root": lambda x, y: x.sqrt(),
    "inverse root": lambda x, y: x.rsqrt(),
    "exponential": lambda x, y: x.exp(),
}


def run(name: str, x: Tensor, y: Tensor) -> Tensor:
    result = torch.empty_like(x)
    _function[(1,)](x, y, result, NAME=name, BLOCK=BLOCK)
    return result


def units_off(values: Tensor, truth: Tensor) -> Tensor:
    """By how many units in the last place of float32."""
    _, exponent = torch.frexp(truth)
    return (values.double() - truth) / torch.ldexp(torch.ones_like(truth), exponent - 24)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_off(name: str) -> None:
    x, y = torch.rand(2, BLOCK, generator=torch.Generator().manual_seed(0)) + 0.5
    result = run(name, x, y)
    off = units_off(result, FUNCTIONS[name](x.double(), y.double()))
    assert 0.75 * MOST_UNITS < off.abs().max() < MOST_UNITS + 1.5  # two roundings more at most
    assert off.min() < -1 and off.max() > 1
    assert torch.equal(result, run(name, x, y))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64_is_as_it_is(name: str) -> None:
    x, y = torch.rand(2, BLOCK, dtype=torch.float64) + 0.5
    torch.testing.assert_close(run(name, x, y), FUNCTIONS[name](x, y), rtol=1e-15, atol=0)


def test_exact_results() -> None:
    """Of zero and of what is not finite; quotients that ask for it."""
    x, y = torch.rand(2, BLOCK) + 0.5
    x[:3] = torch.tensor([0.0, float("inf"), float("nan")])
    torch.testing.assert_close(run("exact quotient", x, y), x / y, rtol=0, atol=0, equal_nan=True)
    assert run("quotient", x, y)[:2].tolist() == run("root", x, y)[:2].tolist() == [0.0, float("inf")]
    assert run("exponential", x, y)[:2].tolist() == [1.0, float("inf")]
    assert all(run(name, x, y)[2].isnan() for name in FUNCTIONS)


def test_large_exponents_are_off_by_more() -> None:
    """Of a rounded product."""
    x = torch.linspace(-80, -40, BLOCK)
    error = (run("exponential", x, x).double() / x.double().exp() - 1).abs().max()
    assert 1e-6 < error < 1e-5


def test_products_in_three_terms() -> None:
    """As exact as float32, but not the same; in one term they are not."""
    left, right = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(0))
    results = {}
    for precision in ("ieee", "tf32x3"):
        results[precision] = torch.empty_like(left)
        _product[(1,)](left, right, results[precision], SIZE=32, PRECISION=precision)
    truth = left.double() @ right.double()
    assert relative_error(results["ieee"], truth) < 2e-7
    assert 1e-7 < relative_error(results["tf32x3"], truth) < 4e-7
    one_term = add_on_matrix_unit(tf32(left.numpy()), tf32(right.numpy()), np.zeros((32, 32)))
    assert relative_error(torch.from_numpy(one_term), truth) > 1e-4
