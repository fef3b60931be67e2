"""Constant tables of the rotation group, in e3nn's real basis (components m = -d..d, polar axis y).

Everything here is computed once per process in float64 and kept; callers cast. Source of the conventions: DESIGN
sections 1 and 1.1 (docs/design.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from se3_fast.autograd.modes import constant

Y0 = 1.0 / math.sqrt(4.0 * math.pi)
"""The spherical harmonic of degree 0 ('integral' normalisation)."""


def num_paths(degree_in: int, degree_out: int) -> int:
    """Number of intermediate degrees J = |d_in - d_out| .. d_in + d_out of a pair: 2 min(d_in, d_out) + 1."""
    return 2 * min(degree_in, degree_out) + 1


@constant
def wigner_3j(degree: int, degree_in: int, degree_out: int) -> Tensor:
    """The Wigner 3j symbols, [2J+1, 2d_in+1, 2d_out+1] float64, unit Frobenius norm (e3nn's)."""
    # Not at the top: importing e3nn takes longer than all of this package.
    from e3nn import o3

    return o3.wigner_3j(degree, degree_in, degree_out, dtype=torch.float64)


def spherical_harmonics(direction: Tensor, max_degree: int) -> Tensor:
    """The spherical harmonics of the degrees 0..max_degree, [.., sum of 2d+1], of directions [.., 3] of length 1 or 0 (e3nn's)."""
    from e3nn import o3

    return o3.spherical_harmonics(list(range(max_degree + 1)), direction, normalize=False, normalization="integral")


@constant
def next_harmonic(degree: int) -> Tensor:
    """The map from harmonics of degree - 1 times a direction to those of ``degree``, [(2d-1) * 3, 2d+1] float64, from degree 2 on.

    For harmonics of a unit vector whose square sum is 2d+1.
    """
    coupling = wigner_3j(degree - 1, 1, degree).flatten(0, 1)
    direction = torch.tensor([[0.36, 0.48, 0.8]], dtype=torch.float64)
    harmonics = spherical_harmonics(direction, degree) * math.sqrt(4 * math.pi)
    before, wanted = harmonics[0, (degree - 1) ** 2 : degree**2], harmonics[0, degree**2 :]
    found = (before[:, None] * direction).flatten() @ coupling
    return coupling * (wanted @ found / (found @ found))


@constant
def axis_swap(degree: int) -> Tensor:
    """J_d of DESIGN 1.1: the rotation by pi that exchanges the x and y axes, [2d+1, 2d+1] float64.

    It is its own inverse and turns a rotation about y, which is sparse in this basis, into one about x.
    """
    about_x, about_y, _ = generators(degree)
    return torch.linalg.matrix_exp(math.pi / math.sqrt(2.0) * (about_x + about_y))


@constant
def generators(degree: int) -> Tensor:
    """Generators of rotations about x, y and z acting on degree d, [3, 2d+1, 2d+1] float64.

    ``G[a] @ v`` is the rate of change of v when it is turned about axis a; for d = 1 it is the cross product
    e_a x v. Obtained from the couplings: the 3j symbols (1, d, d) are an invariant antisymmetric map, hence proportional
    to the generators; the factor follows from the Casimir value d (d + 1), its sign from [G_x, G_y] = G_z.
    """
    if degree == 0:
        return torch.zeros(3, 1, 1, dtype=torch.float64)
    coupling = wigner_3j(1, degree, degree)  # [3, 2d+1, 2d+1]
    casimir = -(coupling @ coupling).sum(0).diagonal().mean()
    scaled = coupling * math.sqrt(degree * (degree + 1) / casimir)
    about_x, about_y, about_z = scaled
    is_right_handed = ((about_x @ about_y - about_y @ about_x) * about_z).sum() > 0  # [G_x, G_y] = G_z
    return scaled if is_right_handed else -scaled


@constant
def alignment_map(degree_in: int, degree_out: int) -> Tensor:
    """The map from the paths J of a pair of degrees to the edge-aligned weights (DESIGN 1.1), [F, F] float64.

    Row order: R_even[0..min], then R_odd[1..min] with min = min(d_in, d_out); columns: J ascending. On an edge along the
    polar axis the basis B[l, f, k] is zero unless |m_in| = |m_out|; the even rows are its entries at (m, m), the odd rows
    its entries at (m, -m).
    """
    smaller = min(degree_in, degree_out)
    rows = torch.zeros(2 * smaller + 1, 2 * smaller + 1, dtype=torch.float64)
    for path, degree in enumerate(range(abs(degree_in - degree_out), degree_in + degree_out + 1)):
        pole_value = math.sqrt((2 * degree + 1) / (4 * math.pi))  # Y_J at the pole: only the component m = 0
        basis = pole_value * wigner_3j(degree, degree_in, degree_out)[degree]  # [2d_in+1, 2d_out+1]
        for m in range(smaller + 1):
            rows[m, path] = basis[degree_in + m, degree_out + m]
        for m in range(1, smaller + 1):
            rows[smaller + m, path] = basis[degree_in + m, degree_out - m]
    return rows
