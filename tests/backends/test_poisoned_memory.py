"""Memory that the backends allocate and do not write is NaN in their tests."""

from __future__ import annotations

import torch


def test_tensors_of_python() -> None:
    given = torch.ones(3)
    made = (torch.empty(3), torch.empty_like(given), given.new_empty(3), torch.empty(3, dtype=torch.float16))
    assert all(tensor.isnan().all() for tensor in made)
    assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()
