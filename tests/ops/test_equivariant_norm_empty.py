"""A degree without channels passes the norms of every backend, beside degrees that have some."""

from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast import Fiber, NormSE3
from tests.support import TRITON_DEVICE, leaves, random_features


@pytest.mark.parametrize("backend", ["dense", "torch", "cpp", "triton"])
@pytest.mark.parametrize("channels", [(2, 0), (0, 0)], ids=["one degree empty", "all empty"])
def test_degrees_without_channels(backend: str, channels: tuple[int, int]) -> None:
    device = TRITON_DEVICE if backend == "triton" else torch.device("cpu")
    norm = NormSE3(Fiber(dict(enumerate(channels)))).double().to(device)
    inputs = leaves(tensor.to(device) for tensor in random_features(norm.fiber, 3).values())
    with se3_fast.backend(backend):
        outputs = norm(dict(zip(map(str, norm.fiber.degrees), inputs, strict=True)))
    torch.stack([output.sum() for output in outputs.values()]).sum().backward()
    assert [output.shape for output in outputs.values()] == [tensor.shape for tensor in inputs]
    assert all(tensor.grad is not None and tensor.grad.shape == tensor.shape for tensor in inputs)
    assert all(parameter.grad is not None for parameter in norm.parameters())
