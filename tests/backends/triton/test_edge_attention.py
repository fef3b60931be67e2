"""What only the Triton attention has. In Triton's interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from tests.ops.test_edge_attention import Case, tensors_of
from tests.support import TRITON_DEVICE

pytest.importorskip("triton")

from se3_fast.kernels.edge_attention import attend, attend_backward


def test_rows_beyond_32_bit_offsets() -> None:
    """On the CPU the untouched rows take no memory."""
    width, used = 512, 4
    edges = 2**31 // width + used
    value, key, query, cotangent = tensors_of(Case(1, used, 1, width, 1), torch.float16, TRITON_DEVICE)
    far_value = torch.empty(edges, 1, width, dtype=value.dtype, device=TRITON_DEVICE)
    far_key = torch.empty(edges, 1, 1, dtype=key.dtype, device=TRITON_DEVICE)
    far_value[-used:], far_key[-used:] = value, key
    order, offsets = torch.arange(edges - used, edges, device=TRITON_DEVICE), torch.tensor([0, used], device=TRITON_DEVICE)
    near, far = (value, key, query, order - order[0], offsets), (far_value, far_key, query, order, offsets)
    assert torch.equal(attend(*far), attend(*near))
    for result, expected in zip(attend_backward(*far, cotangent), attend_backward(*near, cotangent), strict=True):
        assert torch.equal(result[-used:], expected)
