"""Dipoles of molecules from charges and dipoles of their atoms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_WIDTH = 32


class DipoleHead(nn.Module):
    """The dipole of a neutral molecule.

        mu = sum over atoms i of  q_i (r_i - r) + m_i,      r the mean of the positions

    Charges q_i come from the scalars of the atoms, atomic dipoles m_i from their vectors. What the charges have too much is
    taken off all atoms alike, so that they add up to zero and the dipole does not depend on the origin; relative to the mean of the
    positions the sum is the same with and without that. A dipole turns with its molecule, and a mirror reflects it.

    Args:
        num_channels: C of the features.
        has_vectors: whether there are features of degree 1; else there are charges alone.
    """

    def __init__(self, num_channels: int, has_vectors: bool) -> None:
        super().__init__()
        self.charge_of_atom = nn.Sequential(nn.Linear(num_channels, _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, 1))
        self.vector_weight = nn.Parameter(torch.randn(num_channels) / math.sqrt(num_channels)) if has_vectors else None

    def forward(self, features: list[Tensor], pos: Tensor, molecule: Tensor, num_molecules: int) -> Tensor:
        """Evaluate.

        Args:
            features: [N, 2d+1, C] of degree 0 and, if there are vectors, 1.
            pos: [N, 3], Angstrom.
            molecule: [N] int64, the number of the molecule of each atom.
            num_molecules: B.

        Returns:
            [B, 3] in the dtype of the features, e Angstrom.
        """
        sums = pos.new_zeros(num_molecules, 3).index_add(0, molecule, pos)
        sizes = pos.new_zeros(num_molecules).index_add(0, molecule, torch.ones_like(pos[:, 0]))
        relative = pos - (sums / sizes[:, None]).index_select(0, molecule)
        of_atoms = self.charge_of_atom(features[0].squeeze(1)) * relative.to(features[0])
        if self.vector_weight is not None:
            of_atoms = of_atoms + features[1] @ self.vector_weight
        return of_atoms.new_zeros(num_molecules, 3).index_add(0, molecule, of_atoms)
