"""The node that the Triton pooling is in compiled graphs. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast.ops.pooling import pooling
from tests.support import TRITON_DEVICE

pytest.importorskip("triton")


def test_code_of_the_compiler() -> None:
    feature = torch.randn(5, 2, 1, dtype=torch.float64, device=TRITON_DEVICE, requires_grad=True)
    sizes = torch.tensor([2, 3], device=TRITON_DEVICE)
    with se3_fast.backend("triton"):
        compiled = torch.compile(pooling, fullgraph=True, backend="aot_eager")
        results = [call(feature, sizes, "max") for call in (pooling, compiled)]
    gradients = [torch.autograd.grad(result.square().sum(), feature)[0] for result in results]
    assert torch.equal(*results) and torch.equal(*gradients)
