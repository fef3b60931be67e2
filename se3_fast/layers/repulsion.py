"""What a force field knows of atoms that are closer than any it was trained on: their nuclei repel each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor, nn

from se3_fast.layers.edge_embedding import fade_out

_COULOMB = 14.399645  # e^2 / (4 pi epsilon_0), eV Angstrom
_SCREENING_LENGTH = 0.8854 * 0.529177  # Angstrom
_SCREENING = ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162))
_POWER = 6
_UNSEEN = 1.5
"""Angstrom, for pairs of elements that no training frame has within the cutoff."""

_SHORTEST = 0.01
"""Angstrom: closer than that the energy stays what it is."""


class NuclearRepulsion(nn.Module):
    """The universal screened repulsion of two nuclei (Ziegler, Biersack and Littmark 1985), faded out at a distance.

        V(r) = k Z Z' / r  phi(r (Z^0.23 + Z'^0.23) / 0.4685)  u(r / reach),   phi(x) = sum over four terms of c exp(-e x)

    u is the polynomial of :func:`~se3_fast.layers.edge_embedding.fade_out`: V is zero with two derivatives from ``reach`` on, a
    distance for each pair of elements. It is the shortest one of the training frames, so that what was learned stays as it is.

    Args:
        elements: atomic numbers, ascending.
        longest: of the edges that there are, Angstrom; pairs that no training frame has do not repel each other beyond it either.

    Attributes:
        reach: [elements, elements] float64, Angstrom.
    """

    reach: Tensor
    strength: Tensor
    inverse_length: Tensor

    def __init__(self, elements: Sequence[int], longest: float = math.inf) -> None:
        super().__init__()
        self.elements = list(elements)
        self._longest = longest
        self._unseen = min(_UNSEEN, longest)
        charges = torch.tensor(self.elements, dtype=torch.float64)
        powers = charges**0.23
        self.register_buffer("strength", _COULOMB * charges[:, None] * charges, persistent=False)
        self.register_buffer("inverse_length", (powers[:, None] + powers) / _SCREENING_LENGTH, persistent=False)
        self.register_buffer("reach", torch.full_like(self.strength, self._unseen))

    def set_reach(self, distances: Mapping[str, float]) -> None:
        """Choose where it begins.

        Args:
            distances: Angstrom, by pairs of atomic numbers (``"1-6"``); those longer than the longest edge are taken for it, pairs
                of other elements are passed over. Pairs that are not named repel each other from 1.5 Angstrom on, or from the
                longest edge on where that is shorter.

        Raises:
            ValueError: if a name is no pair of atomic numbers, or a distance not positive.
        """
        self.reach.fill_(self._unseen)
        column = {str(element): number for number, element in enumerate(self.elements)}
        for pair, distance in distances.items():
            elements = str(pair).split("-")
            is_pair = len(elements) == 2 and all(element.isdecimal() for element in elements)
            if not (is_pair and isinstance(distance, Real) and 0 < distance < math.inf):
                raise ValueError(
                    f"distances: expected positive lengths by pairs of atomic numbers such as '1-6', got {pair}: {distance!r:.50}"
                )
            first, second = map(column.get, elements)
            if first is not None and second is not None:
                self.reach[first, second] = self.reach[second, first] = min(float(distance), self._longest)

    def forward(self, rel_pos: Tensor, src: Tensor, dst: Tensor, columns: Tensor) -> Tensor:
        """Energies of atoms: half of that of each of their pairs.

        Args:
            rel_pos: [E, 3], Angstrom; every pair in both directions.
            src: [E].
            dst: [E].
            columns: [N], of the elements of the atoms.

        Returns:
            [N] in the dtype of ``rel_pos``, eV.
        """
        pair = columns[dst] * len(self.elements) + columns[src]  # [E]
        strength, inverse_length, reach = (
            table.flatten()[pair].to(rel_pos.dtype) for table in (self.strength, self.inverse_length, self.reach)
        )
        length = rel_pos.square().sum(1).clamp(min=_SHORTEST**2).sqrt()
        scaled = length * inverse_length
        screening = torch.stack([share * torch.exp(-rate * scaled) for share, rate in _SCREENING]).sum(0)
        energy = strength / length * screening * fade_out(length / reach, _POWER)
        return energy.new_zeros(columns.shape[0]).index_add(0, dst, energy / 2)  # a shape can be traced, a length not
