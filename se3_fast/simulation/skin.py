"""Neighbour lists that serve many steps of a simulation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from se3_fast.graph import Graph
from se3_fast.layers.inputs import check_number
from se3_fast.neighbours import check_positions, neighbour_list


class Searched(NamedTuple):
    """What a search has found: all pairs within the cutoff and the skin.

    Attributes:
        src: [E] int64.
        dst: [E] int64.
        shift: [E, 3], lattice vectors from a source's cell to its destination's.
    """

    src: Tensor
    dst: Tensor
    shift: Tensor


class NeighboursWithSkin:
    """Neighbours within a cutoff. They are searched for within a longer one, and again only once an atom may have come from beyond.

    Args:
        cutoff: Angstrom.
        skin: how much longer the search reaches, Angstrom. A search serves until an atom has moved by half of it, or the cell has
            changed.

    Raises:
        ValueError: if the skin is negative or not finite.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        check_number("skin", skin, "a length of at least 0", is_zero_allowed=True)
        self.cutoff, self.skin = cutoff, skin
        self._found: Searched | None = None
        self._searched = (torch.zeros(0, 3), torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool))

    def graph(self, pos: Tensor, cell: Tensor, pbc: Tensor) -> tuple[Graph, Tensor]:
        """The graph of a structure.

        Args:
            pos: [N, 3] float64, on the CPU.
            cell: [3, 3] float64, lattice vectors in rows; of directions that are not periodic they are not read.
            pbc: [3] bool, the periodic directions.

        Returns:
            A graph with ``ndata['pos']``, ``edata['rel_pos']`` and ``edata['offset']``; and the lengths of its edges, [E].

        Raises:
            ValueError: if a position is not finite, or the cell has no volume.
        """
        if self._found is None or self._is_outdated(pos, cell, pbc):
            self._found = Searched(*neighbour_list(pos, self.cutoff + self.skin, cell, pbc))
            self._searched = (pos.clone(), cell.clone(), pbc.clone())
        src, dst, shift = self._found
        offset = shift.to(cell) @ cell
        rel_pos = pos.index_select(0, dst) - pos.index_select(0, src) + offset
        lengths = rel_pos.norm(dim=1)
        near = (lengths <= self.cutoff).nonzero().squeeze(1)
        edata = {"rel_pos": rel_pos[near], "offset": offset[near]}
        return Graph(src[near], dst[near], len(pos), ndata={"pos": pos}, edata=edata), lengths[near]

    @property
    def searched(self) -> Searched:
        """What the search has found that the last graph was made of; the same object until the next search."""
        assert self._found is not None
        return self._found

    def _is_outdated(self, pos: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        searched, of_cell, of_pbc = self._searched
        if pos.shape != searched.shape or not torch.equal(cell, of_cell) or not torch.equal(pbc, of_pbc):
            return True
        check_positions(pos)
        return bool(((pos - searched).norm(dim=1) > self.skin / 2).any())
