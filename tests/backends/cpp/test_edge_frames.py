"""Wigner blocks of backend ``cpp`` against the reference in float64."""

from __future__ import annotations

import pytest
import torch

import se3_fast
from se3_fast import EdgeGeometry
from se3_fast.backends.cpp import library
from se3_fast.backends.dense.edge_frames import edge_directions, wigner_blocks
from tests.support import TOLERANCE, relative_error

if not library.is_available():
    pytest.skip(f"the compiled operations, {library.reason()}", allow_module_level=True)

SPECIAL = [[0.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, -2.0, 0.0], [1e-9, 1.0, -1e-9], [1e-300, -1.0, 1e-300], [0.0, 0.0, 3.0]]
"""No direction, the poles, near the poles, on an axis."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("num_edges", [0, 1, 64, 150])
@pytest.mark.parametrize("max_degree", [0, 1, 3, 6])
def test_equals_reference(max_degree: int, num_edges: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(num_edges, 3, generator=generator, dtype=torch.float64)
    rel_pos = torch.cat([random, torch.tensor(SPECIAL, dtype=torch.float64)[: 6 if num_edges else 0]]).to(dtype)
    with se3_fast.backend("cpp"):
        blocks = EdgeGeometry.from_relative_positions(rel_pos, max_degree).wigner
    truth = wigner_blocks(edge_directions(rel_pos).double(), max_degree)
    assert blocks.dtype == dtype
    assert relative_error(blocks, truth) < TOLERANCE[dtype]
    for block, expected in zip(blocks[num_edges:], truth[num_edges:], strict=True):
        assert relative_error(block, expected) < TOLERANCE[dtype]
