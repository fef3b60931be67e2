"""EdgeEmbedding: harmonics and radial functions against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from se3_fast.layers.edge_embedding import EdgeEmbedding
from se3_fast.so3 import spherical_harmonics
from tests.support import relative_error


def test_harmonics_and_bessel_functions() -> None:
    embedding = EdgeEmbedding(4, 5, 3.0).double()
    rel_pos = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    harmonics, radial = embedding(rel_pos)
    length = rel_pos.norm(dim=1, keepdim=True)
    expected = spherical_harmonics(rel_pos / length, 5) * math.sqrt(4 * math.pi)
    assert relative_error(harmonics, expected) < 1e-13
    part = length / 3.0
    envelope = torch.where(part < 1, 1 - 28 * part**6 + 48 * part**7 - 21 * part**8, 0.0)
    numbers = torch.arange(1, 5)
    waves = 2 * math.sqrt(2 / 3.0) * torch.sin(numbers * math.pi * part) / length
    assert relative_error(radial, waves * envelope) < 1e-6  # the frequencies were made in single precision
    assert bool((radial[part.flatten() >= 1] == 0).all())


def test_an_edge_without_length_is_the_limit_of_short_ones() -> None:
    embedding = EdgeEmbedding(3, 2, 3.0).double()
    short, none = embedding(torch.tensor([[1e-6, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64))[1]
    assert relative_error(none, short) < 1e-10
    assert embedding(torch.zeros(1, 3, dtype=torch.float64))[0].tolist() == [[1.0] + 8 * [0.0]]


def test_faults_are_named() -> None:
    for arguments, message in (
        ((0, 1, 1.0), "num_radial: expected at least 1, got 0"),
        ((1, 0, 1.0), "max_harmonic: expected at least 1, got 0"),
        ((1, 1, 0.0), "cutoff: expected a positive length, got 0"),
        ((1, 1, math.nan), "cutoff: expected a positive length, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            EdgeEmbedding(*arguments)
