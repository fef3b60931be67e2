"""Bases of the convolutions' kernels. The models here need none: these are for code that makes them itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from se3_fast.backends.dense.basis import spherical_harmonics as _spherical_harmonics
from se3_fast.ops.basis import get_basis, update_basis_with_fused
from se3_fast.so3 import wigner_3j

__all__ = [
    "get_all_clebsch_gordon",
    "get_basis",
    "get_basis_script",
    "get_clebsch_gordon",
    "get_spherical_harmonics",
    "update_basis_with_fused",
]


def get_clebsch_gordon(J: int, d_in: int, d_out: int, device: torch.device | str) -> Tensor:
    """The coupling of degrees, [2 d_out + 1, 2 d_in + 1, 2J + 1] float64."""
    return wigner_3j(J, d_in, d_out).permute(2, 1, 0).to(device)


def get_all_clebsch_gordon(max_degree: int, device: torch.device | str) -> list[list[Tensor]]:
    """The couplings of all pairs of degrees, d_in major; for each pair those of J = abs(d_in - d_out)..d_in + d_out."""
    degrees = range(max_degree + 1)
    return [
        [get_clebsch_gordon(J, d_in, d_out, device) for J in range(abs(d_in - d_out), d_in + d_out + 1)]
        for d_in in degrees
        for d_out in degrees
    ]


def get_spherical_harmonics(relative_pos: Tensor, max_degree: int) -> list[Tensor]:
    """Y_J of the directions of ``relative_pos`` [E, 3], J = 0..2 max_degree, each [E, 2J + 1]."""
    return _spherical_harmonics(relative_pos, 2 * max_degree)


def get_basis_script(
    max_degree: int,
    use_pad_trick: bool,
    spherical_harmonics: list[Tensor],
    clebsch_gordon: list[list[Tensor]],
    amp: bool,
) -> dict[str, Tensor]:
    """The pairwise bases, as :func:`get_basis`, from given harmonics and couplings; in float16 with ``amp``."""
    pairs = [(d_in, d_out) for d_in in range(max_degree + 1) for d_out in range(max_degree + 1)]
    bases = {}
    for (d_in, d_out), couplings in zip(pairs, clebsch_gordon, strict=True):
        paths = [
            torch.einsum("em,klm->elk", harmonics, coupling.to(harmonics))
            for harmonics, coupling in zip(spherical_harmonics[abs(d_in - d_out) :], couplings, strict=False)
        ]
        basis = torch.stack(paths, 2)  # [E, 2d_in+1, F, 2d_out+1]
        basis = basis.half() if amp else basis
        bases[f"{d_in},{d_out}"] = F.pad(basis, (0, 1)) if use_pad_trick else basis
    return bases
