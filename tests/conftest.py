from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.sanitizer import SANITIZER, install
from tests.tiers import LONG, SLOW, is_in

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell; what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    if find_spec("triton"):
        from tests import gpu_arithmetic, interpreter

        interpreter.spare()
        gpu_arithmetic.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        test = f"{item.path.parent.name}/{item.path.name}::{item.name}"
        for mark, tier in (("long", LONG), ("slow", SLOW)):
            if is_in(tier, test):
                item.add_marker(mark)


POISONED_FOLDERS = {"backends", "ops", "layers"}


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill memory that is allocated and not written with NaN, or the largest integers, so that reading it shows.

    Tensors of PyTorch, whether Python, a library of ``csrc`` or an operation of PyTorch's own allocates them; not what the C++
    operations take for themselves.
    """
    if request.path.relative_to(Path(__file__).parent).parts[0] not in POISONED_FOLDERS:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)  # without which nothing is filled
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def sanitized_kernels() -> Iterator[None]:
    """What Triton's interpreter runs is watched (tests/sanitizer.py)."""
    if "triton.runtime.interpreter" not in sys.modules:
        yield
        return
    install(SANITIZER)
    SANITIZER.begin_test()
    yield
    assert not SANITIZER.findings


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Both numbers of threads, one after the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
