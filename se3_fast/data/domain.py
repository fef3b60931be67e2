"""What the training molecules of a model span, so that a molecule outside of it is known when it is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from se3_fast.data.molecules import NUM_EDGE_FEATURES, Molecules, first_of_each

ELEMENT_NAMES = {1: "hydrogen", 6: "carbon", 7: "nitrogen", 8: "oxygen", 9: "fluorine"}
"""Names of the elements that the features know, by atomic number."""

BOND_NAMES = ("single", "double", "triple", "aromatic")
"""Names of the edge attributes' columns."""

_LARGEST_COUNT = 255
_ATOMIC_NUMBER = 5


@dataclass(frozen=True)
class Domain:
    """Elements, sizes and kinds of atoms in a training set.

    Attributes:
        elements: Atomic numbers, ascending.
        fewest_heavy_atoms: Of all molecules; heavy atoms are those that are no hydrogen.
        most_heavy_atoms: Of all molecules.
        most_atoms: Of all molecules.
        charge: Of every molecule: the features have none, and the data sets are neutral.
        most_pieces: Of all molecules; a salt or a hydrate has two, without a bond between them.
        atom_kinds: ``[atomic number, single, double, triple, aromatic bonds]`` of every atom, each kind once, ascending.
    """

    elements: tuple[int, ...]
    fewest_heavy_atoms: int
    most_heavy_atoms: int
    most_atoms: int
    atom_kinds: tuple[tuple[int, ...], ...]
    charge: int = 0
    most_pieces: int = 1

    @classmethod
    def of(cls, molecules: Molecules, numbers: np.ndarray) -> Domain:
        """What some molecules of a data set span.

        Args:
            molecules: With features that are whole numbers (uint8).
            numbers: [m] int64, which of them; at least one.
        """
        is_chosen = np.zeros(len(molecules), dtype=bool)
        is_chosen[numbers] = True
        n_node, n_edge = molecules.n_node.numpy(), molecules.n_edge.numpy()  # [M], [M]
        of_node = np.repeat(np.arange(len(molecules)), n_node)  # [N]
        atomic_numbers = molecules.node_attr[:, _ATOMIC_NUMBER].numpy()  # [N]
        first_node = first_of_each(molecules.n_node).numpy()
        src, dst = (np.repeat(first_node, n_edge) + ends.numpy() for ends in (molecules.src, molecules.dst))  # [E] each
        kinds = _each_once(_atom_kinds(atomic_numbers, src, molecules.edge_attr.numpy())[is_chosen[of_node]])
        pieces = np.bincount(of_node[_pieces(src, dst, len(of_node))], minlength=len(molecules))[is_chosen]  # [m]
        heavy = np.bincount(of_node[atomic_numbers != 1], minlength=len(molecules))[is_chosen]  # [m]
        return cls(
            elements=tuple(sorted({kind[0] for kind in kinds})),
            fewest_heavy_atoms=int(heavy.min()),
            most_heavy_atoms=int(heavy.max()),
            most_atoms=int(n_node[is_chosen].max()),
            atom_kinds=tuple(kinds),
            most_pieces=int(pieces.max()),
        )

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> Domain:
        """What :meth:`description` describes."""
        kinds = tuple(map(tuple, description["atom_kinds"]))
        return cls(**{**description, "elements": tuple(description["elements"]), "atom_kinds": kinds})

    def description(self) -> dict[str, Any]:
        """Plain values, for checkpoints; without `most_pieces` if it is 1, as they have always been."""
        described = {**asdict(self), "elements": list(self.elements), "atom_kinds": list(map(list, self.atom_kinds))}
        return {name: value for name, value in described.items() if name != "most_pieces" or value != 1}

    def reasons_outside(self, node_attr: np.ndarray, edge_attr: np.ndarray, src: np.ndarray) -> list[str]:
        """Why a molecule is not of the kind that the training set has; empty if nothing is seen.

        Elements and charges are looked at before there are features.

        Args:
            node_attr: uint8 [n, 6 or more].
            edge_attr: uint8 [e, 4].
            src: [e], source atom of every edge.
        """
        atomic_numbers = node_attr[:, _ATOMIC_NUMBER]  # [n]
        heavy = int((atomic_numbers != 1).sum())
        reasons = []
        if heavy > self.most_heavy_atoms:
            reasons.append(f"{_heavy_atoms(heavy)}, training has at most {self.most_heavy_atoms}")
        if heavy < self.fewest_heavy_atoms:
            reasons.append(f"{_heavy_atoms(heavy)}, training has at least {self.fewest_heavy_atoms}")
        if len(node_attr) > self.most_atoms:
            reasons.append(f"{len(node_attr)} atoms, training has at most {self.most_atoms}")
        known = set(self.atom_kinds)
        kinds = _each_once(_atom_kinds(atomic_numbers, src, edge_attr))
        return reasons + [f"{_kind_name(kind)} is not in the training data" for kind in kinds if kind not in known]


def _pieces(src: np.ndarray, dst: np.ndarray, count: int) -> np.ndarray:
    """The first atom of each piece of `count` atoms that bonds [E] in both directions join, ascending."""
    first = np.arange(count)  # of the piece of each atom, as far as is known
    while True:
        known = first.copy()
        np.minimum.at(known, src, first[dst])
        known = known[known]
        if (known == first).all():
            return np.unique(first)
        first = known


def _atom_kinds(atomic_numbers: np.ndarray, src: np.ndarray, edge_attr: np.ndarray) -> np.ndarray:
    """Atomic number and number of bonds of each type of every atom: [n], [e], [e, 4] to [n, 5] uint8."""
    kinds = np.empty((len(atomic_numbers), 1 + NUM_EDGE_FEATURES), dtype=np.uint8)
    kinds[:, 0] = atomic_numbers
    for column in range(NUM_EDGE_FEATURES):
        bonds = np.bincount(src[edge_attr[:, column] != 0], minlength=len(atomic_numbers))  # [n]
        kinds[:, 1 + column] = np.minimum(bonds, _LARGEST_COUNT)
    return kinds


def _each_once(kinds: np.ndarray) -> list[tuple[int, ...]]:
    """The different rows of kinds [n, 5] uint8, ascending."""
    # Packed into one number each, which sorts faster than rows do.
    shifts = 8 * np.arange(kinds.shape[1])[::-1]
    packed = np.unique((kinds.astype(np.int64) << shifts).sum(axis=1))
    return [tuple(int(part) for part in (code >> shifts) & _LARGEST_COUNT) for code in packed]


def _heavy_atoms(count: int) -> str:
    return f"{count} heavy atom{'s' * (count != 1)}"


def _kind_name(kind: tuple[int, ...]) -> str:
    element = ELEMENT_NAMES.get(kind[0], f"element {kind[0]}")
    bonds = [f"{count} {name}" for count, name in zip(kind[1:], BOND_NAMES, strict=True) if count]
    return f"{element} with {' and '.join(bonds) or 'no'} bond{'s' * (sum(kind[1:]) != 1)}"
