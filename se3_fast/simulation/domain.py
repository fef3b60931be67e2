"""Whether a structure is like those a force field was trained on: how close atoms come to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor

from se3_fast.graph import Graph

_TOLERANCE = 0.95
"""Part of the shortest distance of the training frames that is taken for known: the tails of what is simulated reach further than
those of a sample of it."""


class OutsideDomainWarning(UserWarning):
    """A structure is unlike those that the force field was trained on."""


class OutsideDomainError(RuntimeError):
    """A structure is unlike those that the force field was trained on, and that was to stop the run."""


class ClosestPairs:
    """Shortest distances of atoms, by pairs of elements.

    Args:
        distances: Angstrom, by pairs of atomic numbers as :func:`closest_pairs` names them (``"1-6"``).
        elements: atomic numbers of the elements that the force field knows.
        cutoff: Angstrom; pairs that are not named never came that close.
    """

    def __init__(self, distances: Mapping[str, float], elements: Sequence[int], cutoff: float) -> None:
        self.table = torch.zeros(len(chemical_symbols), len(chemical_symbols), dtype=torch.float64)
        known = torch.tensor(elements)
        self.table[known[:, None], known] = cutoff
        for pair, distance in distances.items():
            first, second = map(int, pair.split("-"))
            self.table[first, second] = self.table[second, first] = distance

    def reason_outside(self, graph: Graph, lengths: Tensor) -> str | None:
        """What pair of atoms is too close, or None.

        Args:
            graph: with ``ndata['atomic_numbers']`` [N].
            lengths: [E] of its edges, Angstrom.
        """
        if not len(lengths):
            return None
        numbers = graph.ndata["atomic_numbers"]
        parts = lengths / self.table[numbers[graph.src], numbers[graph.dst]]
        edge = int(parts.argmin())
        if parts[edge] >= _TOLERANCE:
            return None
        atoms = [int(graph.src[edge]), int(graph.dst[edge])]
        names = " and ".join(f"{atom} ({chemical_symbols[int(numbers[atom])]})" for atom in atoms)
        known = float(lengths[edge] / parts[edge])
        return f"atoms {names} are {float(lengths[edge]):.3g} Angstrom apart, in the training frames never less than {known:.3g}"
