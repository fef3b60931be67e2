"""The dense bases of the published implementation (DESIGN 1).

    B[e, l, f, k] = sum_M Y_J^M(r_e / |r_e|) w3j(J, d_in, d_out)[M, l, k],   J = |d_in - d_out| + f

Pairwise bases have key ``'d_in,d_out'`` and shape [E, 2d_in+1, F, 2d_out+1], F = 2 min(d_in, d_out) + 1. Fused ones, with
S = (max_degree + 1)^2 components of all degrees, are zero outside the blocks of the pairs:

    ``out{d_out}_fused``  [E, S, sum of F over d_in, 2d_out+1]
    ``in{d_in}_fused``    [E, 2d_in+1, sum of F over d_out, S]
    ``fully_fused``       [E, S, sum of F over d_out (major) and d_in, S]

Padding appends one zero to the last axis of the pairwise and ``out`` bases (2d+2 is even: Tensor Core tiles).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.backends.dense.edge_frames import edge_directions
from se3_fast.so3 import Y0, num_paths, wigner_3j
from se3_fast.so3 import spherical_harmonics as harmonics_of


def spherical_harmonics(rel_pos: Tensor, max_degree: int) -> list[Tensor]:
    """Y_J of the edge directions, J = 0..max_degree, each [E, 2J+1]; zero for J > 0 on a zero-length edge."""
    values = harmonics_of(edge_directions(rel_pos), max_degree)
    return list(values.split([2 * degree + 1 for degree in range(max_degree + 1)], -1))


def pairwise_bases(rel_pos: Tensor, max_degree: int, use_pad_trick: bool) -> dict[str, Tensor]:
    """The pairwise bases of all pairs of degrees 0..max_degree."""
    harmonics = spherical_harmonics(rel_pos, 2 * max_degree)
    bases = {}
    for degree_in, degree_out in product(range(max_degree + 1), repeat=2):
        paths = [
            torch.einsum("em,mlk->elk", harmonics[degree], wigner_3j(degree, degree_in, degree_out).to(rel_pos))
            for degree in range(abs(degree_in - degree_out), degree_in + degree_out + 1)
        ]
        basis = torch.stack(paths, 2)  # [E, 2d_in+1, F, 2d_out+1]
        bases[f"{degree_in},{degree_out}"] = F.pad(basis, (0, 1)) if use_pad_trick else basis
    return bases


def shape_of(key: str, max_degree: int) -> tuple[int, ...] | None:
    """Shape of a basis of one edge, not padded; None for a key that is not one of the degrees 0..max_degree."""
    degrees, size = range(max_degree + 1), (max_degree + 1) ** 2
    if key == "fully_fused":
        return size, sum(num_paths(*pair) for pair in product(degrees, repeat=2)), size
    parts = re.fullmatch(r"(\d+),(\d+)|(out|in)(\d+)_fused", key)
    if parts is None or max(int(part) for part in parts.group(1, 2, 4) if part) > max_degree:
        return None
    if parts[3] is None:
        degree_in, degree_out = int(parts[1]), int(parts[2])
        return 2 * degree_in + 1, num_paths(degree_in, degree_out), 2 * degree_out + 1
    width = 2 * int(parts[4]) + 1
    paths = sum(num_paths(int(parts[4]), degree) for degree in degrees)
    return (size, paths, width) if parts[3] == "out" else (width, paths, size)


def scalar_basis(example: Tensor) -> Tensor:
    """The basis ``'0,0'``, [E, 1, 1, 1] filled with Y_0, not padded; edges, dtype and device of ``example``."""
    return example.new_full((len(example), 1, 1, 1), Y0)


def fused_over_inputs(bases: dict[str, Tensor], max_degree: int, degree_out: int) -> Tensor:
    """``out{degree_out}_fused`` from the pairwise bases, padded as they are."""
    degrees = range(max_degree + 1)
    example = bases[f"{degree_out},{degree_out}"]
    num_rows = sum(num_paths(degree, degree_out) for degree in degrees)
    fused = example.new_zeros(len(example), (max_degree + 1) ** 2, num_rows, example.shape[-1])
    path = 0
    for degree_in in degrees:
        stop = path + num_paths(degree_in, degree_out)
        basis = bases[f"{degree_in},{degree_out}"]
        fused[:, degree_in**2 : (degree_in + 1) ** 2, path:stop, : basis.shape[-1]] = basis
        path = stop
    return fused


def fused_over_outputs(bases: dict[str, Tensor], max_degree: int, degree_in: int) -> Tensor:
    """``in{degree_in}_fused`` from the pairwise bases, never padded."""
    degrees = range(max_degree + 1)
    example = bases[f"{degree_in},{degree_in}"]
    num_rows = sum(num_paths(degree_in, degree) for degree in degrees)
    fused = example.new_zeros(len(example), 2 * degree_in + 1, num_rows, (max_degree + 1) ** 2)
    path = 0
    for degree_out in degrees:
        stop = path + num_paths(degree_in, degree_out)
        basis = bases[f"{degree_in},{degree_out}"][..., : 2 * degree_out + 1]
        fused[:, :, path:stop, degree_out**2 : (degree_out + 1) ** 2] = basis
        path = stop
    return fused


def _fully_fused(bases: dict[str, Tensor], max_degree: int) -> Tensor:
    """``fully_fused`` from the pairwise bases, never padded."""
    degrees = range(max_degree + 1)
    size = (max_degree + 1) ** 2
    example = bases[f"{max_degree},{max_degree}"]
    num_rows = sum(num_paths(degree_in, degree_out) for degree_in, degree_out in product(degrees, repeat=2))
    fused = example.new_zeros(len(example), size, num_rows, size)
    path = 0
    for degree_out, degree_in in product(degrees, repeat=2):
        stop = path + num_paths(degree_in, degree_out)
        basis = bases[f"{degree_in},{degree_out}"][..., : 2 * degree_out + 1]
        rows, columns = slice(degree_in**2, (degree_in + 1) ** 2), slice(degree_out**2, (degree_out + 1) ** 2)
        fused[:, rows, path:stop, columns] = basis
        path = stop
    return fused


def pairwise_keys(max_degree: int) -> list[str]:
    """Of the pairwise bases, in their order."""
    return [f"{degree_in},{degree_out}" for degree_in, degree_out in product(range(max_degree + 1), repeat=2)]


def pairwise(rel_pos: Tensor, max_degree: int, is_padded: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """See :func:`se3_fast.ops.basis.get_basis`."""
    return {key: basis.to(dtype) for key, basis in pairwise_bases(rel_pos, max_degree, is_padded).items()}


def fused(bases: dict[str, Tensor], max_degree: int, use_pad_trick: bool, fully_fused: bool) -> dict[str, Tensor]:
    """See :func:`se3_fast.ops.basis.update_basis_with_fused`."""
    found = {}
    for degree in range(max_degree + 1):
        found[f"out{degree}_fused"] = fused_over_inputs(bases, max_degree, degree)
        found[f"in{degree}_fused"] = fused_over_outputs(bases, max_degree, degree)
    return found | ({"fully_fused": _fully_fused(bases, max_degree)} if fully_fused else {})


def fused_basis(bases: dict[str, Tensor], max_degree: int, key: str) -> Tensor:
    """The fused basis of a key, from the pairwise ones."""
    if key == "fully_fused":
        return _fully_fused(bases, max_degree)
    fuse = fused_over_inputs if key.startswith("out") else fused_over_outputs
    return fuse(bases, max_degree, int(key.removesuffix("_fused").lstrip("outin")))


def basis_of_positions(rel_pos: Tensor, max_degree: int) -> Callable[[str], Tensor]:
    """The basis of a key, pairwise or fused, as a function of relative positions that autograd follows any number of times."""
    bases = pairwise(rel_pos, max_degree, False, rel_pos.dtype)

    def basis(key: str) -> Tensor:
        if key not in bases:
            bases[key] = fused_basis(bases, max_degree, key)
        return bases[key]

    return basis


def run_node(description: str, operands: Sequence[Tensor]) -> list[Tensor]:
    """The node of compiled graphs: the pairwise bases."""
    max_degree, is_padded, name = json.loads(description)
    (rel_pos,) = operands
    with torch.autocast(rel_pos.device.type, enabled=False):
        return list(connected(pairwise(rel_pos, max_degree, is_padded, getattr(torch, name)), rel_pos).values())


def connected(bases: dict[str, Tensor], rel_pos: Tensor) -> dict[str, Tensor]:
    """The basis '0,0', which is constant, with a graph of its own: what is read off it needs none of the others'."""
    if bases["0,0"].requires_grad:
        constant = bases["0,0"].detach()
        bases["0,0"] = torch.where(
            torch.ones_like(constant, dtype=torch.bool), constant, rel_pos[:, :1, None, None].to(constant.dtype)
        )
    return bases
