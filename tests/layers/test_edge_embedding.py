"""EdgeEmbedding: harmonics, places and radial functions against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from se3_fast.layers.edge_embedding import EdgeEmbedding
from se3_fast.so3 import spherical_harmonics
from tests.support import relative_error


def test_harmonics_and_places() -> None:
    """The cutoff is two knots behind the last one, where its splines end."""
    embedding = EdgeEmbedding(4, 5, 3.0, 10).double()
    rel_pos = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    harmonics, places = embedding(rel_pos)
    length = rel_pos.norm(dim=1, keepdim=True)
    expected = spherical_harmonics(rel_pos / length, 5) * math.sqrt(4 * math.pi)
    assert relative_error(harmonics, expected) < 1e-13
    assert relative_error(places, length.flatten() * 4 - 1) < 1e-13
    _, ends = embedding(torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.5, 0.0]], dtype=torch.float64))
    assert ends.tolist() == pytest.approx([10 - 1 + 2, 10 - 1])


def test_bessel_functions_of_the_knots() -> None:
    radial = EdgeEmbedding(4, 1, 3.0, 10).double().radial
    length = torch.arange(1, 11, dtype=torch.float64)[:, None] / 4
    part = length / 3.0
    waves = 2 * math.sqrt(2 / 3.0) * torch.sin(torch.arange(1, 5, dtype=torch.float64) * math.pi * part) / length
    assert relative_error(radial, waves * (1 - 28 * part**6 + 48 * part**7 - 21 * part**8)) < 1e-13


def test_radial_functions_keep_their_digits_on_the_way_through_half_precision() -> None:
    embedding = EdgeEmbedding(4, 1, 3.0, 10)
    known = embedding.radial.clone()
    assert known.dtype == torch.float64 and torch.equal(embedding.half().float().radial, known)


def test_an_edge_without_length_has_no_direction_and_no_gradient() -> None:
    rel_pos = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    harmonics, places = EdgeEmbedding(3, 2, 3.0, 8).double()(rel_pos)
    assert harmonics.tolist() == [[1.0] + 8 * [0.0]] and places.tolist() == [-1.0]
    (gradient,) = torch.autograd.grad(places.sum() + harmonics[:, 0].sum(), rel_pos, allow_unused=True)
    assert not bool(gradient.any())


def test_faults_are_named() -> None:
    for arguments, message in (
        ((0, 1, 1.0, 4), "num_radial: expected at least 1, got 0"),
        ((1, 0, 1.0, 4), "max_harmonic: expected at least 1, got 0"),
        ((1, 1, 1.0, 0), "num_knots: expected at least 1, got 0"),
        ((1, 1, 0.0, 4), "cutoff: expected a positive length, got 0"),
        ((1, 1, math.nan, 4), "cutoff: expected a positive length, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            EdgeEmbedding(*arguments)
