from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import se3_fast.compat


@pytest.fixture
def installed() -> Iterator[None]:
    """``import se3_transformer`` gives that of this package."""
    before = set(sys.modules)
    se3_fast.compat.install()
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "se3_transformer":
            del sys.modules[name]
