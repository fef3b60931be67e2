from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast.ops.backend import selected_backend

CPU = torch.device("cpu")


def test_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SE3_FAST_BACKEND", raising=False)
    assert selected_backend(CPU) == "torch"


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SE3_FAST_BACKEND", "dense")
    assert selected_backend(CPU) == "dense"
    with se3_fast.backend("torch"):
        assert selected_backend(CPU) == "torch"
    monkeypatch.setenv("SE3_FAST_BACKEND", "fast")
    with pytest.raises(ValueError, match="SE3_FAST_BACKEND: expected one of auto, dense, torch, triton, got 'fast'"):
        selected_backend(CPU)


def test_context_managers_nest_and_end() -> None:
    with se3_fast.backend("dense"):
        with se3_fast.backend("torch"):
            assert selected_backend(CPU) == "torch"
        assert selected_backend(CPU) == "dense"
    with pytest.raises(ValueError, match="name: expected one of"), se3_fast.backend("cuda"):
        pass


def test_triton_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with se3_fast.backend("triton"), pytest.raises(ValueError, match="expected tensors on a CUDA device, got cpu"):
        selected_backend(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with se3_fast.backend("triton"):
        assert selected_backend(CPU) == "triton"
