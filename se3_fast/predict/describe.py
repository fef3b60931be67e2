"""From a molecule as it was read to the arrays that a model takes, or why there are none."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rdkit import Chem

from se3_fast.data.conformers import conformers
from se3_fast.data.featuriser import Featuriser
from se3_fast.data.molecule_arrays import MOST_ATOMS, MoleculeArrays, featurise

from .records import RecordError, molecule_of_smiles

_NEAREST = 0.1
"""Angstrom; no bond is nearly as short."""


def described(
    molecule: Chem.Mol, featuriser: Featuriser, num_conformers: int = 1, seed: int = 0
) -> tuple[Chem.Mol, list[MoleculeArrays]]:
    """The molecule with its hydrogens, and its arrays: one for the positions that it has, else one for each conformer.

    Args:
        molecule: It is not changed.
        featuriser: Makes the features.
        num_conformers: Of a molecule without positions in space.
        seed: Of the conformers.

    Raises:
        ValueError: It cannot be described; says why, in one line or more.
        RuntimeError: Likewise, of RDKit.
    """
    whole = _with_hydrogens(molecule)
    if whole.GetNumAtoms() > MOST_ATOMS:
        raise RecordError(f"{whole.GetNumAtoms()} atoms, at most {MOST_ATOMS} are possible")
    return whole, [featurise(whole, positions, featuriser) for positions in _positions(whole, num_conformers, seed)]


def unserved(molecule: Chem.Mol, elements: Iterable[int], charge: int) -> str:
    """What the features cannot express about a molecule, or empty: such a molecule would be taken for another.

    Args:
        molecule: The molecule.
        elements: Atomic numbers that the features know.
        charge: That all molecules have.
    """
    reasons = []
    unknown = {atom.GetAtomicNum() for atom in molecule.GetAtoms()} - set(elements)
    if unknown:
        reasons.append(not_in_training(unknown))
    found = Chem.GetFormalCharge(molecule)
    if found != charge:
        reasons.append(f"charge {found:+d}")
    radical_electrons = sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms())
    if radical_electrons:
        reasons.append(f"a radical with {radical_electrons} unpaired electron{'s' * (radical_electrons > 1)}")
    return "; ".join(reasons)


def not_in_training(atomic_numbers: Iterable[int]) -> str:
    """That elements are not in the training data, by name."""
    table = Chem.GetPeriodicTable()
    names = [table.GetElementName(number).lower() if number else "an atom of no element" for number in sorted(atomic_numbers)]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not in the training data"


def _with_hydrogens(molecule: Chem.Mol) -> Chem.Mol:
    """The molecule with explicit hydrogens.

    Raises:
        RecordError: Only some of them stand there beside positions in space, which tells of a radical or of a fault.
    """
    if molecule.GetNumAtoms() == 0:
        raise RecordError("no atoms")
    missing = sum(atom.GetTotalNumHs() for atom in molecule.GetAtoms())
    if not missing:
        return Chem.Mol(molecule)
    if _has_positions(molecule) and any(atom.GetAtomicNum() == 1 for atom in molecule.GetAtoms()):
        raise RecordError(f"{missing} of its hydrogens missing: a radical, or incomplete")
    if molecule.GetNumAtoms() > MOST_ATOMS:
        raise RecordError(f"{molecule.GetNumAtoms()} atoms, at most {MOST_ATOMS} are possible")
    return Chem.AddHs(molecule, addCoords=_has_positions(molecule))


def _has_positions(molecule: Chem.Mol) -> bool:
    return molecule.GetNumConformers() > 0 and molecule.GetConformer().Is3D() and not _is_drawing(molecule)


def _is_drawing(molecule: Chem.Mol) -> bool:
    """Whether what is said to be in space is flat though an atom has four neighbours, which no molecule of these elements is."""
    places = molecule.GetConformer().GetPositions()  # [n, 3]
    is_flat = not places[:, 2].any() and len(np.unique(places.round(3), axis=0)) == len(places)  # else it has no positions at all
    return is_flat and any(atom.GetDegree() == 4 for atom in molecule.GetAtoms())


def _positions(molecule: Chem.Mol, num_conformers: int, seed: int) -> list[np.ndarray]:
    if not _has_positions(molecule):
        return _conformers(molecule, num_conformers, seed)
    positions = molecule.GetConformer().GetPositions()  # [n, 3]
    _check_apart(positions)
    return [positions]


def _conformers(molecule: Chem.Mol, count: int, seed: int) -> list[np.ndarray]:
    """Those of its SMILES, since they depend on the order of atoms and bonds: however a molecule comes, it gets the same ones.

    Isotopes, which change that order, are left out.

    Args:
        molecule: With explicit hydrogens; it is left with these conformers alone.
        count: How many to try.
        seed: Of the conformers.
    """
    plain = _without_isotopes(molecule)
    same = Chem.AddHs(molecule_of_smiles(Chem.MolToSmiles(Chem.RemoveHs(plain))))
    place = same.GetSubstructMatch(plain, useChirality=True)  # in `same`, of each atom
    if len(place) != same.GetNumAtoms() or place == tuple(range(len(place))):
        return conformers(molecule, count, seed)
    found = [positions[list(place)] for positions in conformers(same, count, seed)]
    molecule.RemoveAllConformers()
    for positions in found:
        conformer = Chem.Conformer(len(place))
        conformer.SetPositions(positions)
        molecule.AddConformer(conformer, assignId=True)
    return found


def _without_isotopes(molecule: Chem.Mol) -> Chem.Mol:
    """A copy in which deuterium is a hydrogen as others, and nothing is chiral by it: it moves no electron."""
    plain = Chem.Mol(molecule)
    for atom in plain.GetAtoms():
        atom.SetIsotope(0)
    Chem.AssignStereochemistry(plain, cleanIt=True, force=True)
    return plain


def _check_apart(positions: np.ndarray) -> None:
    """Check that atoms [n, 3] stand apart: files that lack positions have zeros in their place.

    Raises:
        RecordError: Two do not; says which.
    """
    first, second = np.triu_indices(len(positions), 1)
    is_near = np.abs(positions[first] - positions[second]).max(axis=1, initial=0.0) < _NEAREST
    if is_near.any():
        pair = int(is_near.argmax())
        raise RecordError(f"positions: atoms {first[pair] + 1} and {second[pair] + 1} stand at one place")
