"""Make the sample data set that is shipped with the package: ``python -m se3_fast.data.make_sample``.

Molecules of H, C, N, O and F with four to nine heavy atoms are grown at random from fragments (chains, rings,
functional groups), cleaned of patterns that no chemist would expect to find in a bottle, given one conformer (RDKit:
ETKDG, then MMFF94) and labelled with GFN2-xTB (tblite). The labels belong to the positions as they are stored. Equal
arguments give equal molecules in equal order, however many processes work on them.

Needs the extra ``chem`` (rdkit, tblite). The arrays are those of ``qm9_edge.npz`` and, beside them, ``smiles``.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

try:
    from rdkit import Chem, rdBase
    from tblite.interface import Calculator
except ImportError as error:
    raise ImportError("making the sample data set needs RDKit and tblite: pip install 'se3_fast[chem]'") from error

from se3_fast.commands.make_sample import main
from se3_fast.data.conformers import ConformerError, conformers
from se3_fast.data.featuriser import SAMPLE_FEATURISER
from se3_fast.data.molecule_arrays import MoleculeArrays, featurise, stack_molecules
from se3_fast.data.npz_file import write_npz
from se3_fast.data.tasks import HARTREE_IN_EV, TASKS
from se3_fast.error_text import one_line
from se3_fast.files import check_writable

BOHR_IN_ANGSTROM = 0.529177210903
DEBYE_IN_ATOMIC_UNITS = 0.393430307

HEAVY_ATOMS = {4: 1, 5: 3, 6: 7, 7: 14, 8: 25, 9: 50}
"""How often a molecule of that many heavy atoms is attempted. The smallest soon run out of new ones."""

FRAGMENTS = {
    # chains and single atoms
    "C": 10, "CC": 5, "C(C)C": 3, "N": 5, "O": 6, "F": 5, "C=C": 4, "C#C": 3,
    # functional groups
    "C=O": 6, "C#N": 4, "C(=O)O": 2, "C(=O)N": 3, "C(=O)OC": 1, "COC": 3, "CNC": 2, "N(C)C": 2, "C(F)(F)F": 2,
    "C(F)F": 1, "C=NO": 1, "N=CN": 1, "NC(=O)N": 1, "NC#N": 1,
    # saturated rings
    "C1CC1": 2, "C1CO1": 2, "C1CN1": 1, "C1CCC1": 2, "C1COC1": 2, "C1CNC1": 1, "C1CCCC1": 2, "C1CCOC1": 2,
    "C1CCNC1": 2, "C1CCCCC1": 1, "C1COCCN1": 1, "C1CCOCC1": 1, "C1CC=CC1": 1, "C1CC=CCC1": 1, "O=C1CCCC1": 1,
    "O=C1CCCN1": 1, "O=C1CCCO1": 1, "C1COCO1": 1,
    # aromatic rings
    "c1ccccc1": 4, "c1ccncc1": 3, "c1cncnc1": 2, "c1cnccn1": 1, "c1cc[nH]c1": 3, "c1ccoc1": 3, "c1c[nH]cn1": 2,
    "c1cn[nH]c1": 2, "c1cocn1": 2, "c1cnoc1": 2, "c1nc[nH]n1": 1, "c1nnco1": 1, "c1nnn[nH]1": 1,
}  # fmt: skip
"""Fragments and how often each is drawn. A fragment is attached at any of its atoms that bears a hydrogen."""

UNWANTED_PATTERNS = (
    "[#8,#9]-[#8,#9]",  # peroxides, hypofluorites
    "[#7]-[#9]",
    "[NX3;!a]-[NX3;!a]",
    "[NX3]-[OX2;!a]",
    "[N;!a]=[N,O;!a]",
    "[#7;a]-[O,N,F;!a]",
    "[N,O;!a]-[N,O;!a]-[N,O;!a]",
    "[OX2H,NX3!H0][CX4][OX2,NX3,F]",  # hemiacetals, aminals and their like lose water, ammonia or HF
    "[NX3][CX4][OX2,NX3,F]",
    "[OX2H,NX3][CX4]-[n;a]",
    "[OX2H]C(=O)-[n;a]",
    "[OX2][CX4]([OX2,NX3])[OX2,NX3]",
    "[OX2][CX4]F",
    "[C;!a]=[C;!a]-[OX2H,NX3!H0]",  # enols, enamines
    "[CX3]=[NX2H]",
    "[C;!a]=[C;!a]-F",
    "C#C-[N,O,F]",
    "O=[CX3]-F",
    "[OX2]C#N",
    "[OX2H]C(=O)[O,N]",  # carbonic and carbamic acids
    "O=C-C(=O)-[OX2H]",
    "O=C[CX4]C(=O)[OX2H]",
    "N=[CX3]-[OX2H]",
    "O=[CX3]-[NX2]",
    "*=*=*",  # cumulenes, ketenes, isocyanates
    "[R]#[*]",
    "[r3]=[*]",
    "[r3;a]",
    "[r4]=[r4]~[r4]=[r4]",
    "[!a;R2]=[*]",  # double bonds at ring junctions
    "[!a;R3]",
    "[CX3H1](=O)[CX3H1]=O",
    "O=C-O-C=[O,N]",  # anhydrides
    "[nr6]:[nr6]:[nr6]",
)

RING_CLOSURE_SIZES = (3, 4, 5, 6)
POSITION_STEP = 2.0**-11
"""Positions are stored as multiples of this, in Angstrom: finer than any use of them, and short when compressed."""

MAXIMUM_RINGS = 3
COVALENT_RADII = {1: 0.31, 6: 0.76, 7: 0.71, 8: 0.66, 9: 0.57}
"""Angstrom; B. Cordero et al., Dalton Trans. 2008, 2832."""

LONGEST_BOND = 1.1
"""A longer one, in sums of covalent radii, tells of a failed optimisation."""

SHORTEST_CONTACT = 1.25
"""Atoms that are not bonded and closer than this, in sums of covalent radii, have reacted."""


class CandidateSource:
    """An endless, reproducible stream of canonical SMILES, no two alike."""

    def __init__(self, seed: int) -> None:
        """Start the stream; equal seeds give equal streams."""
        self._random = random.Random(seed)
        self._fragments = [Chem.MolFromSmiles(smiles) for smiles in FRAGMENTS]
        self._weights = list(FRAGMENTS.values())
        self._unwanted = [Chem.MolFromSmarts(pattern) for pattern in UNWANTED_PATTERNS]
        self._seen: set[str] = set()

    def __iter__(self) -> Iterator[str]:
        """Yield SMILES of molecules never yielded before."""
        sizes, size_weights = list(HEAVY_ATOMS), list(HEAVY_ATOMS.values())
        while True:
            (size,) = self._random.choices(sizes, size_weights)
            molecule = self._grow(size)
            if molecule is None or molecule.GetNumAtoms() != size or not self.is_wanted(molecule):
                continue
            smiles = Chem.MolToSmiles(molecule)
            if smiles not in self._seen:
                self._seen.add(smiles)
                yield smiles

    def _grow(self, size: int) -> Chem.Mol | None:
        molecule: Chem.Mol | None = self._draw_fragment(size)
        for _ in range(3 * size):
            if molecule is None:
                return None
            move = self._random.random()
            if molecule.GetNumAtoms() < size:
                molecule = self._attach(molecule, self._draw_fragment(size - molecule.GetNumAtoms()))
            elif move < 0.12:
                molecule = self._close_ring(molecule)
            elif move < 0.2:
                molecule = self._unsaturate(molecule)
            elif move < 0.4:
                molecule = self._replace_carbon(molecule)
            else:
                return molecule
        return molecule

    def _draw_fragment(self, largest: int) -> Chem.Mol:
        fitting = [
            (fragment, weight)
            for fragment, weight in zip(self._fragments, self._weights, strict=True)
            if fragment.GetNumAtoms() <= largest
        ]
        (fragment,) = self._random.choices(*zip(*fitting, strict=True))
        return fragment

    def _attach(self, molecule: Chem.Mol, fragment: Chem.Mol) -> Chem.Mol | None:
        left, right = _atoms_with_hydrogen(molecule), _atoms_with_hydrogen(fragment)
        if not left or not right:
            return None
        joined = Chem.RWMol(Chem.CombineMols(molecule, fragment))
        begin, end = self._random.choice(left), molecule.GetNumAtoms() + self._random.choice(right)
        return _bonded(joined, begin, end)

    def _close_ring(self, molecule: Chem.Mol) -> Chem.Mol | None:
        distances = Chem.GetDistanceMatrix(molecule)
        free = [index for index in _atoms_with_hydrogen(molecule) if not molecule.GetAtomWithIdx(index).GetIsAromatic()]
        pairs = [(i, j) for i, j in itertools.combinations(free, 2) if distances[i, j] + 1 in RING_CLOSURE_SIZES]
        if not pairs:
            return molecule
        return _bonded(Chem.RWMol(molecule), *self._random.choice(pairs))

    def _unsaturate(self, molecule: Chem.Mol) -> Chem.Mol | None:
        bonds = [
            bond.GetIdx()
            for bond in molecule.GetBonds()
            if bond.GetBondType() == Chem.BondType.SINGLE
            and all(
                atom.GetTotalNumHs() > 0 and atom.GetHybridization() == Chem.HybridizationType.SP3
                for atom in (bond.GetBeginAtom(), bond.GetEndAtom())
            )
        ]
        if not bonds:
            return molecule
        editable = Chem.RWMol(molecule)
        editable.GetBondWithIdx(self._random.choice(bonds)).SetBondType(Chem.BondType.DOUBLE)
        return _sanitised(editable)

    def _replace_carbon(self, molecule: Chem.Mol) -> Chem.Mol | None:
        carbons = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 6 and atom.GetTotalNumHs() > 0]
        if not carbons:
            return molecule
        editable = Chem.RWMol(molecule)
        editable.GetAtomWithIdx(self._random.choice(carbons)).SetAtomicNum(self._random.choice((7, 7, 8)))
        return _sanitised(editable)

    def is_wanted(self, molecule: Chem.Mol) -> bool:
        """Whether a molecule has carbon, few and unstrained rings, and none of ``UNWANTED_PATTERNS``."""
        rings = [set(ring) for ring in molecule.GetRingInfo().AtomRings()]
        aromatic = {atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetIsAromatic()}
        strained = any(_is_strained_pair(first, second, aromatic) for first, second in itertools.combinations(rings, 2))
        if strained or len(rings) > MAXIMUM_RINGS or not any(a.GetAtomicNum() == 6 for a in molecule.GetAtoms()):
            return False
        return not any(molecule.HasSubstructMatch(pattern) for pattern in self._unwanted)


def _is_strained_pair(first: set[int], second: set[int], aromatic: set[int]) -> bool:
    """Whether two rings are small ones that share an atom, or an aromatic one that is bridged."""
    small = min(len(first), len(second)) == 3 and max(len(first), len(second)) <= 4
    bridged = len(first & second) > 2
    return (small and bool(first & second)) or (bridged and bool((first | second) & aromatic))


def _atoms_with_hydrogen(molecule: Chem.Mol) -> list[int]:
    return [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetTotalNumHs() > 0]


def _bonded(molecule: Chem.RWMol, begin: int, end: int) -> Chem.Mol | None:
    molecule.AddBond(begin, end, Chem.BondType.SINGLE)
    for index in (begin, end):
        # The hydrogen of an aromatic [nH] is stored on the atom; all others follow from the valence.
        molecule.GetAtomWithIdx(index).SetNumExplicitHs(0)
    return _sanitised(molecule)


def _sanitised(molecule: Chem.RWMol) -> Chem.Mol | None:
    """Return a clean copy, or None if the valences are wrong or the molecule is charged, radical or in pieces."""
    try:
        Chem.SanitizeMol(molecule)
        # Through text: what follows then depends on the molecule alone and not on how it was made.
        clean = Chem.MolFromSmiles(Chem.MolToSmiles(molecule))
    except (Chem.MolSanitizeException, RuntimeError):
        return None
    if clean is None or any(atom.GetFormalCharge() or atom.GetNumRadicalElectrons() for atom in clean.GetAtoms()):
        return None
    return clean


def conformer(smiles: str, seed: int) -> tuple[Chem.Mol, np.ndarray] | None:
    """Return the molecule with its hydrogens and positions [n, 3] in Angstrom, or None if none can be found.

    Positions come from ETKDG (version 3) and MMFF94, are centred and rounded to ``POSITION_STEP``. A geometry is
    refused if the optimisation did not converge or if its neighbours by distance are not the neighbours by bond.
    """
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    try:
        (positions,) = conformers(molecule, 1, seed)
    except ConformerError:
        return None
    positions = positions - positions.mean(axis=0)
    positions = np.round(positions / POSITION_STEP) * POSITION_STEP
    return (molecule, positions) if _is_connected_as_drawn(molecule, positions) else None


def _is_connected_as_drawn(molecule: Chem.Mol, positions: np.ndarray) -> bool:
    radii = np.array([COVALENT_RADII[atom.GetAtomicNum()] for atom in molecule.GetAtoms()])
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    stretch = distances / (radii[:, None] + radii[None])
    bonded = Chem.GetAdjacencyMatrix(molecule).astype(bool)
    apart = ~bonded & ~np.eye(len(bonded), dtype=bool)
    return bool((stretch[bonded] < LONGEST_BOND).all() and (stretch[apart] > SHORTEST_CONTACT).all())


def xtb_labels(numbers: np.ndarray, positions: np.ndarray) -> dict[str, float] | None:
    """Label one neutral closed-shell molecule by GFN2-xTB, or return None if it does not converge.

    Args:
        numbers: Atomic numbers, [n].
        positions: [n, 3], Angstrom.

    Returns:
        ``mu`` in Debye; ``homo``, ``lumo``, ``gap`` and ``U0`` (the total energy of GFN2-xTB, without vibrations) in
        eV.
    """
    calculator = Calculator("GFN2-xTB", numbers, positions / BOHR_IN_ANGSTROM)
    calculator.set("verbosity", 0)
    try:
        result = calculator.singlepoint()
    except RuntimeError:
        return None
    orbitals = result.get("orbital-energies") * HARTREE_IN_EV
    occupied = result.get("orbital-occupations") > 1.0
    homo, lumo = float(orbitals[occupied].max()), float(orbitals[~occupied].min())
    return {
        "mu": float(np.linalg.norm(result.get("dipole")) / DEBYE_IN_ATOMIC_UNITS),
        "homo": homo,
        "lumo": lumo,
        "gap": lumo - homo,
        "U0": float(result.get("energy") * HARTREE_IN_EV),
    }


def make_molecule(smiles: str, seed: int) -> tuple[str, MoleculeArrays, np.ndarray] | None:
    """Make one entry of the data set: the SMILES, its arrays and its targets [19] (NaN where there is no label).

    Returns None if no sound geometry or no closed-shell label is found.
    """
    found = conformer(smiles, seed)
    if found is None:
        return None
    molecule, positions = found
    labels = xtb_labels(np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()]), positions)
    if labels is None or labels["gap"] < 1.0:
        return None
    targets = np.full(len(TASKS), np.nan)
    for task, value in labels.items():
        targets[TASKS.index(task)] = round(value, 5)
    return smiles, featurise(molecule, positions, SAMPLE_FEATURISER), targets


def make_sample(num_molecules: int, seed: int, processes: int) -> dict[str, np.ndarray]:
    """Make the arrays of the data set.

    Args:
        num_molecules: How many molecules to make.
        seed: Of the growth and of the conformers.
        processes: How many processes share the work; the result does not depend on it.
    """
    # The order of a threaded sum would show in the last digits, and the processes use all cores as it is.
    os.environ["OMP_NUM_THREADS"] = "1"
    rdBase.DisableLog("rdApp.*")
    candidates = iter(CandidateSource(seed))
    entries: list[tuple[str, MoleculeArrays, np.ndarray]] = []
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        tqdm(total=num_molecules, unit="molecule") as progress,
    ):
        while len(entries) < num_molecules:
            some = [(smiles, seed) for smiles in itertools.islice(candidates, 32 * processes)]
            entries += [entry for entry in pool.starmap(make_molecule, some, chunksize=4) if entry is not None]
            del entries[num_molecules:]
            progress.update(len(entries) - progress.n)
    smiles, molecules, targets = zip(*entries, strict=True)
    return {**stack_molecules(molecules, np.stack(targets)), "smiles": np.array(smiles, dtype=np.bytes_)}


def write_sample(output: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> int:
    """Make arrays and write them, once it is known that they can be; returns the exit status."""
    try:
        check_writable(output)
        write_npz(output, make())
    except OSError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments; returns the exit status."""
    return write_sample(arguments.output, lambda: make_sample(arguments.num_molecules, arguments.seed, arguments.processes))


if __name__ == "__main__":
    sys.exit(main())
