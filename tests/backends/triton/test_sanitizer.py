"""Kernels with one fault each: tests/sanitizer.py finds it, and finds nothing in what is right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from tests.sanitizer import PAGE, SANITIZER, Sanitizer, Shadow, install

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU, not in the interpreter")

BLOCK = 8


@triton.jit
def _copy(source, target, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place, mask=place < size, other=0.0), mask=place < size)


@triton.jit
def _copy_without_mask(source, target, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place), mask=place < size)


@triton.jit
def _store_without_mask(source, target, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place, mask=place < size))


@triton.jit
def _shift(source, target, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(source + place, tl.load(source + place + 1, mask=place + 1 < size, other=0.0), mask=place < size)


@triton.jit
def _overlap(source, target, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK // 2 + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place, mask=place < size, other=0.0), mask=place < size)


@triton.jit
def _sum_of_both(source, target, size, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place // 2, tl.load(source + place, mask=place < size, other=0.0), mask=place < size)


@triton.jit
def _through_memory(source, target, size, BLOCK: tl.constexpr, HAS_BARRIER: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place, mask=place < size, other=0.0), mask=place < size)
    if HAS_BARRIER:
        tl.debug_barrier()
    opposite = tl.program_id(0) * BLOCK + BLOCK - 1 - tl.arange(0, BLOCK)
    tl.store(source + place, tl.load(target + opposite, mask=opposite < size, other=0.0), mask=place < size)


@triton.jit
def _number(source, target, size, BLOCK: tl.constexpr):
    tl.store(target, tl.program_id(0).to(tl.float32))


@triton.jit
def _undefined(source, target, size, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(target + place, tl.load(source + place, mask=place < 3))


@pytest.fixture
def sanitizer() -> Iterator[Sanitizer]:
    """One whose findings fail no test."""
    own = Sanitizer()
    install(own)
    yield own
    install(SANITIZER)


def run(kernel: object, size: int = 20, **constants: object) -> Tensor:
    source, target = torch.ones(size), torch.zeros(size)
    kernel[(-(-size // BLOCK),)](source, target, size, BLOCK=BLOCK, **constants)  # type: ignore[index]
    return target


def findings(sanitizer: Sanitizer) -> set[str]:
    assert all(": test_sanitizer.py:" in finding for finding in sanitizer.findings)
    return {finding.partition(":")[0] for finding in sanitizer.findings}


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        (_copy_without_mask, {"a load outside of all tensors"}),
        (_store_without_mask, {"a store outside of all tensors"}),
        (_shift, {"a program reads what another one writes", "a program writes what another one reads"}),
        (_overlap, {"two programs write one address"}),
        (_sum_of_both, {"one store writes an address twice"}),
    ],
)
def test_faults_are_found(kernel: object, expected: set[str], sanitizer: Sanitizer) -> None:
    for _ in range(4):
        run(kernel)
    assert findings(sanitizer) & expected
    assert findings(sanitizer) <= {*expected, "a program writes what it has read, without a barrier"}


def test_what_is_right_has_no_findings(sanitizer: Sanitizer) -> None:
    for size in (0, 1, 8, 20):
        assert torch.equal(run(_copy, size), torch.ones(size))
    run(_through_memory, HAS_BARRIER=True)
    assert not findings(sanitizer)


def test_a_barrier_is_missed(sanitizer: Sanitizer) -> None:
    run(_through_memory, HAS_BARRIER=False)
    assert findings(sanitizer) == {
        "a program reads what it has written, without a barrier",
        "a program writes what it has read, without a barrier",
    }


def test_programs_run_in_several_orders(sanitizer: Sanitizer) -> None:
    """The last one wins; after a test has begun anew in the same order."""
    winners = [[run(_number, 80)[0].item() for _ in range(6)] for _ in range(2) if sanitizer.begin_test() is None]
    assert winners[0] == winners[1] and len(set(winners[0])) > 2
    assert findings(sanitizer) == {"two programs write one address"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64])
def test_what_a_masked_load_leaves_undefined(dtype: torch.dtype, sanitizer: Sanitizer) -> None:
    source, target = torch.ones(BLOCK, dtype=dtype), torch.zeros(BLOCK, dtype=dtype)
    _undefined[(1,)](source, target, BLOCK, BLOCK=BLOCK)
    assert (target[:3] == 1).all()
    assert target[3:].isnan().all() if dtype.is_floating_point else (target[3:] > 10_000).all()


def test_memory_is_watched_where_it_is_touched() -> None:
    """A launch on a terabyte, of which it reads two places and writes one."""
    shadow = Shadow(10**12 // PAGE)
    first, last = np.array([3]), np.array([10**12 // PAGE - 1])
    assert shadow.load(np.concatenate([first, last]), 1, 0) == []
    assert shadow.store(last, 2, 0) == ["a program writes what another one reads"]
    assert shadow.load(last, 2, 0) == ["a program reads what it has written, without a barrier"]
    assert len(shadow.fields["written"]) <= 8 * PAGE
