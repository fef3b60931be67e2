"""One molecule as it was read, or why it could not be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from se3_fast.data.molecule_arrays import MOST_ATOMS, MoleculeArrays
from se3_fast.data.number_text import number_of_text

try:
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds
except ImportError as error:
    raise ImportError("predicting for molecules needs RDKit: pip install 'se3_fast[chem]'") from error

_MOST_ITERATIONS = 100_000
_PRIVATE_ITEM = "_item_of_sdf:"  # RDKit has names of its own that begin with _
_LARGEST_CHARGE = 100  # RDKit's charges have 8 bits


class RecordError(ValueError):
    """A molecule cannot be served; the message says why, in one line."""


@dataclass(frozen=True)
class Record:
    """One molecule of a file or a sequence.

    Attributes:
        file: Where it stands; empty for molecules that were not read from a file.
        number: Of its line (SMILES, CSV, XYZ: where it begins) or of its place in the file, counted from 1.
        name: Its title, or empty.
        molecule: An RDKit molecule, or arrays that are featurised already; None if it could not be read.
        fault: Why it could not be read, or empty.
        columns: What stands in the columns of the file, or the properties of the SDF, that were asked for, by their names.
    """

    file: str = ""
    number: int = 0
    name: str = ""
    molecule: Chem.Mol | MoleculeArrays | None = None
    fault: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def number_in(self, column: str) -> float | None:
        """The finite number in a column, or None where there is none."""
        try:
            value = number_of_text(self.columns.get(column, ""))
        except ValueError:
            return None
        return value if math.isfinite(value) else None


def keep_item(molecule: Chem.Mol, name: str, value: str) -> None:
    """Keep a data item of an SDF as a property of the molecule; one whose name begins with `_` is none of RDKit's."""
    molecule.SetProp(_PRIVATE_ITEM + name if name.startswith("_") else name, value)


def items_of(molecule: Chem.Mol) -> dict[str, str]:
    """The data items of a molecule as :func:`keep_item` has kept them, and its other properties but those that are RDKit's own."""
    names = molecule.GetPropNames(includePrivate=True)
    public = [name for name in names if not name.startswith("_") or name.startswith(_PRIVATE_ITEM)]
    return {name.removeprefix(_PRIVATE_ITEM): molecule.GetProp(name) for name in public}


def molecule_of_smiles(smiles: str) -> Chem.Mol:
    """The molecule of a SMILES, in RDKit's canonical order, so that conformers do not depend on how it was written.

    Numbers of its atoms, as reactions have them (`[CH3:1]`), are left out: the canonical order would go by them.

    Raises:
        RecordError: It is none.
    """
    molecule = Chem.MolFromSmiles(smiles, sanitize=False) if smiles.strip() else None
    if molecule is None:
        raise RecordError(f"not a SMILES: {smiles!r:.100}")
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.MolFromSmiles(Chem.MolToSmiles(sanitised(molecule))) or sanitised(molecule)


def molecule_of_block(lines: Sequence[str]) -> Chem.Mol:
    """The molecule of a MOL block.

    Raises:
        RecordError: It cannot be read.
    """
    counts = next((line.split() for line in lines if line.startswith("M  V30 COUNTS")), None)
    # Of such a block RDKit believes how many atoms it has, and makes room for them.
    if counts is not None and not (len(counts) > 4 and all(word.isdecimal() and int(word) < len(lines) for word in counts[3:5])):
        raise RecordError("not a MOL block: fewer lines than its atoms and bonds")
    molecule = Chem.MolFromMolBlock("".join(lines), removeHs=False, sanitize=False)
    if molecule is None:
        raise RecordError("not a MOL block")
    return sanitised(molecule)


def molecule_of_atoms(symbols: Sequence[str | int], positions: np.ndarray, charge: int) -> Chem.Mol:
    """The molecule of atoms in space; RDKit finds the bonds from the distances.

    Args:
        symbols: [n], symbols of elements or atomic numbers.
        positions: [n, 3], Angstrom.
        charge: Of the whole molecule.

    Raises:
        RecordError: No such element, too many atoms, or no bonds fit.
    """
    if not symbols:
        raise RecordError("no atoms")
    if abs(charge) > _LARGEST_CHARGE:
        raise RecordError(f"charge {charge:+d}")
    if len(symbols) > MOST_ATOMS:
        raise RecordError(f"{len(symbols)} atoms, at most {MOST_ATOMS} are possible")
    editable = Chem.RWMol()
    conformer = Chem.Conformer(len(symbols))
    for row, (symbol, position) in enumerate(zip(symbols, positions, strict=True)):
        try:
            editable.AddAtom(Chem.Atom(symbol if isinstance(symbol, int) else symbol.capitalize()))
        except (RuntimeError, OverflowError):
            raise RecordError(f"no element {symbol!r:.50}") from None
        conformer.SetAtomPosition(row, [float(value) for value in position])
    editable.AddConformer(conformer)
    if charge != 0:  # such a molecule is not served, and which of its atoms has the charge does not matter
        editable.GetAtomWithIdx(0).SetFormalCharge(charge)
        return editable.GetMol()
    try:
        rdDetermineBonds.DetermineBonds(editable, charge=0, allowChargedFragments=False, maxIterations=_MOST_ITERATIONS)
    except (ValueError, RuntimeError) as error:
        raise RecordError(f"no bonds fit its atoms: a radical, a charge, or a distorted molecule ({first_line(error)})") from None
    return sanitised(editable.GetMol())


def molecule_of_ase(atoms: Any) -> Chem.Mol:
    """The molecule of ASE's `Atoms`; its charge is that of `info` (:func:`charge_of`).

    Raises:
        RecordError: It is periodic, or not a molecule.
    """
    if any(atoms.get_pbc()):
        raise RecordError("periodic: expected a molecule")
    positions = np.asarray(atoms.get_positions(), dtype=float)
    check_positions(positions)
    return molecule_of_atoms(atoms.get_atomic_numbers().tolist(), positions, charge_of(atoms.info))


def charge_of(info: Mapping[str, Any]) -> int:
    """The charge that atoms are said to have: `charge`, else `total_charge`, else none.

    Raises:
        RecordError: It is not a number.
    """
    charge = info.get("charge", info.get("total_charge", 0))
    try:
        return round(number_of_text(charge) if isinstance(charge, str) else float(charge))
    except (TypeError, ValueError, OverflowError):
        raise RecordError(f"charge: expected a number, got {charge!r:.50}") from None


def check_positions(positions: np.ndarray) -> None:
    """Check that positions are finite.

    Raises:
        RecordError: They are not.
    """
    if not np.isfinite(positions).all():
        raise RecordError("positions are not finite")


def sanitised(molecule: Chem.Mol) -> Chem.Mol:
    """A copy whose valences are checked.

    Raises:
        RecordError: They are wrong; says which.
    """
    copy = Chem.Mol(molecule)
    try:
        Chem.SanitizeMol(copy)
    except (ValueError, RuntimeError) as error:
        raise RecordError(first_line(error)) from None
    return copy


def first_line(error: Exception) -> str:
    """The first line of an error of RDKit, which may have a trace of C++ after it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
