"""From RDKit molecules to the arrays of ``qm9_edge.npz`` (needs the extra ``chem``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from se3_fast.data.featuriser import SAMPLE_FEATURISER, Featuriser
from se3_fast.data.molecules import LARGEST_POSITION
from se3_fast.data.near_origin import near_origin

try:
    from rdkit import Chem
    from rdkit.Chem import rdForceFieldHelpers
except ImportError as error:
    raise ImportError("making molecules needs RDKit: pip install 'se3_fast[chem]'") from error

ELEMENTS = {1: 0, 6: 1, 7: 2, 8: 3, 9: 4}
"""Column of every element (by atomic number) in the one-hot part of the node attributes."""

BOND_TYPES = {"SINGLE": 0, "DOUBLE": 1, "TRIPLE": 2, "AROMATIC": 3}
"""Column of every RDKit bond type in the edge attributes."""

HYBRIDISATIONS = {"SP": 7, "SP2": 8, "SP3": 9}
"""Column of every RDKit hybridisation in the node attributes."""

MOST_ATOMS = 256
"""Atoms that a molecule may have: edges name them in 8 bits."""


@dataclass(frozen=True)
class MoleculeArrays:
    """One molecule with n atoms and e directed edges (each bond in both directions).

    Attributes:
        node_attr: uint8 [n, 11]: one-hot H, C, N, O, F; atomic number; aromatic; sp; sp2; sp3; number of hydrogens.
        node_pos: float32 [n, 3], Angstrom.
        edge_attr: uint8 [e, 4], one-hot single, double, triple, aromatic.
        src: uint8 [e], source atom of every edge.
        dst: uint8 [e], destination atom of every edge.
    """

    node_attr: np.ndarray
    node_pos: np.ndarray
    edge_attr: np.ndarray
    src: np.ndarray
    dst: np.ndarray


def featurise(molecule: Chem.Mol, positions: np.ndarray, featuriser: Featuriser) -> MoleculeArrays:
    """Describe one molecule whose hydrogens are explicit, as the molecules of a data set are.

    Aromatic bonds and hybridisation are those that RDKit finds; which bonds a molecule file marks does not matter. What this
    returns is part of trained models: see :mod:`se3_fast.data.featuriser`.

    Args:
        molecule: RDKit molecule of H, C, N, O and F; it is not changed.
        positions: [n, 3], Angstrom.
        featuriser: One of ``FEATURISERS``.

    Raises:
        ValueError: An element or a bond type that the layout has no column for, positions of no use, no atom or more than 256.
    """
    marked = _with_aromaticity(molecule)
    if featuriser == SAMPLE_FEATURISER:
        marked = _with_aromaticity_of_mmff(marked)
    return molecule_arrays(marked, positions)


def _with_aromaticity(molecule: Chem.Mol) -> Chem.Mol:
    """Return a copy with aromatic bonds marked, or the molecule as it is if RDKit cannot decide them.

    QM9's file leaves out the charges of zwitterions, so that some valences look wrong; they are not checked.
    """
    marked = Chem.Mol(molecule)
    failed = Chem.SanitizeMol(marked, Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES, catchErrors=True)
    # A failure leaves half-changed bonds behind.
    return marked if failed == Chem.SANITIZE_NONE else molecule


def _with_aromaticity_of_mmff(molecule: Chem.Mol) -> Chem.Mol:
    """Return a copy with those bonds marked that MMFF94 calls aromatic, as its optimisation leaves them."""
    marked = Chem.Mol(molecule)
    marked.ClearProp("_MMFFSanitized")  # where it stands the marks that there are would stay
    rdForceFieldHelpers.MMFFGetMoleculeProperties(marked)
    return marked


def molecule_arrays(molecule: Chem.Mol, positions: np.ndarray) -> MoleculeArrays:
    """Describe one molecule whose hydrogens are explicit, with aromatic bonds and hybridisation as they are marked.

    Args:
        molecule: RDKit molecule of H, C, N, O and F; what its atoms and bonds are marked as is what is stored.
        positions: [n, 3], Angstrom.

    Raises:
        ValueError: An element or a bond type that the layout has no column for, positions of no use, no atom or more than 256.
    """
    num_atoms = molecule.GetNumAtoms()
    if not 1 <= num_atoms <= MOST_ATOMS:
        raise ValueError(f"molecule must have 1 to {MOST_ATOMS} atoms, got {num_atoms}")
    if not (np.abs(positions) <= LARGEST_POSITION).all():
        raise ValueError(f"positions must be finite and at most {LARGEST_POSITION:.3g} Angstrom, got others")
    node_attr = np.zeros((num_atoms, 11), dtype=np.uint8)
    for atom in molecule.GetAtoms():
        if atom.GetAtomicNum() not in ELEMENTS:
            raise ValueError(f"molecule must consist of H, C, N, O and F, got {atom.GetSymbol()}")
        row = node_attr[atom.GetIdx()]
        row[ELEMENTS[atom.GetAtomicNum()]] = 1
        row[5] = atom.GetAtomicNum()
        row[6] = atom.GetIsAromatic()
        if atom.GetHybridization().name in HYBRIDISATIONS:
            row[HYBRIDISATIONS[atom.GetHybridization().name]] = 1
        row[10] = sum(neighbour.GetAtomicNum() == 1 for neighbour in atom.GetNeighbors())

    edges = []
    for bond in molecule.GetBonds():
        if bond.GetBondType().name not in BOND_TYPES:
            raise ValueError(f"bonds must be single, double, triple or aromatic, got {bond.GetBondType().name}")
        column = BOND_TYPES[bond.GetBondType().name]
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        edges += [(begin, end, column), (end, begin, column)]
    table = np.array(sorted(edges), dtype=np.int64).reshape(-1, 3)
    return MoleculeArrays(
        node_attr=node_attr,
        node_pos=near_origin(np.asarray(positions), np.array([num_atoms])).astype(np.float32),
        edge_attr=np.eye(4, dtype=np.uint8)[table[:, 2]],
        src=table[:, 0].astype(np.uint8),
        dst=table[:, 1].astype(np.uint8),
    )


def molecule_of_arrays(arrays: MoleculeArrays) -> Chem.Mol:
    """The molecule that arrays describe, with its positions, for drawings.

    Charges are not in the arrays, so that valences may look wrong. Aromatic bonds for which no alternation of single and double
    ones is found are single.
    """
    editable = Chem.RWMol()
    conformer = Chem.Conformer(len(arrays.node_attr))
    for row, (attributes, position) in enumerate(zip(arrays.node_attr, arrays.node_pos, strict=True)):
        atom = Chem.Atom(int(attributes[5]))
        atom.SetNoImplicit(True)
        editable.AddAtom(atom)
        conformer.SetAtomPosition(row, position.tolist())
    kinds = [getattr(Chem.BondType, name) for name in BOND_TYPES]
    for src, dst, kind in zip(arrays.src.tolist(), arrays.dst.tolist(), arrays.edge_attr.argmax(1).tolist(), strict=True):
        if src < dst:
            editable.AddBond(src, dst, kinds[kind])
            is_aromatic = kinds[kind] == Chem.BondType.AROMATIC
            editable.GetBondBetweenAtoms(src, dst).SetIsAromatic(is_aromatic)
            for atom in (src, dst) if is_aromatic else ():
                editable.GetAtomWithIdx(atom).SetIsAromatic(True)
    molecule = editable.GetMol()
    molecule.AddConformer(conformer)
    molecule.UpdatePropertyCache(strict=False)
    try:
        Chem.Kekulize(molecule, clearAromaticFlags=True)
    except ValueError:
        for bond in molecule.GetBonds():
            if bond.GetIsAromatic():
                bond.SetBondType(Chem.BondType.SINGLE)
                bond.SetIsAromatic(False)
        for atom in molecule.GetAtoms():
            atom.SetIsAromatic(False)
    Chem.FastFindRings(molecule)
    return molecule


def stack_molecules(molecules: Sequence[MoleculeArrays], targets: np.ndarray) -> dict[str, np.ndarray]:
    """Join molecules into the arrays of ``qm9_edge.npz``.

    Args:
        molecules: M molecules, at least one.
        targets: [M, 19] in the published order and units, NaN where unknown; stored as float32.
    """
    return {
        "n_node": np.array([len(molecule.node_attr) for molecule in molecules], dtype=np.int64),
        "n_edge": np.array([len(molecule.src) for molecule in molecules], dtype=np.int64),
        "node_attr": np.concatenate([molecule.node_attr for molecule in molecules]),
        "node_pos": np.concatenate([molecule.node_pos for molecule in molecules]),
        "edge_attr": np.concatenate([molecule.edge_attr for molecule in molecules]),
        "src": np.concatenate([molecule.src for molecule in molecules]),
        "dst": np.concatenate([molecule.dst for molecule in molecules]),
        "targets": np.asarray(targets, dtype=np.float32),
    }
