from __future__ import annotations

import math

import pytest
import torch
from e3nn import o3

from se3_fast import EdgeGeometry, get_basis
from se3_fast.backends.dense.edge_frames import edge_directions, wigner_blocks
from se3_fast.geometry import edge_lengths
from se3_fast.so3 import axis_swap, generators
from tests.support import random_rotation, wigner_of_rotation

POLES_AND_AXES = torch.tensor([[0, 1, 0], [0, -1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]], dtype=torch.float64)


def directions() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    near_poles = POLES_AND_AXES[:2] + 1e-8 * random[:2]
    return edge_directions(torch.cat([random, POLES_AND_AXES, near_poles]))


def block(blocks: torch.Tensor, degree: int) -> torch.Tensor:
    start = degree * (4 * degree * degree - 1) // 3
    size = 2 * degree + 1
    return blocks[:, start : start + size * size].view(-1, size, size)


@pytest.mark.parametrize("degree", range(7))
def test_wigner_blocks_take_the_polar_axis_to_the_edge(degree: int) -> None:
    unit = directions()
    turned = block(wigner_blocks(unit, 6), degree)
    harmonics = o3.spherical_harmonics(degree, unit, normalize=False, normalization="integral")
    at_pole = torch.zeros(2 * degree + 1, dtype=torch.float64)
    at_pole[degree] = math.sqrt((2 * degree + 1) / (4 * math.pi))
    torch.testing.assert_close(turned @ at_pole, harmonics, rtol=0, atol=1e-13)


@pytest.mark.parametrize("degree", range(7))
def test_wigner_blocks_are_rotations(degree: int) -> None:
    turned = block(wigner_blocks(directions(), 6), degree)
    identity = torch.eye(2 * degree + 1, dtype=torch.float64).expand_as(turned)
    torch.testing.assert_close(turned @ turned.transpose(1, 2), identity, rtol=0, atol=1e-13)


def test_degree_1_block_is_the_rotation_matrix() -> None:
    turned = block(wigner_blocks(directions(), 1), 1)
    torch.testing.assert_close(turned[:, :, 1], directions(), rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(len(turned), dtype=torch.float64))


def test_zero_length_edges_have_zero_blocks() -> None:
    geometry = EdgeGeometry.from_relative_positions(torch.tensor([[0.0, 0, 0], [0, 0, 2.0]]), 2)
    assert geometry.zero_length_edges.tolist() == [0]
    assert geometry.wigner[0].abs().max() == 0
    assert geometry.wigner.isfinite().all()


@pytest.mark.parametrize("length", [1e-30, 1e30])
def test_directions_of_very_short_and_long_edges(length: float) -> None:
    rel_pos = (length * directions()).float()
    torch.testing.assert_close(edge_directions(rel_pos), directions().float(), rtol=0, atol=1e-6)
    assert len(EdgeGeometry.from_relative_positions(rel_pos, 1).zero_length_edges) == 0


def test_direction_gradient_is_finite_at_zero_length() -> None:
    rel_pos = torch.tensor([[0.0, 0, 0], [3.0, 0, 4.0]], requires_grad=True)
    edge_directions(rel_pos).sum().backward()
    assert rel_pos.grad is not None and rel_pos.grad.isfinite().all()


@pytest.mark.parametrize("degree", range(1, 7))
def test_generators_generate_the_rotations(degree: int) -> None:
    for axis in range(3):
        vector = torch.zeros(3, dtype=torch.float64)
        vector[axis] = 0.3
        rotation = torch.linalg.matrix_exp((generators(1) * vector[:, None, None]).sum(0))
        exponential = torch.linalg.matrix_exp(0.3 * generators(degree)[axis])
        torch.testing.assert_close(exponential, wigner_of_rotation(rotation, degree), rtol=0, atol=1e-12)


def test_generators_of_vectors_are_cross_products() -> None:
    x, y, z = torch.eye(3, dtype=torch.float64)
    assert torch.equal((generators(1)[0] @ y).round(decimals=12), z)
    assert torch.equal((generators(1)[1] @ z).round(decimals=12), x)


@pytest.mark.parametrize("degree", range(7))
def test_axis_swap_is_its_own_inverse(degree: int) -> None:
    swap = axis_swap(degree)
    torch.testing.assert_close(swap @ swap, torch.eye(2 * degree + 1, dtype=torch.float64), rtol=0, atol=1e-13)


def test_rotation_helper_rotates_harmonics() -> None:
    rotation = random_rotation(3)
    for degree in range(5):
        before = o3.spherical_harmonics(degree, directions(), normalize=False)
        after = o3.spherical_harmonics(degree, directions() @ rotation.T, normalize=False)
        torch.testing.assert_close(before @ wigner_of_rotation(rotation, degree).T, after, rtol=0, atol=1e-12)


def test_geometry_from_bases_has_the_same_frames() -> None:
    rel_pos = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for is_padded in (False, True):
        given = EdgeGeometry.from_bases(get_basis(rel_pos, 2, use_pad_trick=is_padded), 2)
        made = EdgeGeometry.from_relative_positions(rel_pos, 2)
        torch.testing.assert_close(given.wigner, made.wigner, rtol=0, atol=1e-14)


def test_index_select_takes_the_edges_in_order() -> None:
    rel_pos = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    chosen = torch.tensor([4, 0, 4])
    geometry = EdgeGeometry.from_relative_positions(rel_pos, 2).index_select(chosen)
    assert geometry.num_edges == 3
    assert torch.equal(geometry.wigner, EdgeGeometry.from_relative_positions(rel_pos[chosen], 2).wigner)


@pytest.mark.parametrize(
    ("rel_pos", "message"),
    [
        (torch.zeros(4, 2), r"rel_pos: expected shape \[E, 3\], got \[4, 2\]"),
        (torch.tensor([[0.0, 0, 1], [0, torch.nan, 0]]), "rel_pos: expected finite relative positions, got .* at edge 1"),
    ],
)
def test_bad_positions_are_named(rel_pos: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EdgeGeometry.from_relative_positions(rel_pos, 2)


def test_bases_of_too_few_degrees_are_refused() -> None:
    with pytest.raises(ValueError, match="basis: expected bases up to degree 3"):
        EdgeGeometry.from_bases(get_basis(torch.randn(2, 3), 2), 3)


def test_lengths_and_their_derivatives_at_length_zero() -> None:
    rel_pos = torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [1e-200, 0.0, 0.0]], dtype=torch.float64)
    assert edge_lengths(rel_pos).tolist() == [5.0, 0.0, 0.0]
    leaf = rel_pos.clone().requires_grad_()
    lengths = edge_lengths(leaf)
    assert torch.equal(lengths, edge_lengths(rel_pos))
    (first,) = torch.autograd.grad(lengths.sum(), leaf, create_graph=True)
    torch.testing.assert_close(
        first.detach(), torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    )
    (second,) = torch.autograd.grad(first[:, 0].sum(), leaf)
    torch.testing.assert_close(second, torch.tensor([[0.128, 0.0, -0.096], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64))
