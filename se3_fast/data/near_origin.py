"""Positions before they are rounded to single precision, which has seven digits of them."""

from __future__ import annotations

import numpy as np

_FAR = 100.0
"""Angstrom. What is nearer to the origin is as it stands, to the last bit: rounding moves it by less than 4e-6 Angstrom."""


def near_origin(positions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Move molecules that reach further than 100 Angstrom from the origin: their first atom comes to lie there.

    Args:
        positions: [N, 3], Angstrom, finite; molecule after molecule.
        counts: [M], atoms of each.

    Returns:
        [N, 3]; ``positions`` itself where none is far.
    """
    is_far = (np.abs(positions) > _FAR).any(axis=1)
    if not is_far.any():
        return positions
    molecule = np.repeat(np.arange(len(counts)), counts)
    moves = np.isin(molecule, molecule[is_far])
    first = np.repeat(np.cumsum(counts) - counts, counts)
    wide = positions.astype(np.float64)
    return np.where(moves[:, None], wide - wide[first], wide)


def cell_near_origin(positions: np.ndarray, lattice: np.ndarray) -> np.ndarray:
    """As :func:`near_origin` of one structure, whose atoms are put into the cells around the first one too.

    Args:
        positions: [N, 3], Angstrom, finite.
        lattice: [k, 3], the lattice vectors of the periodic directions.
    """
    moved = near_origin(positions, np.array([len(positions)]))
    if moved is positions or not len(lattice):
        return moved
    return np.asarray(moved - np.rint(moved @ np.linalg.pinv(lattice)) @ lattice)
