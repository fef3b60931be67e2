from __future__ import annotations

import asyncio
import contextvars
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import se3_fast
from se3_fast.backends import choice, dense, registry
from se3_fast.backends.choice import selected_backend
from se3_fast.backends.protocol import PROTOCOLS

CPU = torch.device("cpu")


def test_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SE3_FAST_BACKEND", raising=False)
    monkeypatch.setattr(choice, "_is_there", lambda name: True)
    assert selected_backend(CPU) == "cpp"
    monkeypatch.setattr(choice, "_is_there", lambda name: False)
    choice._say_once_how_to_get_cpp.cache_clear()
    with pytest.warns(UserWarning, match="se3_fast runs on backend torch, slower than its compiled operations"):
        assert selected_backend(CPU) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        assert selected_backend(CPU) == "torch"


@pytest.mark.parametrize(
    ("capability", "has_triton", "has_cuda", "expected"),
    [
        ((9, 0), True, True, "triton"),
        ((8, 0), True, False, "triton"),
        ((8, 0), False, True, "torch"),
        ((7, 5), True, True, "cuda"),
        ((7, 0), True, True, "cuda"),
        ((7, 0), True, False, "torch"),
        ((6, 1), True, True, "torch"),
    ],
)
def test_automatic_choice_on_gpus(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has_triton: bool, has_cuda: bool, expected: str
) -> None:
    monkeypatch.delenv("SE3_FAST_BACKEND", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(choice, "_is_there", {"triton": has_triton, "cuda": has_cuda}.__getitem__)
    assert selected_backend(torch.device("cuda")) == expected


@pytest.mark.parametrize(("name", "device"), [("cpp", "cuda"), ("cuda", "cpu")])
def test_backend_of_another_device(name: str, device: str) -> None:
    with se3_fast.backend(name), pytest.raises(ValueError, match=f"backend {name}: expected tensors on"):
        selected_backend(torch.device(device))


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SE3_FAST_BACKEND", "dense")
    assert selected_backend(CPU) == "dense"
    with se3_fast.backend("torch"):
        assert selected_backend(CPU) == "torch"
    monkeypatch.setenv("SE3_FAST_BACKEND", "fast")
    with pytest.raises(ValueError, match="SE3_FAST_BACKEND: expected one of auto, dense, torch, cpp, triton, cuda, got 'fast'"):
        selected_backend(CPU)


def test_context_managers_nest_and_end() -> None:
    with se3_fast.backend("dense"):
        with se3_fast.backend("torch"):
            assert selected_backend(CPU) == "torch"
        assert selected_backend(CPU) == "dense"
    with pytest.raises(ValueError, match="name: expected one of"), se3_fast.backend("gpu"):
        pass


def test_triton_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with se3_fast.backend("triton"), pytest.raises(ValueError, match="expected tensors on a CUDA device, got cpu"):
        selected_backend(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with se3_fast.backend("triton"):
        assert selected_backend(CPU) == "triton"


@pytest.fixture
def _ask_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whether backends are there is asked anew, before and after."""
    for known in (registry.availability, choice._is_there):
        known.cache_clear()
    yield
    monkeypatch.undo()
    for known in (registry.availability, choice._is_there):
        known.cache_clear()


@pytest.mark.usefixtures("_ask_again")
@pytest.mark.parametrize(("version", "is_there"), [("3.2.0", False), ("3.4.0", False), ("3.5.1", True), ("3.10.0+git1", True)])
def test_triton_must_compile_the_kernels(monkeypatch: pytest.MonkeyPatch, version: str, is_there: bool) -> None:
    """Older ones do not: ``auto`` goes without them, and who asks for them is told why."""
    triton = pytest.importorskip("triton")
    monkeypatch.delenv("SE3_FAST_BACKEND", raising=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert selected_backend(torch.device("cuda")) == ("triton" if is_there else "torch")
    with se3_fast.backend("triton"):
        if is_there:
            assert selected_backend(CPU) == "triton"
        else:
            expected = (
                f"backend triton: expected a Triton to compile its kernels, the kernels need triton 3.5, installed is {version}"
            )
            with pytest.raises(ValueError, match=re.escape(expected)):
                selected_backend(CPU)


def test_threads_do_not_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As README.md says; a copy of the context does."""
    monkeypatch.setenv("SE3_FAST_BACKEND", "dense")
    with se3_fast.backend("torch"), ThreadPoolExecutor(2) as pool:
        assert pool.submit(selected_backend, CPU).result() == "dense"
        assert pool.submit(contextvars.copy_context().run, selected_backend, CPU).result() == "torch"
        assert asyncio.run(asyncio.to_thread(selected_backend, CPU)) == "torch"


@pytest.mark.parametrize("operation", PROTOCOLS)
@pytest.mark.parametrize("name", choice.BACKENDS)
def test_what_a_backend_offers(name: str, operation: str) -> None:
    """Every implementation has the functions of its protocol, and every operation a formula but for those made of others."""
    if name in ("triton", "cuda"):
        pytest.importorskip("triton")
    module = registry.implementation(operation, name)
    assert module is not None or name != "dense" or operation in ("joint", "attention_block", "force_network")


def test_a_module_that_offers_less_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dense.linear, "linear_per_head")
    with pytest.raises(TypeError, match=r"dense\.linear: expected a function linear_per_head as Linear has, got none"):
        registry._check(dense.linear, PROTOCOLS["linear"])
    monkeypatch.setattr(dense.linear, "linear_per_head", lambda weights: None, raising=False)
    with pytest.raises(TypeError, match=r"linear_per_head: expected the parameters \['weights', .*\], got \['weights'\]"):
        registry._check(dense.linear, PROTOCOLS["linear"])
    with pytest.raises(TypeError, match=r"dense\.linear: expected READS as EdgeAttention has, got none"):
        registry._check(dense.linear, PROTOCOLS["edge_attention"])


def test_why_not_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    choice._of_backend.cache_clear()
    choice._say_why_not.cache_clear()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with se3_fast.backend("triton"), caplog.at_level("INFO", logger=choice.__name__):
        for width in (16, 32, 16):
            found = choice.implementation("tfn_conv", CPU, torch.float32, width)
            assert found.__name__ == f"se3_fast.backends.{'triton' if width == 32 else 'torch'}.tfn_conv"
        assert choice.own_implementation("tfn_conv", CPU, torch.float32, 16) is None
    reason = "the kernels are made for a radial width of 32, not 16"
    assert caplog.messages == [f"tfn_conv does not run on backend triton: {reason}"]
