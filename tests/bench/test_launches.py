"""How many launches a training step issues: a change that adds some shows here."""

from __future__ import annotations

import pytest
import torch

import se3_fast

pytest.importorskip("triton")

from bench import launches
from bench.workloads import build


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts operations, as where there is no GPU")
@pytest.mark.parametrize(("is_amp", "most"), [(False, 157), (True, 160)])
def test_launches_of_the_published_model(is_amp: bool, most: int) -> None:
    with se3_fast.backend("triton"):
        counted = launches.count(build("qm9", 2), is_amp)
    assert counted.counts["LinearSE3", "linear.forward"] == 7
    assert counted.counts["optimizer", "_fused_adamw_"] == 1
    assert 0 < counted.counts.total() <= most
    assert counted.table().splitlines()[-1].startswith(f"| all | {counted.counts.total()} |")
