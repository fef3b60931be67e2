from __future__ import annotations

import pytest

import se3_fast
from se3_fast.ops.backend import selected_backend


def test_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SE3_FAST_BACKEND", raising=False)
    assert selected_backend() == "torch"


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SE3_FAST_BACKEND", "dense")
    assert selected_backend() == "dense"
    with se3_fast.backend("torch"):
        assert selected_backend() == "torch"
    monkeypatch.setenv("SE3_FAST_BACKEND", "fast")
    with pytest.raises(ValueError, match="SE3_FAST_BACKEND: expected one of auto, dense, torch, got 'fast'"):
        selected_backend()


def test_context_managers_nest_and_end() -> None:
    with se3_fast.backend("dense"):
        with se3_fast.backend("torch"):
            assert selected_backend() == "torch"
        assert selected_backend() == "dense"
    with pytest.raises(ValueError, match="name: expected one of"), se3_fast.backend("cuda"):
        pass
